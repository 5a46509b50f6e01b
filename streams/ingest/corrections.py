"""Corrections, counted for a whole chunk at once where each is the only message that speaks of its event.

What `further_arrivals` does with such a message in a dozen statements, here in a few for all of them: lock what they
correct in key order, see what counts of it, write. Those that are no plain addition (another source's telling of a
correction, one that a stronger source left uncounted, one that would leave impossible sums or has nothing to correct)
are left to it, in their order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg

from serving_adapter.events import decode
from serving_adapter.identity import event_id_of
from streams.ingest import engine_sums, numbers, stored_versions
from streams.ingest.event_rows import ADD_TO_FEED, COUNTS, EventRows
from streams.ingest.moved_corrections import impossible
from streams.ingest.resends import Due, spoken_of
from streams.ingest.stored_versions import Stored
from streams.rules.duplicates import arriving, in_force
from streams.rules.identity_keys import numbered_by
from streams.rules.windows import WINDOW_KEY, add_to_windows

_KNOWN: Final = """
    select uuid_send(due.key) from unnest(%s::uuid[]) as due (key)
    where exists (select from usage.event_identities as i where i.key = due.key)
"""
_ADD_IDENTITIES: Final = """
    insert into usage.event_identities
        (key, completed_at, position, source_no, usage_source, content_digest, numbered_by)
    select key, completed_at, position, %(source_no)s, usage_source, content_digest, numbered_by
    from unnest(%(keys)s::uuid[], %(times)s::timestamptz[], %(positions)s::int8[], %(sources)s::text[],
        %(digests)s::bytea[], %(numbered)s::bytea[])
        as due (key, completed_at, position, usage_source, content_digest, numbered_by)
    order by key
"""
_COLUMNS: Final = (
    "completed_at", *WINDOW_KEY, "request_id", "attempt", "correction_no", *COUNTS, "position", "ingested_at", "raw",
)  # fmt: skip
_TYPES: Final = {
    "completed_at": "timestamptz", "attempt": "int4", "correction_no": "int4", "position": "int8",
    "ingested_at": "timestamptz", "raw": "bytea",
} | dict.fromkeys(COUNTS, "int8")  # fmt: skip
_KEY: Final = ", ".join(WINDOW_KEY)
_NAMES: Final = ", ".join(_COLUMNS)
_GIVEN: Final = ", ".join(f"%({name})s::{_TYPES.get(name, 'text')}[]" for name in _COLUMNS)
_COUNT: Final = f"""
    with due as materialized (
        select * from unnest({_GIVEN}) as due ({_NAMES})
    ), event as (
        insert into usage.events ({_NAMES}, kind, source) select {_NAMES}, 'correction', %(this_source)s from due
    ), feed as (
        {ADD_TO_FEED}
        select %(fed_by)s, %(fed_no)s, tenant_id, request_id, attempt, 'correction', model, adapter, status,
            fault, usage_source, completed_at, 0, input_tokens, cache_hit_tokens, output_tokens, gpu_us
        from due where purpose = 'tenant' order by position
    ), summed as materialized (
        select time_bucket('1 minute', completed_at) as minute, {_KEY}, count(*) as events, 0 as requests,
            {", ".join(f"sum({name})::int8 as {name}" for name in COUNTS)}
        from due group by minute, {_KEY}
    ), minute as ({add_to_windows("windows_1m", "1 minute")}
    ), hour as ({add_to_windows("windows_1h", "1 hour")}
    )
    select
