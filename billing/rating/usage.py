"""Which usage bills, and which charge takes it (docs/spec/money.md 2). Values in, values out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from billing.errors import NegativeUsage
from billing.money import ZERO, exactly, plain
from billing.plans.charge_models import Percentage
from billing.plans.price_plans import Charge, Metric, PlanVersion, most_specific
from billing.plans.subscriptions import Piece
from streams.rules.windows import UsageQuantity

GPU_MICROSECOND: Final = Decimal("0.000001")
FREE_FAULT: Final = "platform"
NEVER_BILLED_SOURCE: Final = "estimate"
NEVER_BILLED_STATUS: Final = "lost"

Part = tuple[datetime, Decimal, str]
"""What was counted at a time of usage, of a model: units of a metric, or the base of one event for a percentage."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Billable usage of one time and one set of keys: what one event, or many of a whole hour, counted by metric.

    `context` is the request's input tokens, None for sums of many.
    """

    at: datetime
    quantities: Mapping[str, Decimal]
    model: str = ""
    adapter: str = ""
    region: str = ""
    tier: str = ""
    context: int | None = None


@dataclass(frozen=True, slots=True)
class PieceUsage:
    """What each charge of a piece counted, in parts by time of usage."""

    piece: Piece
    parts: Mapping[str, tuple[Part, ...]]


@dataclass(frozen=True, slots=True, order=True)
class UnpricedUsage:
    """Billable usage that no charge of the version in force takes."""

    tenant_id: str
    model: str
    metric: str
    quantity: str
    plan: str
    version: str

    def __str__(self) -> str:
        return (
            f"tenant {self.tenant_id}: {self.quantity} {self.metric} of model {self.model} have no price"
            f" in plan {self.plan} version {self.version}"
        )


def is_billable(usage: UsageQuantity, bill_statuses: Collection[str]) -> bool:
    """Whether usage bills at all: by status, never the platform's own faults or estimates."""
    return not usage.tenant_id.startswith("_") and bills(usage.status, usage.fault, usage.usage_source, bill_statuses)


def bills(status: str, fault: str, source: str, bill_statuses: Collection[str]) -> bool:
    """Whether usage of this status, fault and source bills."""
    return (
        status in bill_statuses
        and status != NEVER_BILLED_STATUS
        and fault != FREE_FAULT
        and source != NEVER_BILLED_SOURCE
    )


def quantities(usage: UsageQuantity) -> dict[Metric, Decimal]:
    """Usage by metric: tokens, requests, and seconds of GPU time. Raises NegativeUsage."""
    counted = by_metric(
        usage.input_tokens, usage.cache_hit_tokens, usage.output_tokens, usage.gpu_us * GPU_MICROSECOND, usage.requests
    )
    for metric, quantity in counted.items():
        if quantity < 0:
            raise NegativeUsage(
                f"tenant {usage.tenant_id}, model {usage.model}: {plain(quantity)} {metric}: rebuild the windows"
            )
    return counted


def by_metric(
    input_tokens: int, cached_tokens: int, output_tokens: int, gpu_seconds: Decimal, requests: int
) -> dict[Metric, Decimal]:
    """Counts by metric: uncached input = input − cached; the total counts cached tokens once."""
    return {
        Metric.INPUT: Decimal(input_tokens - cached_tokens),
        Metric.CACHED_INPUT: Decimal(cached_tokens),
        Metric.OUTPUT: Decimal(output_tokens),
        Metric.TOTAL_TOKENS: Decimal(input_tokens + output_tokens),
        Metric.REQUEST: Decimal(requests),
        Metric.GPU_SECOND: gpu_seconds,
    }


def usage_of_sums(sums: UsageQuantity, at: datetime) -> Usage:
    """Sums of a window as usage of one time."""
    counted: dict[str, Decimal] = {str(metric): quantity for metric, quantity in quantities(sums).items()}
    return Usage(at, counted, sums.model, sums.adapter, sums.region, sums.tier)


def distribute(piece: Piece, used: Iterable[Usage]) -> tuple[PieceUsage, list[UnpricedUsage]]:
    """Usage by the charge that takes it, and what no charge takes.

    A metric that the version prices nowhere is free by the contract; one that it prices for other usage only, or
    usage of which it prices nothing at all, is an omission.
    """
    parts: dict[str, list[Part]] = defaultdict(list)
    missing: dict[tuple[str, str], Decimal] = defaultdict(lambda: ZERO)
    known: dict[tuple[object, ...], tuple[Charge, ...]] = {}
    priced = piece.version.metrics
    charges = _Charges(piece.version)
    for usage in used:
        keys = (usage.model, usage.adapter, usage.region, usage.tier, usage.context)
        taken = False
        for metric, quantity in usage.quantities.items():
            key = (metric, *keys)
            if key not in known:
                known[key] = charges.taking(metric, usage) if metric in priced else ()
            for charge in known[key]:
                taken = True
                if quantity or isinstance(charge.pricing, Percentage):
                    parts[charge.key].append((usage.at, quantity, usage.model))
            if not known[key] and quantity and metric in priced:
                with exactly():
                    missing[usage.model, metric] += quantity
        if not taken and not _some_charge_takes(piece.version, usage):
            for metric, quantity in usage.quantities.items():
                if quantity and metric != Metric.TOTAL_TOKENS and metric not in priced:
                    with exactly():
                        missing[usage.model, metric] += quantity
    tenant, version = piece.subscription.tenant_id, piece.version
    unpriced = [
        UnpricedUsage(tenant, model, str(metric), plain(quantity), version.plan, version.version)
        for (model, metric), quantity in missing.items()
    ]
    return PieceUsage(piece, {key: tuple(found) for key, found in parts.items()}), unpriced


class _Charges:
    """A version's charges for usage, found by metric and model: those for any model stand under None."""

    def __init__(self, version: PlanVersion) -> None:
        self._found: dict[tuple[str, str | None], list[Charge]] = defaultdict(list)
        for charge in version.charges:
            if not charge.is_fee:
                self._found[charge.metric, charge.where.model].append(charge)

    def taking(self, metric: str, usage: Usage) -> tuple[Charge, ...]:
        """The charges of a metric that take some usage (`most_specific`)."""
        fitting = [*self._found.get((metric, usage.model), ()), *self._found.get((metric, None), ())]
        return most_specific(fitting, usage.model, usage.adapter, usage.region, usage.tier, usage.context)


def _some_charge_takes(version: PlanVersion, usage: Usage) -> bool:
    return any(
        not charge.is_fee and charge.where.take(usage.model, usage.adapter, usage.region, usage.tier, usage.context)
        for charge in version.charges
    )
