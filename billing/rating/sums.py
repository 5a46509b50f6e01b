"""Rating from sums of usage, as the windows hold them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from billing.money import total
from billing.periods import BillingPeriod
from billing.price_plans import Terms
from billing.rating.lines import RatedLine
from billing.rating.period import rate_period
from billing.rating.usage import UnpricedUsage, distribute, is_billable, usage_of_sums
from billing.subscriptions import Piece
from streams.windows import UsageQuantity


@dataclass(frozen=True, slots=True)
class Rating:
    """A tenant's period, rated. Lines hold only if nothing is unpriced."""

    lines: tuple[RatedLine, ...]
    unpriced: tuple[UnpricedUsage, ...]

    @property
    def amount(self) -> Decimal:
        """The exact sum of the lines."""
        return total(line.amount for line in self.lines)


def rate(usage_of_pieces: Iterable[tuple[Piece, Iterable[UsageQuantity]]], period: BillingPeriod) -> Rating:
    """Rate one tenant's period: each piece with the usage completed in it.

    Neither the order of the usage nor how it is split into quantities changes the result. Raises NegativeUsage,
    AmountTooLarge.
    """
    used, unpriced, terms = [], [], Terms()
    for piece, sums in usage_of_pieces:
        terms = piece.subscription.terms
        billable = [usage_of_sums(each, piece.start) for each in sums if is_billable(each, terms.bill_statuses)]
        priced, missing = distribute(piece, billable)
        used.append(priced)
        unpriced += missing
    return Rating(rate_period(period, used, terms).lines, tuple(sorted(unpriced)))