"""


class Correction(NamedTuple):
    """A message, and what counts of what it corrects: the event first."""

    due: Due
    counting: Sequence[Any]

    @property
    def position(self) -> int:
        """Where the message stands in its source."""
        return self.due.message.record.position


def candidates(arrived: Sequence[Due]) -> list[Due]:
    """The corrections, in the order of what they correct, of which no other message says anything either."""
    mentions = spoken_of(arrived)
    alone = [each for each in arrived if each.original_key and mentions[each.key] == mentions[each.original_key] == 1]
    return sorted(alone, key=lambda each: each.original_key)


def additions(
    stored: Mapping[bytes, Sequence[Stored]],
    known: Collection[bytes],
    alone: Sequence[Due],
    sealed_before: datetime | None,
) -> list[tuple[Due, datetime]]:
    """Those of the candidates that are new and rightly made, and when what they correct was completed.

    Not what is archived, nor what a stronger source says of an event.
    """
    found = []
    for each in alone:
        versions = [one.version for one in stored.get(each.original_key, ())]
        if not versions or each.key in known or each.original is None:
            continue
        counting = in_force(versions)
        rightly = each.message.event.corrects == str(event_id_of(each.original))
        sealed = sealed_before is not None and counting.completed_at < sealed_before
        if rightly and not sealed and counting.strength <= arriving(each.message).strength:
            found.append((each, counting.completed_at))
    return found


def possible(each: Correction) -> bool:
    """Whether a correction is one more of its event, and leaves sums that can be."""
    event = each.due.message.event
    told = any(row.kind == "correction" and row.correction_no == event.correction_no for row in each.counting)
    return bool(each.counting) and not told and not impossible(each.counting, event)


def take(rows: EventRows, arrived: Sequence[Due], sealed_before: datetime | None) -> set[int]:
    """Count the corrections that are plain additions; returns their positions.

    `arrived` are the chunk's messages that are neither new nor plain resends.
    """
    alone = candidates(arrived)
    if not alone:
        return set()
    stored = stored_versions.locked(rows.connection, [each.original_key for each in alone])
    new = additions(stored, _known(rows.connection, alone), alone, sealed_before)
    counting = stored_versions.counting(rows.connection, [(each.message.event, moment) for each, moment in new])
    taken = [Correction(each, found) for (each, _), found in zip(new, counting, strict=True)]
    taken = [each for each in taken if possible(each)]
    if not taken:
        return set()
    _add_identities(rows, [each.due for each in taken])
    _count(rows, taken)
    numbers.count(rows.connection, [each.due.message.event for each in taken])
    engine_sums.note_corrections(
        rows.connection, ((decode(each.counting[0].raw), each.due.message.event) for each in taken)
    )
    return {each.position for each in taken}


def _known(connection: psycopg.Connection, alone: Sequence[Due]) -> set[bytes]:
    """Which of the corrections themselves are stored, now that nobody else can add one to their events."""
    keys = [UUID(bytes=each.key) for each in alone]
    return {key for (key,) in connection.execute(_KNOWN, (keys,), binary=True)}


def _add_identities(rows: EventRows, taken: Sequence[Due]) -> None:
    events = [each.message.event for each in taken]
    given = {
        "source_no": rows.source_no,
        "keys": [UUID(bytes=each.key) for each in taken],
        "times": [each.message.completed_at for each in taken],
        "positions": [each.message.record.position for each in taken],
        "sources": [event.usage_source for event in events],
        "digests": [each.message.content_digest for each in taken],
        "numbered": [numbered_by(event.replica_id, event.boot_id, event.seq) for event in events],
    }
    rows.connection.execute(_ADD_IDENTITIES, given)


def _count(rows: EventRows, taken: Sequence[Correction]) -> None:
    """Store each in the bucket of what it corrects, and add it to windows and feed."""
    columns: dict[str, list[object]] = {name: [] for name in _COLUMNS}
    for each in taken:
        event, record, original = each.due.message.event, each.due.message.record, each.counting[0]
        told = {name: getattr(event, name) for name in ("request_id", "attempt", "correction_no", *COUNTS)}
        bucket = {name: getattr(original, name) for name in ("completed_at", *WINDOW_KEY)}
        arrived = {"position": record.position, "ingested_at": record.appended_at, "raw": record.value}
        for name, value in (told | bucket | arrived).items():
            columns[name].append(value)
    rows.connection.execute(_COUNT, columns | {"this_source": rows.source} | rows.fed._asdict())
