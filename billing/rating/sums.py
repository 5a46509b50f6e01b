"""Rating from sums of usage, as the windows hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from billing.money import total
from billing.periods import BillingPeriod
from billing.plans.price_plans import PlanVersion, PriceAt, Terms
from billing.plans.subscriptions import Piece, in_force_since, priced_at_start
from billing.rating.lines import LineKind, RatedLine
from billing.rating.period import accrued_lines, rate_lines
from billing.rating.usage import UnpricedUsage, Usage, distribute, is_billable, usage_of_sums
from streams.rules.rating_bands import parse_band
from streams.rules.windows import UsageQuantity


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
    usage_of_pieces: Iterable[tuple[Piece, Iterable[UsageQuantity]]],
    period: BillingPeriod,
    *,
    versions: Mapping[str, Sequence[PlanVersion]] | None = None,
    is_over: bool = True,
    until: datetime | None = None,
) -> Rating:
    """Rate one tenant's period: each piece with the usage completed in it (before `until`, if it goes on then).

    `is_over`: whether the period is.

    `versions` of each plan are needed where a contract prices by the start. Neither the order of the usage nor how it
    is split into quantities changes the result. Raises NegativeUsage, AmountTooLarge.
    """
    used, terms = as_used(usage_of_pieces, period, versions=versions)
    return rate_used(used, period, terms, is_over=is_over, until=until)


def as_used(
    usage_of_pieces: Iterable[tuple[Piece, Iterable[UsageQuantity]]],
    period: BillingPeriod,
    *,
    versions: Mapping[str, Sequence[PlanVersion]] | None = None,
) -> tuple[list[tuple[Piece, list[Usage]]], Terms]:
    """Sums as billable usage by piece, each piece once, and the terms that hold last."""
    by_piece: dict[tuple[int, str], tuple[Piece, list[Usage]]] = {}
    terms = Terms()
    for held, sums in usage_of_pieces:
        terms = held.subscription.terms
        by_piece.setdefault((held.segment_no, held.version.version), (held, []))
        for each in sums:
            if is_billable(each, terms.bill_statuses):
                piece, usage = _marked(held, each, (versions or {}).get(held.subscription.plan, ()), period)
                by_piece.setdefault((piece.segment_no, piece.version.version), (piece, []))[1].append(usage)
    return list(by_piece.values()), terms


def rate_used(
    used: Iterable[tuple[Piece, Iterable[Usage]]],
    period: BillingPeriod,
    terms: Terms,
    *,
    is_over: bool = True,
    until: datetime | None = None,
) -> Rating:
    """Rate billable usage by piece, each piece once, in any order.

    `until`: what a period that goes on has come to by a moment, by the usage of before it.
    """
    priced, unpriced = [], []
    for piece, usages in sorted(used, key=lambda each: (each[0].segment_no, each[0].version.valid_from)):
        found, missing = distribute(piece, usages)
        priced.append(found)
        unpriced += missing
    if until is not None and until < period.end:
        return Rating(accrued_lines(period, priced, terms, until), tuple(sorted(unpriced)))
    lines = rate_lines(period, priced, terms)
    if not is_over:
        lines = tuple(line for line in lines if line.identity.kind in WHILE_IT_RUNS)
    return Rating(lines, tuple(sorted(unpriced)))


def _marked(
    held: Piece, sums: UsageQuantity, versions: Sequence[PlanVersion], period: BillingPeriod
) -> tuple[Piece, Usage]:
    """The piece that prices sums which completed in `held`, and the sums as usage, by what their band says."""
    band = parse_band(sums.rating_band)
    usage = replace(usage_of_sums(sums, held.start), context=band.context)
    if held.subscription.terms.price_at is PriceAt.COMPLETION or len(versions) < 2:
        return held, usage
    started_at = in_force_since(band.price_version) if band.price_version else versions[0].valid_from
    return priced_at_start(held, started_at, versions, period), usage
