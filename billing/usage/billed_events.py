"""Which raw events an invoice bills, and which of its lines each counts towards. Values in, values out.

The rating sums before it prices; this goes the other way, from the lines back to single requests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from billing.plans.charge_models import Percentage
from billing.plans.price_plans import BillAttempts, Charge
from billing.plans.subscriptions import Piece
from billing.rating.usage import GPU_MICROSECOND, bills, by_metric
from billing.rating.usage_events import BILLED_PURPOSE
from billing.usage.event_usage import amount_of
from billing.usage.usage_digest import BilledEvent
from serving_adapter.events import decode
from streams.rules.rating_bands import started_at
from streams.usage.event_reader import StoredEvent

Attempt = tuple[str, int]
"""A request and one of its attempts."""


@dataclass(frozen=True, slots=True)
class Billed:
    """An event that bills, in the piece of the period that it completed in. `context`: the request's input tokens.

    `raw` is its message as it was sent, `request_raw` that of the attempt which it may correct.
    """

    event: BilledEvent
    piece: Piece
    context: int
    raw: bytes = b""
    request_raw: bytes = b""

    @property
    def started_at(self) -> datetime:
        """When the request started."""
        return started_at(decode(self.request_raw), self.event.completed_at)

    def counts(self, metrics: Collection[str]) -> dict[str, Decimal]:
        """What it counts of the metrics that a plan declares: its labels of their names, those that are numbers."""
        labels = (decode(self.raw).labels or {}) if metrics else {}
        said = {name: amount_of(labels[name]) for name in metrics if name in labels}
        return {name: amount for name, amount in said.items() if amount is not None}


def billed_events(
    events: Iterable[StoredEvent], tenant_id: str, cut: Sequence[Piece], not_delivered: Collection[Attempt]
) -> Iterator[Billed]:
    """Those of a tenant's events that bill in the pieces given, in the same order.

    `not_delivered` are the attempts in whose stead another one of their request bills.
    """
    usage_of: tuple[Attempt, int, bytes] | None = None
    for event in events:
        attempt = event.request_id, event.attempt
        if event.kind == "usage":
            usage_of = attempt, event.input_tokens, event.raw
        piece = next((piece for piece in cut if piece.start <= event.completed_at < piece.end), None)
        if piece is None or not event.counts or event.purpose != BILLED_PURPOSE or tenant_id.startswith("_"):
            continue
        terms = piece.subscription.terms
        if not bills(event.status, event.fault, event.usage_source, terms.bill_statuses):
            continue
        if terms.bill_attempts is BillAttempts.DELIVERED and attempt in not_delivered:
            continue
        _, context, request_raw = (
            usage_of if usage_of and usage_of[0] == attempt else (None, event.input_tokens, event.raw)
        )
        yield Billed(_billed(event, tenant_id), piece, context, event.raw, request_raw)


def changed(now: Iterator[Billed], before: Iterator[Billed]) -> Iterator[tuple[Billed, int]]:
    """Of a tenant's events that bill now those that did not before (1), and those that did and do not now (−1).

    Both in the order of `events_of`.
    """
    new, old = next(now, None), next(before, None)
    while new is not None or old is not None:
        if new is not None and old is not None and new.event == old.event:
            new, old = next(now, None), next(before, None)
        elif old is None or (new is not None and _order(new) < _order(old)):
            assert new is not None, "one of the two is left"
            yield new, 1
            new = next(now, None)
        else:
            yield old, -1
            old = next(before, None)


def _order(of: Billed) -> tuple[object, ...]:
    event = of.event
    return event.completed_at, event.request_id, event.attempt, event.kind != "usage", event.correction_no


def charges_of(billed: Billed, piece: Piece, metrics: Collection[str] = ()) -> Iterator[tuple[Charge, Decimal]]:
    """The charges of the piece that prices an event which take it, each with what it counts there, in units.

    A percentage counts events, also such as have nothing to take it of, and a correction is none. `metrics` are those
    that the plan declares.
    """
    event = billed.event
    counted: dict[str, Decimal] = {
        str(metric): quantity
        for metric, quantity in by_metric(
            event.input_tokens,
            event.cache_hit_tokens,
            event.output_tokens,
            event.gpu_us * GPU_MICROSECOND,
            int(event.kind == "usage"),
        ).items()
    } | billed.counts(metrics)
    for metric, quantity in counted.items():
        for charge in piece.version.charges_for(
            metric,
            model=event.model,
            adapter=event.adapter,
            region=event.region,
            tier=event.tier,
            context=billed.context,
        ):
            if isinstance(charge.pricing, Percentage):
                if event.kind == "usage":
                    yield charge, Decimal(1)
            elif quantity:
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
