"""What credits of kind `payment` pay of a document, and what they may (docs/spec/money.md 3, 6). Values only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

from billing.bills import credits
from billing.bills.credit_notes import net_by_group
from billing.bills.credits import Grant
from billing.bills.documents import Document, PaidByCredit, Payer
from billing.money import ZERO, to_minor, total
from billing.rating.lines import LineKind, RatedLine, fees_by_key
from billing.rating.period import Coverable


def paid_by_credits(
    document: Document,
    coverable: Iterable[Coverable],
    grants: Sequence[Grant],
    left: Mapping[str, Decimal],
    paid_minor: Mapping[str, int],
    payer: Payer,
) -> tuple[PaidByCredit, ...]:
    """What grants pay of a document with its tax: their part of each group's gross, by time of usage.

    `left` is what price reductions leave of each grant (major units), `paid_minor` what it has paid so far.
    """
    if not grants or document.total_minor <= 0:
        return ()
    exact: dict[str, Decimal] = net_by_group([line.rated for line in document.lines])
    gross = {row.group: row.base_minor + row.tax_minor for row in document.taxes}
    with_tax = [
        replace(of, amount=of.amount * gross[of.tax_group] / Fraction(exact[of.tax_group]))
        for of in coverable
        if exact.get(of.tax_group, ZERO) > 0
    ]
    step = to_minor(payer.money.quantum, payer.money)
    usable = {
        grant.grant_id: Fraction(_whole_quanta(left[grant.grant_id], payer) - paid_minor.get(grant.grant_id, 0))
        for grant in grants
    }
    sums: dict[str, Fraction] = defaultdict(Fraction)
    for each in credits.draw(with_tax, grants, usable):
        sums[each.grant.grant_id] += each.amount
    found, drawn, before = [], Fraction(0), 0
    for grant in sorted(grants, key=credits.draw_order):
        drawn += sums[grant.grant_id]
        rounded = min(round(drawn / step) * step, document.total_minor)
        if rounded > before:
            found.append(PaidByCredit(grant.grant_id, rounded - before))
        before = max(before, rounded)
    return tuple(found)


def _whole_quanta(amount: Decimal, payer: Payer) -> int:
    """The whole quanta in an amount, in minor units."""
    quanta = Fraction(amount) // Fraction(payer.money.quantum)
    return int(quanta * Fraction(payer.money.quantum) / Fraction(payer.money.minor_unit))


def fees_to_cover(lines: Sequence[RatedLine]) -> list[Coverable]:
    """What credits can cover of fees in advance: each new one net of its discounts, less its share of what the credit
    for unused time takes off its tax group."""
    nets = net_by_group(lines)
    by_group: dict[str, list[RatedLine]] = defaultdict(list)
    for line in lines:
        by_group[line.tax_group].append(line)
    found: list[Coverable] = []
    for group, listed in by_group.items():
        new = fees_by_key(line for line in listed if line.identity.kind != LineKind.UNUSED)
        grown = total(amount for amount in new.values() if amount > 0)
        start = min(line.service_start for line in listed)
        found += [
            Coverable(start, key, group, Fraction(amount) * Fraction(nets[group]) / Fraction(grown), is_fee=True)
            for key, amount in new.items()
            if amount > 0 and nets[group] > 0
        ]
    return found


def more_to_cover(before: Iterable[Coverable], after: Iterable[Coverable]) -> tuple[Coverable, ...]:
    """What late usage added to what credits can cover, at its own times of usage.

    What fell takes its share off all that grew: usage off usage, fees off fees, so that a grant for usage pays no more
    than the usage came to (docs/spec/money.md 13.8). Models are told apart where they are on both sides.
    """
    signed = [(sign, of) for sign, listed in ((-1, before), (1, after)) for of in listed]
    told_apart = all(of.model is not None for _, of in signed)
    changes: dict[bool, dict[tuple[datetime, str, str, str | None], Fraction]]
    changes = {is_fee: defaultdict(Fraction) for is_fee in (False, True)}
    for sign, of in signed:
        changes[of.is_fee][of.at, of.charge_key, of.tax_group, of.model if told_apart else None] += sign * of.amount
    found: list[Coverable] = []
    for is_fee, changed in changes.items():
        grown = sum((amount for amount in changed.values() if amount > 0), Fraction(0))
        whole = sum(changed.values(), Fraction(0))
        if whole > 0:
            found += [
                Coverable(at, key, group, amount * whole / grown, is_fee, model)
                for (at, key, group, model), amount in changed.items()
                if amount > 0
            ]
    return tuple(found)


def given_back(paid: Sequence[PaidByCredit], amount_minor: int) -> tuple[PaidByCredit, ...]:
    """What a credit note of an amount gives back to the grants that paid, the last drawn first (docs/spec/money.md 6).

    It pays out nothing of them: each is negative, at most what it had paid.
    """
    found: list[PaidByCredit] = []
    for each in reversed(paid):
        back = min(amount_minor, each.used_minor)
        if back > 0:
            found.append(PaidByCredit(each.grant_id, -back))
            amount_minor -= back
    return tuple(found)
