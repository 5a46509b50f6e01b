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
from billing.bills.credits import Grant
from billing.money import ZERO, exactly
from billing.plans.subscriptions import Piece
from billing.rating.lines import LineKind, RatedLine
from billing.rating.made_lines import period_line
from billing.rating.period import Coverable


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
