"""Single usage events, and which of them bill (docs/spec/money.md 2, 13.11, 13.18). Values in, values out.

Whole hours are rated from sums (`usage/attempts.py` takes away what was not delivered); this is for what needs each
event by itself: percentages, steps of context length, hours that a price change cuts, a preview by hand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

from billing.money import ZERO, exactly
from billing.periods import BillingPeriod
from billing.plans.price_plans import BillAttempts, PlanVersion, PriceAt, Terms
from billing.plans.subscriptions import Piece, Subscription, pieces, priced_at_start
from billing.rating.usage import NEVER_BILLED_STATUS, PieceUsage, UnpricedUsage, Usage, bills, distribute
from serving_adapter.events import SOURCE_STRENGTH

BILLED_PURPOSE = "tenant"


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """One attempt of a request, or one counted quantity; `corrects` names the event whose counts it changes.

    `request_id` is '' for what is no attempt of a request. `unreadable`: by metric why what it says of it is no number;
    a correction that says it takes its place.
    """

    event_id: str
    completed_at: datetime
    quantities: Mapping[str, Decimal]
    started_at: datetime | None = None
    request_id: str = ""
    attempt: int = 1
    status: str = "ok"
    fault: str = "none"
    source: str = "engine"
    purpose: str = BILLED_PURPOSE
    model: str = ""
    adapter: str = ""
    region: str = ""
    tier: str = ""
    context: int | None = None
    corrects: str | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)


def billable(events: Iterable[UsageEvent], terms: Terms) -> list[UsageEvent]:
    """The events that bill, each with its corrections added in.

    First one attempt of each request is chosen among those with a billable status, then faults are applied: where it
    was the platform's the request is free. A correction without its original is left out: it waits in quarantine.
    """
    found = corrected(event for event in events if event.purpose == BILLED_PURPOSE)
    if terms.bill_attempts is BillAttempts.DELIVERED:
        found = _delivered(found, terms)
    return [event for event in found if bills(event.status, event.fault, event.source, terms.bill_statuses)]


def corrected(events: Iterable[UsageEvent]) -> list[UsageEvent]:
    """One event per id, of the strongest source, with each correction added in once, in whatever order they come.

    A correction without its original is left out, and so is one of a weaker source (docs/decisions/0017).
    """
    by_id: dict[str, UsageEvent] = {}
    corrections: dict[str, UsageEvent] = {}
    for event in events:
        known = by_id if event.corrects is None else corrections
        held = known.get(event.event_id)
        if held is None or SOURCE_STRENGTH[event.source] > SOURCE_STRENGTH[held.source]:
            known[event.event_id] = event
    for correction in corrections.values():
        assert correction.corrects is not None, "only corrections are here"
        original = by_id.get(correction.corrects)
        if original is None or SOURCE_STRENGTH[correction.source] < SOURCE_STRENGTH[original.source]:
            continue
        with exactly():
            counts = {
                metric: original.quantities.get(metric, ZERO) + correction.quantities.get(metric, ZERO)
                for metric in {**original.quantities, **correction.quantities}
            }
        unreadable = {name: why for name, why in original.unreadable.items() if name not in correction.quantities}
        by_id[original.event_id] = replace(
            original, quantities=counts, unreadable={**unreadable, **correction.unreadable}
        )
    return list(by_id.values())


def _delivered(events: Sequence[UsageEvent], terms: Terms) -> list[UsageEvent]:
    """Of each request the attempt that ended ok, else the last aborted, else the last with a billable status."""
    per_request: dict[str, list[UsageEvent]] = defaultdict(list)
    found = []
    for event in events:
        if not event.request_id:
            found.append(event)
        elif event.status in terms.bill_statuses and event.status != NEVER_BILLED_STATUS:
            per_request[event.request_id].append(event)
    found += [max(attempts, key=_rank) for attempts in per_request.values()]
    return found


def _rank(event: UsageEvent) -> tuple[bool, bool, int]:
    return event.status == "ok", event.status == "aborted", event.attempt


def usage_by_piece(
    events: Iterable[UsageEvent],
    subscriptions: Iterable[Subscription],
    versions: Mapping[str, Sequence[PlanVersion]],
    period: BillingPeriod,
    terms: Terms,
) -> tuple[list[PieceUsage], list[UnpricedUsage]]:
    """One tenant's billable events of a period by piece; every piece is there, also without usage.

    An event belongs to the segment that contains its completion, and to the version of that segment's plan that was in
    force then, or at its start where the contract prices so. What completed outside every segment is in none.
    """
    cut = pieces(subscriptions, versions, period)
    by_piece: dict[tuple[int, str], tuple[Piece, list[Usage]]] = {
        (piece.segment_no, piece.version.version): (piece, []) for piece in cut
    }
    for event in events:
        if not period.start <= event.completed_at < period.end:
            continue
        held = next((p for p in cut if p.start <= event.completed_at < p.end), None)
        if held is None:
            continue
        piece = held
        if terms.price_at is PriceAt.START:
            dated = versions[held.subscription.plan]
            piece = priced_at_start(held, event.started_at or event.completed_at, dated, period)
        key = (piece.segment_no, piece.version.version)
        by_piece.setdefault(key, (piece, []))[1].append(
            Usage(
                event.completed_at, event.quantities, event.model, event.adapter, event.region, event.tier,
                event.context,
            )
        )  # fmt: skip
    found, unpriced = [], []
    ordered = sorted(by_piece.values(), key=lambda each: (each[0].segment_no, each[0].version.valid_from))
    for piece, used in ordered:
        priced, missing = distribute(piece, used)
        found.append(priced)
        unpriced += missing
    return found, unpriced
