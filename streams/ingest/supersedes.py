"""Other sources' tellings of events, stored for a whole chunk at once where each is the only one of its identity.

What `further_arrivals` does with such a message in a dozen statements, here in a few for all of them: lock the
identities in key order, judge each beside what is stored, find what counts, write. Corrections, and events that have
some or that are archived, are left to it, in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec
import psycopg

from serving_adapter.events import decode
from streams.ingest import engine_sums, numbers, stored_versions
from streams.ingest.event_rows import ADD_TO_FEED, COUNTS, EVENT_COLUMNS, EventRows
from streams.ingest.resends import Due, spoken_of
from streams.ingest.stored_versions import EVENT_ROW, Stored
from streams.rules.duplicates import Verdict, arriving, in_force, judge, makes_younger
from streams.rules.windows import WINDOW_KEY, add_to_windows

_TYPES: Final = {"position": "int8", "completed_at": "timestamptz", "attempt": "int4"} | dict.fromkeys(COUNTS, "int8")
_KEY: Final = ", ".join(WINDOW_KEY)
_SIGNED: Final = ", ".join(f"sum(sign * {name})::int8 as {name}" for name in COUNTS)
_TAKE: Final = f"""
    with taken as materialized (
        select stage.*, by.source as by_source, by.position as by_position
        from stage join unnest(%(positions)s::int8[], %(by_sources)s::text[], %(by_positions)s::int8[])
            as by (taken, source, position) on stage.position = by.taken
    ), replaced as materialized (
        select * from json_to_recordset(%(replaced)s::json)
            as replaced ({", ".join(f"{name} {_TYPES.get(name, 'text')}" for name in EVENT_ROW)}, by_position int8)
    ), version as (
        insert into usage.event_versions
            (key, usage_source, completed_at, position, source_no, content_digest, numbered_by)
        select key, usage_source, completed_at, position, %(source_no)s, content_digest, numbered_by from taken
    ), event as (
        insert into usage.events ({EVENT_COLUMNS}, source) select {EVENT_COLUMNS}, %(this_source)s from taken
    ), superseded as (
        insert into usage.superseded_events (source, position, by_source, by_position)
        select source, position, %(this_source)s, by_position from replaced
        union all
        select %(this_source)s, position, by_source, by_position from taken where by_source is not null
    ), changed as materialized (
        select -1 as sign, request_id, attempt, completed_at, {_KEY}, {", ".join(COUNTS)} from replaced
        union all
        select 1, request_id, attempt, completed_at, {_KEY}, {", ".join(COUNTS)} from taken where by_source is null
    ), feed as (
        {ADD_TO_FEED}
        select %(fed_by)s, %(fed_no)s, tenant_id, request_id, attempt, 'usage', model, adapter, status, fault,
            usage_source, completed_at, sign, sign * input_tokens, sign * cache_hit_tokens, sign * output_tokens,
            sign * gpu_us
        from changed where purpose = 'tenant'
    ), summed as materialized (
        select time_bucket('1 minute', completed_at) as minute, {_KEY}, sum(sign) as events, sum(sign) as requests,
            {_SIGNED}
        from changed group by minute, {_KEY}
    ), minute as ({add_to_windows("windows_1m", "1 minute")}
    ), hour as ({add_to_windows("windows_1h", "1 hour")}
    )
    select
"""


class Telling(NamedTuple):
    """A message of another source than the version in force, which it takes the place of if it is the stronger."""

    due: Due
    in_force: Stored
    stronger: bool
    younger: bool
    """Whether the identity is to be kept as long as this message's time asks for."""

    @property
    def position(self) -> int:
        """Where the message stands in its source."""
        return self.due.message.record.position


def candidates(arrived: Sequence[Due]) -> list[Due]:
    """The usage events, in key order, whose identity nothing else among the messages speaks of."""
    mentions = spoken_of(arrived)
    alone = [each for each in arrived if each.original is None and mentions[each.key] == 1]
    return sorted(alone, key=lambda each: each.key)


def tellings(
    stored: Mapping[bytes, Sequence[Stored]], alone: Sequence[Due], sealed_before: datetime | None
) -> list[Telling]:
    """Those of the candidates that are another source's telling of an event that is not archived."""
    found = []
    for each in alone:
        known = stored.get(each.key, ())
        versions = [one.version for one in known]
        verdict = judge(versions, arriving(each.message)) if versions else None
        if verdict is not Verdict.STRONGER and verdict is not Verdict.WEAKER:
            continue
        counting = known[versions.index(in_force(versions))]
        if sealed_before is None or counting.version.completed_at >= sealed_before:
            younger = makes_younger(each.message, versions)
            found.append(Telling(each, counting, verdict is Verdict.STRONGER, younger))
    return found


def take(rows: EventRows, arrived: Sequence[Due], sealed_before: datetime | None) -> set[int]:
    """Store what is another source's telling of its event and nothing more; returns its positions.

    `arrived` are the chunk's messages that are neither new nor plain resends; its usage events are in the stage.
    """
    alone = candidates(arrived)
    if not alone:
        return set()
    stored = stored_versions.locked(rows.connection, [each.key for each in alone])
    told = tellings(stored, alone, sealed_before)
    replaced = _replaced(rows.connection, [each for each in told if each.stronger])
    taken = [each for each in told if not each.stronger or each.position in replaced]
    if not taken:
        return set()
    _take(rows, taken, replaced)
    rows.keep_young([(each.due.key, each.due.message.completed_at) for each in taken if each.younger])
    numbers.count(rows.connection, [each.due.message.event for each in taken])
    engine_sums.note_weaker(rows.connection, (each.due.message.event for each in taken if not each.stronger))
    engine_sums.note_replaced(
        rows.connection,
        ((decode(replaced[each.position].raw), each.due.message.event) for each in taken if each.stronger),
    )
    return {each.position for each in taken}


def _replaced(connection: psycopg.Connection, told: Sequence[Telling]) -> dict[int, Any]:
    """The rows that messages take the place of, by their positions; none for what was corrected."""
    asked = [(each.due.message.event, each.in_force.version.completed_at) for each in told]
    rows = stored_versions.counting(connection, asked)
    return {each.position: counting[0] for each, counting in zip(told, rows, strict=True) if len(counting) == 1}


def _take(rows: EventRows, taken: Sequence[Telling], replaced: Mapping[int, Any]) -> None:
    """Write versions, events and what is superseded; in windows and feed put the stronger in place of the replaced."""
    # One document: a dozen arrays of names would take longer to write than the rows
    given = {
        "replaced": msgspec.json.encode(
            [
                {name: getattr(row, name) for name in EVENT_ROW} | {"by_position": position}
                for position, row in replaced.items()
            ]
        ).decode(),
        "this_source": rows.source,
        "source_no": rows.source_no,
        "positions": [each.position for each in taken],
        "by_sources": [None if each.stronger else each.in_force.source for each in taken],
        "by_positions": [None if each.stronger else each.in_force.position for each in taken],
    }
    rows.connection.execute(_TAKE, given | rows.fed._asdict(), prepare=True)
