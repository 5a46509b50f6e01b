"""Credits that reduce prices, as lines of a document (docs/spec/money.md 3, 6, 13.12).

Values in, values out. Which grant gives for which usage: credits.py; what others pay of the total: payment_credits.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from billing.bills import credits
from billing.bills.credit_notes import net_by_group
from billing.bills.credits import Grant
from billing.money import ZERO, exactly, total
from billing.rating.lines import LineIdentity, LineKind, RatedLine
from billing.rating.made_lines import credit_line
from billing.rating.period import Coverable


@dataclass(frozen=True, slots=True)
class PriceReductions:
    """Lines that reduce prices, what they draw of each grant (major units), and what they leave to cover."""

    lines: tuple[RatedLine, ...]
    drawn: Mapping[str, Decimal]
    open: tuple[Coverable, ...]


def price_reductions(
    coverable: Sequence[Coverable], grants: Iterable[Grant], left: Mapping[str, Decimal], like: RatedLine | None
) -> PriceReductions:
    """What grants that lower the price take off: a negative line per grant and tax group.

    `left` is what is left of each grant in major units; `like` a line of which they have names and time, None where
    nothing can be covered.
    """
    reducing = [grant for grant in grants if credits.reduces_price(grant)]
    draws = credits.draw(coverable, reducing, {g.grant_id: Fraction(left.get(g.grant_id, ZERO)) for g in reducing})
    amounts = credits.by_grant_and_group(draws)
    groups: dict[str, int] = defaultdict(int)
    for grant_id, _ in amounts:
        groups[grant_id] += 1
    lines: list[RatedLine] = []
    drawn: dict[str, Decimal] = defaultdict(lambda: ZERO)
    for (grant_id, group), amount in amounts.items():
        assert like is not None, "what can be covered stands on some line"
        key = f"credit.{grant_id}" + (f".{group}" if groups[grant_id] > 1 else "")
        lines.append(credit_line(like, key, -amount, group))
        with exactly():
            drawn[grant_id] += amount
    return PriceReductions(tuple(lines), dict(drawn), tuple(credits.after(coverable, draws)))


def given_back_with_fees(
    billed: Iterable[RatedLine], less: Sequence[RatedLine], grants: Iterable[Grant]
) -> list[RatedLine]:
    """What price reductions give back of fees in advance when these come to less: what they took off beyond what is
    left of the fees that they cover, tax group by tax group, the last drawn first (docs/decisions/0051).

    `billed`: all lines so far of the documents over a period's fees in advance, `less` what is taken back of them now.
    """
    billed, known = list(billed), {grant.grant_id: grant for grant in grants}
    drawn: dict[tuple[str, str], list[RatedLine]] = defaultdict(list)
    for line in billed:
        if line.identity.kind == LineKind.CREDIT:
            drawn[line.tax_group, grant_of(line, known)].append(line)
    found: list[RatedLine] = []
    for group in sorted({line.tax_group for line in less}):
        left = _fees_left(line for line in (*billed, *less) if line.tax_group == group)
        for grant in sorted(known.values(), key=credits.draw_order):
            if (group, grant.grant_id) not in drawn:
                continue
            first, *_ = listed = drawn[group, grant.grant_id]
            back = -total(line.amount for line in listed)
            for key in sorted(left):
                if grant.applies_to.covers(Coverable(first.service_start, key, group, Fraction(1), is_fee=True)):
                    with exactly():
                        kept = max(ZERO, min(back, left[key]))
                        back, left[key] = back - kept, left[key] - kept
            if back > 0:
                key = first.identity.charge_key
                taken = any(line.identity.charge_key == key for line in found)
                found.append(credit_line(first, f"credit.{grant.grant_id}.{group}" if taken else key, back, group))
    return found


def _fees_left(lines: Iterable[RatedLine]) -> dict[str, Decimal]:
    """What fees in advance come to by now, by the key that a credit covers them under: a prepaid fee is not its
    charge."""
    lines = [line for line in lines if line.identity.kind != LineKind.CREDIT]
    prepaid = {line.identity.charge_key for line in lines if line.identity.kind == LineKind.PREPAID_FEE}
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for line in lines:
            key = line.identity.charge_key
            found[f"{key}.fee" if key in prepaid else key] += line.amount
    return dict(found)


def closing_lines(of_document: Iterable[RatedLine], taken: Sequence[RatedLine]) -> list[LineIdentity]:
    """Of what is taken back of a document a line of credit for each tax group of which then nothing is left on it."""
    left = net_by_group([*of_document, *taken])
    last = {line.tax_group: line.identity for line in taken if line.identity.kind == LineKind.CREDIT}
    return [identity for group, identity in sorted(last.items()) if not left[group]]


def grant_of(line: RatedLine, grant_ids: Iterable[str]) -> str:
    """Whose price reduction a line is. The ids that are known to be among the lines hold no dot."""
    key = line.identity.charge_key
    return next(each for each in grant_ids if key in (f"credit.{each}", f"credit.{each}.{line.tax_group}"))
