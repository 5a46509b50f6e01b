"""Usage of plans that price each event by itself: percentages, metrics that the events themselves carry, and charges
that count over a part of the billing period, in which each event has its place.

A metric that a plan declares is what the events' label of its name says, a decimal number; an event without the label
is none of that metric's, also for what is due per event. A correction's label is what it adds; to a label that is no
number, all of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal

from billing.errors import NegativeUsage, NotAnAmount, UsageUnavailable
from billing.money import LINE_DECIMALS, parse_decimal, plain
from billing.periods import BillingPeriod
from billing.plans.charge_models import Percentage
from billing.plans.price_plans import BillAttempts, PlanVersion, PriceAt, PricePlan, counts_by_part
from billing.plans.subscriptions import Piece, priced_at_start
from billing.rating.usage import GPU_MICROSECOND, Usage, bills, by_metric
from billing.rating.usage_events import UsageEvent, corrected
from serving_adapter.identity import Identity, event_id_of
from streams.usage.request_events import RequestEvent


def needs_events(plan: PricePlan) -> bool:
    """Whether a plan cannot be rated from sums."""
    charges = (charge for version in plan.versions for charge in version.charges)
    return bool(plan.declared_metrics) or any(
        isinstance(charge.pricing, Percentage) or counts_by_part(charge, plan.terms) for charge in charges
    )


def as_usage_events(stored: Iterable[RequestEvent], metrics: Collection[str]) -> Iterator[UsageEvent]:
    """Stored events as rating takes them, with the declared metrics."""
    for event in stored:
        started_at, labels = event.said()
        counts: Mapping[str, Decimal] = {
            str(metric): quantity
            for metric, quantity in by_metric(
                event.input_tokens,
                event.cache_hit_tokens,
                event.output_tokens,
                event.gpu_us * GPU_MICROSECOND,
                1 if event.kind == "usage" else 0,
            ).items()
        }
        said = {metric: labels[metric] for metric in metrics if metric in labels}
        counted = {metric: amount for metric, label in said.items() if (amount := amount_of(label)) is not None}
        of = Identity(event.tenant_id, event.request_id, event.attempt, "usage", 0)
        yield UsageEvent(
            event_id=str(event_id_of(of)) + (f"/{event.correction_no}" if event.correction_no else ""),
            completed_at=event.completed_at,
            quantities={**counts, **counted},
            started_at=started_at,
            request_id=event.request_id,
            attempt=event.attempt,
            status=event.status,
            fault=event.fault,
            source=event.usage_source,
            model=event.model,
            adapter=event.adapter,
            region=event.region,
            tier=event.tier,
            context=event.input_tokens,
            corrects=str(event_id_of(of)) if event.kind == "correction" else None,
            unreadable={metric: label for metric, label in said.items() if metric not in counted},
        )


def usage_of_events(
    events: Iterable[UsageEvent],
    cut: Sequence[Piece],
    left_out: Collection[tuple[str, int]],
    versions: Mapping[str, Sequence[PlanVersion]],
    period: BillingPeriod,
) -> list[tuple[Piece, list[Usage]]]:
    """Billable usage by piece, every piece once. `left_out`: (request, attempt) that were not delivered.

    Raises UsageUnavailable for a label that is no number, which no correction says otherwise; NegativeUsage.
    """
    by_piece: dict[tuple[int, str], tuple[Piece, list[Usage]]] = {
        (piece.segment_no, piece.version.version): (piece, []) for piece in cut
    }
    for event in corrected(events):
        held = next((piece for piece in cut if piece.start <= event.completed_at < piece.end), None)
        if held is None:
            continue
        terms = held.subscription.terms
        if terms.bill_attempts is BillAttempts.DELIVERED and (event.request_id, event.attempt) in left_out:
            continue
        if not bills(event.status, event.fault, event.source, terms.bill_statuses):
            continue
        for metric, label in event.unreadable.items():
            raise UsageUnavailable(
                f"tenant {held.subscription.tenant_id}, request {event.request_id}: label {metric}, which its plan"
                f" bills: {label!r} is no decimal number; an event of kind `correction` that corrects {event.event_id}"
                " says by that label what it counts"
            )
        for metric, quantity in event.quantities.items():
            if quantity < 0:
                raise NegativeUsage(f"request {event.request_id}: {plain(quantity)} {metric}")
        piece = held
        if terms.price_at is PriceAt.START:
            dated = versions[held.subscription.plan]
            piece = priced_at_start(held, event.started_at or event.completed_at, dated, period)
        usage = Usage(
            event.completed_at, event.quantities, event.model, event.adapter, event.region, event.tier, event.context
        )
        by_piece.setdefault((piece.segment_no, piece.version.version), (piece, []))[1].append(usage)
    return list(by_piece.values())


def amount_of(label: str) -> Decimal | None:
    """The number that a label says; None if it is none."""
    try:
        return parse_decimal(label, decimals=LINE_DECIMALS)
    except NotAnAmount:
        return None
