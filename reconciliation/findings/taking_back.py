"""What a finding says is counted too much, as corrections that take it back: material for a plan (docs/replay.md).

Only where it is known which events those are: twins of a second emitter, and events of a boot that has numbered others
with the same numbers. Nothing is counted here; a plan says what the corrections come to, and applying books them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import msgspec
import psycopg

from reconciliation.errors import FindingRefused
from reconciliation.findings import evidence
from reconciliation.findings.finding import Kind
from reconciliation.findings.finding_store import StoredFinding
from reconciliation.replay.material import Found
from serving_adapter.events import UsageEvent, completed_at, encode
from serving_adapter.identity import event_id_of, identity_of
from streams.ingest import stored_versions
from streams.ingest.event_rows import COUNTS


def corrections(connection: psycopg.Connection, stored: StoredFinding) -> list[Found]:
    """A correction for each event that is too many, down to nothing. Raises FindingRefused where they are not known.

    Requests stay counted: a correction takes back tokens and GPU time (docs/spec/money.md 2).
    """
    if stored.kind == Kind.DUPLICATE_EMITTER.value and stored.begins is not None and stored.ends is not None:
        after = stored.ends + timedelta(milliseconds=1)
        begin = stored.begins - timedelta(milliseconds=1)
        subject = stored.subject
        events = evidence.sent_again(connection, begin, after, subject["emitter"], subject["of"])
    elif stored.kind == Kind.OVERCOUNTED.value:
        events = _too_many(connection, stored)
    else:
        raise FindingRefused(
            f"finding {stored.finding_no} is of kind {stored.kind}: which events are counted too much is known of"
            f" {Kind.DUPLICATE_EMITTER} and {Kind.OVERCOUNTED} alone"
        )
    origin = f"finding {stored.finding_no}"
    made = (_correction(event, rows) for event, rows in zip(events, _counting(connection, events), strict=True))
    return [Found(origin, encode(each)) for each in made if each is not None]


def _too_many(connection: psycopg.Connection, stored: StoredFinding) -> list[UsageEvent]:
    """Of events with one number those that are too many: of the tenants that the finding names, the later ones."""
    key, model = (stored.subject["replica_id"], stored.subject["boot_id"]), stored.subject["model"]
    events, is_all = evidence.numbered_by(connection, key, model)
    named = {share["tenant_id"] for share in stored.size["shares"]}
    by_number: dict[int | None, list[UsageEvent]] = defaultdict(list)
    for event in events:
        by_number[event.seq].append(event)
    found = [each for same in by_number.values() for each in sorted(same, key=lambda e: e.tenant_id in named)[1:]]
    if not is_all or _sizes(found) != _told(stored.size["shares"]):
        raise FindingRefused(
            f"which events of finding {stored.finding_no} are too many cannot be told: those that have the numbers of"
            " others are not as much. Take back what you know to be too much by corrections of your own"
            " (`tollbook replay plan --export`), or settle it"
        )
    return found


def _sizes(events: Iterable[UsageEvent]) -> dict[str, list[int]]:
    """By tenant: events, input, output and cached tokens."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0] * 4)
    for e in events:
        for at, count in enumerate((1, e.input_tokens, e.output_tokens, e.cache_hit_tokens)):
            sums[e.tenant_id][at] += count
    return dict(sums)


def _told(shares: Iterable[Mapping[str, Any]]) -> dict[str, list[int]]:
    names = ("events", "input_tokens", "output_tokens", "cache_hit_tokens")
    return {share["tenant_id"]: [share[name][1] for name in names] for share in shares}


def _counting(connection: psycopg.Connection, events: Iterable[UsageEvent]) -> list[list[Any]]:
    return stored_versions.counting(connection, [(event, completed_at(event)) for event in events])


def _correction(event: UsageEvent, counting: Iterable[Any]) -> UsageEvent | None:
    """Takes back what counts of an event with its corrections; None where nothing is left."""
    rows = list(counting)
    left = {name: -sum(getattr(row, name) for row in rows) for name in COUNTS}
    if not any(left.values()):
        return None
    return msgspec.structs.replace(
        event, kind="correction", correction_no=1 + max(row.correction_no for row in rows),
        corrects=str(event_id_of(identity_of(event))), event_id=None, source_event_id=None, replica_id=None,
        boot_id=None, seq=None, engine_input_tokens=None, engine_output_tokens=None, engine_cached_tokens=None, **left,
    )  # fmt: skip
