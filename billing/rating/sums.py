"""Rating from sums of usage, as the windows hold them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from billing.charge_models import Percentage, Timing
from billing.money import total
from billing.periods import BillingPeriod
from billing.price_plans import Anchor, Cycle, PriceAt, PricePlan, Terms
from billing.rating.lines import LineKind, RatedLine
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


WHILE_IT_RUNS: Final = (LineKind.USAGE, LineKind.OVERAGE, LineKind.TIER_FEE)
"""What can be posted before a period is over. Fees, discounts, minimum, maximum and true-up are known at its end."""


def rate(
    usage_of_pieces: Iterable[tuple[Piece, Iterable[UsageQuantity]]], period: BillingPeriod, *, is_over: bool = True
) -> Rating:
    """Rate one tenant's period: each piece with the usage completed in it. `is_over`: whether the period is.

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
    lines = rate_period(period, used, terms).lines
    if not is_over:
        lines = tuple(line for line in lines if line.identity.kind in WHILE_IT_RUNS)
    return Rating(lines, tuple(sorted(unpriced)))


def not_billed_yet(plan: PricePlan) -> list[str]:
    """What a plan asks for that the core can rate but that is not billed from the windows yet; empty if all is."""
    terms = plan.terms
    found = [
        name
        for name, asked in (
            ("price_at: start", terms.price_at is PriceAt.START),
            (f"periods of a {terms.period}", terms.period is not Cycle.MONTH),
            ("anchor: anniversary", terms.anchor is Anchor.ANNIVERSARY),
            ("late_usage_days", terms.late_usage_days is not None),
            ("metrics of its own", bool(plan.metrics)),
        )
        if asked
    ]
    for version in plan.versions:
        for charge in version.charges:
            where, pricing = charge.where, charge.pricing
            for name, asked in (
                ("percentage", isinstance(pricing, Percentage)),
                ("timing: advance", charge.timing is Timing.ADVANCE),
                ("steps of context length", where.context_over is not None or where.context_up_to is not None),
            ):
                if asked:
                    found.append(f"version {version.version}, charge {charge.key}: {name}")
    return found
