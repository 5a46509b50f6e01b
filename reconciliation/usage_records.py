"""What a month's usage is made of, compared: the log, the messages in it, events, windows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

import psycopg

from billing.periods import BillingPeriod, rfc3339
from reconciliation import agreement
from reconciliation.agreement import Check, compare
from reconciliation.comparison import Difference, Value
from streams.ingest import passed_positions, sources
from streams.ingest.logs import Log
from streams.rules.windows import UsageQuantity
from streams.usage import usage_store

NAMED: Final = 20
"""So many events, tenants and windows of each are named where sums differ: others, once these are mended."""
ReadLog = Callable[[], Log]
"""Asks the broker what the topic of usage events is, and how far it reaches."""
ReadWindows = Callable[[psycopg.Connection, datetime, datetime, str], Iterable[UsageQuantity]]


def log_end(usage: psycopg.Connection, before: Log, read_again: ReadLog) -> Check:
    """All that was in the log before the positions were read is applied; these may have gone further since.

    Where the log is not the one that a position is about, equal numbers mean nothing: that is the difference.
    """
    stored = sources.states(usage, before.topic)
    gone_on = any(state.next_position > before.ends.get(p, 0) for p, state in stored.items())
    log = read_again() if gone_on else before
    others: dict[str, Value] = {}
    ends: dict[str, Value] = {}
    applied: dict[str, Value] = {}
    for p in sorted(log.ends.keys() | stored.keys()):
        source = stored[p].source if p in stored else sources.source_name(log.topic, p)
        if p in stored and (why := sources.disagreement(stored[p], log, p)):
            others[source] = why
        else:
            ends[source] = before.ends.get(p, log.begins[p])
            position = stored[p].next_position if p in stored else log.begins[p]
            applied[source] = min(position, ends[source])
    check = compare("everything in Kafka is applied", "Kafka's end", "positions", ends, applied)
    found = [Difference(source, why, None) for source, why in others.items()]
    return Check(check.name, check.left, check.right, check.compared + len(others), (*found, *check.differences))


def stored(usage: psycopg.Connection, period: BillingPeriod) -> Check:
    """Whether all that was counted as applied or held back is stored.

    Of a source of which it is not, the period's events that are gone are named.
    """
    recorded, there = passed_positions.counted_outcomes(usage), passed_positions.stored_counts(usage)
    check = compare("what was counted is stored", "chunks", "events and quarantine", _pairs(recorded), _pairs(there))
    gone = [
        Difference(f"{source}@{position}/event", "counted", None)
        for source in sorted({each.key.rpartition("/")[0] for each in check.differences})
        for position in passed_positions.events_gone(usage, source, period.start, period.end, at_most=NAMED)
    ]
    return replace(check, differences=(*check.differences, *gone))


def _pairs(counts: Mapping[str, tuple[int, int]]) -> dict[str, Value]:
    events: dict[str, Value] = {f"{source}/events": applied for source, (applied, _) in counts.items()}
    return events | {f"{source}/quarantine": held for source, (_, held) in counts.items()}


def windows(usage: psycopg.Connection, period: BillingPeriod) -> list[Check]:
    """Whether raw events are in the windows of their minute, and of their hour."""
    events = agreement.usage_by_key(usage_store.raw_quantities(usage, period.start, period.end))
    minutes = agreement.usage_by_key(usage_store.minute_quantities(usage, period.start, period.end))
    hours = agreement.usage_by_key(usage_store.rating_quantities(usage, period.start, period.end))
    by_minute = compare("events are in their minute", "raw events", "1-minute windows", events, minutes)
    by_hour = compare("events are in their hour", "raw events", "1-hour windows", events, hours)
    return [
        _placed(by_minute, usage, "minute", usage_store.minute_quantities, period),
        _placed(by_hour, usage, "hour", usage_store.rating_quantities, period),
    ]


def _placed(
    check: Check, usage: psycopg.Connection, width: usage_store.Width, read: ReadWindows, period: BillingPeriod
) -> Check:
    """A comparison over a whole month, told window by window where something differs."""
    of_tenants: dict[str, list[Difference]] = defaultdict(list)
    for each in check.differences:
        of_tenants[each.key.split("/")[0]].append(each)
    found: list[Difference] = []
    for number, (tenant_id, of_month) in enumerate(of_tenants.items()):
        placed: list[Difference] = []
        if number < NAMED:
            for start in usage_store.windows_that_differ(
                usage, width, tenant_id, period.start, period.end, at_most=NAMED
            ):
                end = start + timedelta(**{f"{width}s": 1})
                events = agreement.usage_by_key(usage_store.raw_quantities(usage, start, end, tenant_id))
                windows = agreement.usage_by_key(read(usage, start, end, tenant_id))
                differ = compare(check.name, check.left, check.right, events, windows).differences
                placed += [replace(each, key=f"{each.key} at {rfc3339(start)}") for each in differ]
        found += placed or of_month
    return replace(check, differences=tuple(found))
