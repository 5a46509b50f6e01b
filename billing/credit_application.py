"""What grants give for a document: price reductions are lines, payments pay its total (docs/spec/money.md 3, 6, 13.12).

Values in, values out. Which grant gives for which usage: credits.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

from billing import credits
from billing.credit_notes import net_by_group
from billing.credits import Grant
from billing.documents import Document, PaidByCredit, Payer
from billing.money import ZERO, exactly, to_minor
from billing.rating.lines import LineKind, RatedLine
from billing.rating.period import Coverable, period_line
from billing.subscriptions import Piece


@dataclass(frozen=True, slots=True)
class PriceReductions:
    """Lines that reduce prices, what they draw of each grant (major units), and what they leave to cover."""

    lines: tuple[RatedLine, ...]
    drawn: Mapping[str, Decimal]
    open: tuple[Coverable, ...]


def price_reductions(
    coverable: Sequence[Coverable], grants: Iterable[Grant], left: Mapping[str, Decimal], cut: Sequence[Piece]
) -> PriceReductions:
    """What grants that lower the price take off: a negative line per grant and tax group.

    `left` is what is left of each grant in major units; `cut` the pieces of the period that the lines belong to.
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
        key = f"credit.{grant_id}" + (f".{group}" if groups[grant_id] > 1 else "")
        lines.append(period_line(cut, key, LineKind.CREDIT, -amount, group))
        with exactly():
            drawn[grant_id] += amount
    return PriceReductions(tuple(lines), dict(drawn), tuple(credits.after(coverable, draws)))


def grant_of(line: RatedLine, grant_ids: Iterable[str]) -> str:
    """Whose price reduction a line is. The ids that are known to be among the lines hold no dot."""
    key = line.identity.charge_key
    return next(each for each in grant_ids if key in (f"credit.{each}", f"credit.{each}.{line.tax_group}"))


def payments(
    document: Document, coverable: Iterable[Coverable], grants: Iterable[Grant], left: Mapping[str, int], payer: Payer
) -> tuple[PaidByCredit, ...]:
    """What grants pay of a document with its tax: their part of each group's gross, by time of usage.

    `left` is what is left of each grant in minor units.
    """
    paying = [grant for grant in grants if not credits.reduces_price(grant)]
    if not paying or document.total_minor <= 0:
        return ()
    exact: dict[str, Decimal] = net_by_group([line.rated for line in document.lines])
    gross = {row.group: row.base_minor + row.tax_minor for row in document.taxes}
    with_tax = [
        replace(of, amount=of.amount * gross[of.tax_group] / Fraction(exact[of.tax_group]))
        for of in coverable
        if exact.get(of.tax_group, ZERO) > 0
    ]
    step = to_minor(payer.money.quantum, payer.money)
    draws = credits.draw(with_tax, paying, {grant.grant_id: Fraction(left.get(grant.grant_id, 0)) for grant in paying})
    sums: dict[str, Fraction] = defaultdict(Fraction)
    for each in draws:
        sums[each.grant.grant_id] += each.amount
    found, drawn, before = [], Fraction(0), 0
    for grant in sorted(paying, key=credits.draw_order):
        drawn += sums[grant.grant_id]
        rounded = min(round(drawn / step) * step, document.total_minor)
        if rounded > before:
            found.append(PaidByCredit(grant.grant_id, rounded - before))
        before = max(before, rounded)
    return tuple(found)


def whole_minor(amount: Decimal, payer: Payer) -> int:
    """The whole quanta in an amount, in minor units."""
    quanta = Fraction(amount) // Fraction(payer.money.quantum)
    return int(quanta * Fraction(payer.money.quantum) / Fraction(payer.money.minor_unit))
