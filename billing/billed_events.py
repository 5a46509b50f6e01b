"""Which raw events an invoice bills, and which of its lines each counts towards. Values in, values out.

The rating sums before it prices; this goes the other way, from the lines back to single requests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from billing.price_plans import BillAttempts, Charge
from billing.rating.usage import GPU_MICROSECOND, bills, by_metric
from billing.subscriptions import Piece
from billing.usage_digest import BilledEvent
from billing.usage_events import BILLED_PURPOSE
from streams.usage.event_reader import StoredEvent

Attempt = tuple[str, int]
"""A request and one of its attempts."""


@dataclass(frozen=True, slots=True)
class Billed:
    """An event that bills, in the piece of the period that prices it. `context`: the request's input tokens."""

    event: BilledEvent
    piece: Piece
    context: int


def billed_events(
    events: Iterable[StoredEvent], tenant_id: str, cut: Sequence[Piece], not_delivered: Collection[Attempt]
) -> Iterator[Billed]:
    """Those of a tenant's events that bill in the pieces given, in the same order.

    `not_delivered` are the attempts in whose stead another one of their request bills.
    """
    context_of: tuple[Attempt, int] | None = None
    for event in events:
        attempt = event.request_id, event.attempt
        if event.kind == "usage":
            context_of = attempt, event.input_tokens
        piece = next((piece for piece in cut if piece.start <= event.completed_at < piece.end), None)
        if piece is None or not event.counts or event.purpose != BILLED_PURPOSE or tenant_id.startswith("_"):
            continue
        terms = piece.subscription.terms
        if not bills(event.status, event.fault, event.usage_source, terms.bill_statuses):
            continue
        if terms.bill_attempts is BillAttempts.DELIVERED and attempt in not_delivered:
            continue
        known = context_of is not None and context_of[0] == attempt
        yield Billed(_billed(event, tenant_id), piece, context_of[1] if known and context_of else event.input_tokens)


def charges_of(billed: Billed) -> Iterator[tuple[Charge, Decimal]]:
    """The charges that take an event, each with what it counts there, in units of its metric."""
    event = billed.event
    counted = by_metric(
        event.input_tokens, event.cache_hit_tokens, event.output_tokens, event.gpu_us * GPU_MICROSECOND,
        int(event.kind == "usage"),
    )  # fmt: skip
    for metric, quantity in counted.items():
        if quantity:
            for charge in billed.piece.version.charges_for(
                metric,
                model=event.model,
                adapter=event.adapter,
                region=event.region,
                tier=event.tier,
                context=billed.context,
            ):
                yield charge, quantity


def _billed(event: StoredEvent, tenant_id: str) -> BilledEvent:
    return BilledEvent(
        completed_at=event.completed_at,
        tenant_id=tenant_id,
        request_id=event.request_id,
        attempt=event.attempt,
        kind=event.kind,
        correction_no=event.correction_no,
        model=event.model,
        adapter=event.adapter,
        region=event.region,
        tier=event.tier,
        status=event.status,
        fault=event.fault,
        usage_source=event.usage_source,
        input_tokens=event.input_tokens,
        cache_hit_tokens=event.cache_hit_tokens,
        output_tokens=event.output_tokens,
        gpu_us=event.gpu_us,
    )
