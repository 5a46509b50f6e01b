"""Which of the usage bills, event by event (money.md 2, 13.11, 13.18)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from reconciliation.oracle.case import Contract, Correction, Event, Usage
from reconciliation.oracle.rational import ZERO

_NEVER_BILLED_STATUS = "lost"
_STRENGTH = {"estimate": 0, "settled": 1, "gateway": 2, "stream": 3, "engine": 4, "measured": 4}
"""Of a source (`metering.md` 1.5); cases say `measured` of what the engine told."""
_BETTER_LAST = {"aborted": 1, "ok": 2}


@dataclass(frozen=True, slots=True)
class Billable:
    """One event that bills, with its corrections in it."""

    event: Event
    metrics: dict[str, Fraction]


def billable(usage: Usage, contract: Contract) -> list[Billable]:
    """The events that bill, by completion; repeated ones once."""
    events = [event for event in _once(usage.events) if event.purpose == "tenant"]
    chosen: dict[str, list[Event]] = {"all": [], "delivered": []}
    for event in events:
        chosen[contract.terms_at(event.completed).bill_attempts].append(event)
    events = chosen["all"] + _delivered(chosen["delivered"], contract)
    corrections = _corrections(usage)
    bills = [event for event in events if _bills(event, contract)]
    bills.sort(key=lambda event: (event.completed, event.order))
    return [Billable(event, _corrected(event, corrections.get(event.id, ()))) for event in bills]


def _once(events: Sequence[Event]) -> Iterable[Event]:
    """One event per identity: a stronger source supersedes a weaker, whichever came first (`metering.md` 1.5)."""
    chosen: dict[object, Event] = {}
    for event in events:
        identity = event.id or event.order
        held = chosen.get(identity)
        if held is None or _strength(event) > _strength(held):
            chosen[identity] = event
    return chosen.values()


def _strength(told: Event | Correction) -> int:
    return _STRENGTH[told.source]


def _delivered(events: Sequence[Event], contract: Contract) -> list[Event]:
    """Per request the attempt that ended ok, else the last aborted, of those with a billable status (2, 13.11)."""
    chosen: dict[str, Event] = {}
    alone = []
    for event in events:
        if not event.request_id:
            alone.append(event)
        elif event.status in contract.terms_at(event.completed).bill_statuses:
            held = chosen.get(event.request_id)
            if held is None or _preference(event) > _preference(held):
                chosen[event.request_id] = event
    return alone + list(chosen.values())


def _preference(event: Event) -> tuple[int, int]:
    return _BETTER_LAST.get(event.status, 0), event.attempt


def _bills(event: Event, contract: Contract) -> bool:
    """Billable status, no platform fault, neither estimate nor lost (2); asked after the attempt is chosen (13.11)."""
    return (
        event.status in contract.terms_at(event.completed).bill_statuses
        and event.status != _NEVER_BILLED_STATUS
        and event.source != "estimate"
        and event.fault != "platform"
    )


def _corrections(usage: Usage) -> dict[str, list[Correction]]:
    """By what they correct: one per id, as the strongest source tells it; those without an id are all others'."""
    chosen: dict[object, Correction] = {}
    for order, correction in enumerate(usage.corrections):
        held = chosen.setdefault(correction.id or order, correction)
        if _strength(correction) > _strength(held):
            chosen[correction.id] = correction
    result: dict[str, list[Correction]] = defaultdict(list)
    for correction in chosen.values():
        result[correction.corrects].append(correction)
    return result


def _corrected(event: Event, corrections: Iterable[Correction]) -> dict[str, Fraction]:
    """The event's metrics with its corrections but those of weaker sources; a correction is no request (2, 1.5)."""
    result = dict(event.metrics)
    for correction in corrections:
        if _strength(correction) < _strength(event):
            continue
        for metric, quantity in correction.metrics.items():
            result[metric] = result.get(metric, ZERO) + quantity
    return result
