"""Credit notes: what is taken back from a document, rounded cumulatively (docs/spec/money.md 5, 13.17).

A line and the tax of a group on a credit note = rounded(what remains) − rounded(what was), so that partial credit notes
never take back a cent too much or too little.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from billing.bills.documents import Document, DocumentKind, Payer, of_lines
from billing.bills.tax import TaxRow, tax_row
from billing.money import ZERO, exactly, round_to_quantum, to_minor
from billing.periods import BillingPeriod
from billing.rating.lines import LineKind, RatedLine


@dataclass(frozen=True, slots=True)
class Remaining:
    """What remains of a document after its credit notes: lines as (exact, minor), groups as (lines', tax) minor."""

    lines: Mapping[str, tuple[Decimal, int]] = field(default_factory=dict)
    groups: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def line(self, key: str) -> tuple[Decimal, int]:
        """What remains of a line; nothing of one that was not on it."""
        return self.lines.get(key, (ZERO, 0))


def remaining_of(document: Document) -> Remaining:
    """A document as it was issued."""
    sums: dict[str, int] = defaultdict(int)
    for line in document.lines:
        sums[line.rated.tax_group] += line.amount_minor
    taxes = {row.group: row.tax_minor for row in document.taxes}
    return Remaining(
        {line.key: (line.rated.amount, line.amount_minor) for line in document.lines},
        {group: (amount, taxes[group]) for group, amount in sums.items()},
    )


def without_ending(key: str) -> str:
    """The key that a fee in advance, its discounts, and the credit for its unused time have in common."""
    for ending in (".discount", ".invoice_discount", ".unused", ".fee"):
        key = key.removesuffix(ending)
    return key


def net_of_discounts(remaining: Remaining, of_credit: Collection[str]) -> Remaining:
    """The same with each line's discount taken into it: the credit for unused time starts from the net (13.9).

    `of_credit`: keys of lines of credit, which are no discounts and stay as they are.
    """
    lines: dict[str, tuple[Decimal, int]] = {}
    for key, (exact, minor) in remaining.lines.items():
        name = key if key in of_credit else without_ending(key)
        before = lines.get(name, (ZERO, 0))
        with exactly():
            lines[name] = (before[0] + exact, before[1] + minor)
    return Remaining(lines, remaining.groups)


def on_no_document(before: Remaining, after: Remaining, of_credit: Collection[str]) -> Remaining:
    """What remains of a document when fees give way to others without one: its groups are those on paper still."""
    return net_of_discounts(Remaining(after.lines, before.groups), of_credit)


def reduced(remaining: Remaining, key: str, tax_group: str, amount: Decimal, payer: Payer) -> Remaining:
    """What remains when a line was reduced by an amount on some earlier credit note."""
    exact, _ = remaining.line(key)
    with exactly():
        now = exact - amount
    return _moved(remaining, {key: (now, _rounded(now, payer))}, {key: tax_group}, payer)[0]


@dataclass(frozen=True, slots=True)
class Returned:
    """What a credit note gives back of a line of credit, on whichever document that is: `before`, what was left of it
    (exact, minor). `rest_minor`: what all documents say so far of its tax group, if nothing is left of that now."""

    line: RatedLine
    before: tuple[Decimal, int]
    rest_minor: int | None = None


def credit_note(
    service: BillingPeriod,
    lines: Mapping[str, RatedLine],
    against: Mapping[str, str],
    remaining: Remaining,
    payer: Payer,
    returned: Sequence[tuple[str, Returned]] = (),
) -> tuple[Document, Remaining]:
    """A credit note of lines by key, and what remains after it.

    `against` names the line of the original that a line changes; a line without one is new. `returned`: by key what is
    given back to price reductions. The last of a tax group takes what rounding would leave of one of which nothing is
    left. A tax group that comes to less never rounds to what somebody would pay (docs/decisions/0058).
    """
    now: dict[str, tuple[Decimal, int]] = {}
    minor: dict[str, int] = {}
    for key, line in lines.items():
        original = against.get(key, key)
        exact, before = now.get(original, remaining.line(original))
        with exactly():
            left = exact + line.amount
        now[original] = (left, _rounded(left, payer))
        minor[key] = now[original][1] - before
    on_note = {**lines}
    for key, each in returned:
        group = each.line.tax_group
        own = sum(minor[other] for other, line in on_note.items() if line.tax_group == group)
        with exactly():
            change = _rounded(each.before[0] + each.line.amount, payer) - each.before[1]
            same = on_note.get(key)
            on_note[key] = each.line if same is None else replace(same, amount=same.amount + each.line.amount)
            exact, before = now.get(key, remaining.line(key))
            exact += each.line.amount
        if each is [other for _, other in returned if other.line.tax_group == group][-1]:
            change = min(change, -own) if each.rest_minor is None else -each.rest_minor - own
        minor[key] = minor.get(key, 0) + change
        now[key] = exact, before + change
    lines = on_note
    for key, too_much in _charged(lines, minor).items():
        original = against.get(key, key)
        minor[key] -= too_much
        now[original] = now[original][0], now[original][1] - too_much
    groups = {against.get(key, key): line.tax_group for key, line in lines.items()}
    after, taxes = _moved(remaining, now, groups, payer)
    return of_lines(DocumentKind.CREDIT_NOTE, service, lines, minor, taxes, payer), after


def _charged(lines: Mapping[str, RatedLine], minor: Mapping[str, int]) -> dict[str, int]:
    """By line what it gives up so that no tax group that comes to less charges anybody, the last key first.

    One that comes to nothing without any credit is fees that give way to others, on no document: they stay as they are.
    """
    nets = net_by_group(list(lines.values()))
    credited = {line.tax_group for line in lines.values() if line.identity.kind == LineKind.CREDIT}
    over = {group: 0 for group, amount in nets.items() if amount < 0 or (not amount and group in credited)}
    for key, line in lines.items():
        if line.tax_group in over:
            over[line.tax_group] += minor[key]
    found: dict[str, int] = {}
    for key in sorted(lines, key=str.encode, reverse=True):
        less = min(minor[key], over.get(lines[key].tax_group, 0))
        if less > 0:
            found[key] = less
            over[lines[key].tax_group] -= less
    return found


def _rounded(amount: Decimal, payer: Payer) -> int:
    return to_minor(round_to_quantum(amount, payer.money.quantum, payer.rounding), payer.money)


def _moved(
    remaining: Remaining, now: Mapping[str, tuple[Decimal, int]], groups: Mapping[str, str], payer: Payer
) -> tuple[Remaining, tuple[TaxRow, ...]]:
    """What remains once lines are as they are now, and the change of each group's base and tax."""
    changes: dict[str, int] = defaultdict(int)
    for key, (_, minor) in now.items():
        changes[groups[key]] += minor - remaining.line(key)[1]
    after: dict[str, tuple[int, int]] = dict(remaining.groups)
    rows: list[TaxRow] = []
    for group in sorted(changes):
        lines_minor, tax_minor = after.get(group, (0, 0))
        row = tax_row(group, lines_minor + changes[group], payer.tax, payer.money)
        tax_change = row.tax_minor - tax_minor
        base_change = changes[group] - tax_change if payer.tax.inclusive else changes[group]
        rows.append(TaxRow(group, row.rate, base_change, tax_change))
        after[group] = (lines_minor + changes[group], row.tax_minor)
    return Remaining({**remaining.lines, **now}, after), tuple(rows)


def net_by_group(lines: Sequence[RatedLine]) -> dict[str, Decimal]:
    """What differences come to per tax group."""
    sums: dict[str, Decimal] = {}
    with exactly():
        for line in lines:
            sums[line.tax_group] = sums.get(line.tax_group, ZERO) + line.amount
    return sums
