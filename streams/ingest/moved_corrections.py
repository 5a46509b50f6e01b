"""Corrections that outlive the version of an event that they were counted with.

They are of a source that is not weaker than what takes the place: told about it, but here before it
(docs/decisions/0017-whose-corrections.md). They enter the new bucket by a source of their own,
`moved:<source>@<position>`, whose row and chunk prove them like a partition's; the quota feed gets them with the
chunk that moves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from serving_adapter.events import UsageEvent, decode_completed
from serving_adapter.identity import content_digest_of, event_id_of, identity_of
from streams.ingest import engine_sums, positions
from streams.ingest.event_rows import COUNTS, EventRows
from streams.ingest.positions import Applied
from streams.rules.chunks import Accepted, Chunk, Record, Refused, Source


def take_along(rows: EventRows, message: Accepted, entered: Any, corrections: Sequence[Any]) -> None:
    """Count corrections once more, with what took the place of what they corrected: `message`, stored as `entered`.

    What would leave impossible sums is refused.
    """
    name = f"moved:{rows.source}@{message.record.position}"
    records = [Record(i, None, bytes(row.raw), row.ingested_at) for i, row in enumerate(corrections)]
    chunk = Chunk(Source(name, "moved", str(event_id_of(identity_of(message.event)))), records)
    positions.register(rows.connection, chunk.source)
    at, _ = positions.due(rows.connection, chunk)
    there = replace(rows, source=name, source_no=at.source_no)
    counted, refused = [entered], []
    for record in records:
        event, completed_at = decode_completed(record.value)
        moved = Accepted(record, event, completed_at, content_digest_of(event))
        why = impossible(counted, event)
        if why:
            refused.append(refuse(moved, "invalid", why))
            continue
        counted.append(there.enter_correction(moved, entered))
        engine_sums.note_moved(rows.connection, message.event, event)
    positions.keep_refused(rows.connection, name, refused)
    done = Applied(len(records), applied=len(records) - len(refused), quarantined=len(refused))
    positions.advance(rows.connection, chunk, records, done)


def impossible(counting: Sequence[Any], correction: UsageEvent) -> str:
    """What a correction would leave of an event that counts so far as given, if that cannot be; '' if it can."""
    sums = {name: sum(getattr(row, name) for row in counting) + getattr(correction, name) for name in COUNTS}
    if min(sums.values()) >= 0 and sums["cache_hit_tokens"] <= sums["input_tokens"]:
        return ""
    return f"would leave {', '.join(f'{k} {v}' for k, v in sums.items())}"


def refuse(message: Accepted, reason: str, detail: str) -> Refused:
    """A message for the quarantine that was decoded."""
    return Refused(message.record, reason, detail, message.event.tenant_id, message.event)
