"""Other sources' tellings of events, stored for a whole chunk at once where each is the only one of its identity.

What `further_arrivals` does with such a message in a dozen statements, here in three for all of them: lock the
identities in key order, judge each beside what is stored, write. Corrections, and events that have some or that are
archived, are left to it, in their order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

import psycopg

from serving_adapter.events import decode
from streams.ingest import engine_sums, numbers
from streams.ingest.event_rows import ADD_TO_FEED, EVENT_COLUMNS, EventRows, add_to_windows
from streams.ingest.resends import Due
from streams.rules.duplicates import Verdict, Version, arriving, in_force, judge, makes_younger
from streams.rules.windows import WINDOW_KEY

# Each by the index of its one partition, and locked in key order: two chunks cannot deadlock here.
_LOCKED: Final = """
    select uuid_send(held.key), content_digest, usage_source, completed_at, numbered_by, source, position
    from unnest(%s::uuid[]) as due (key) cross join lateral (
        select * from usage.event_identities as i where i.key = due.key for update
    ) as held join usage.sources using (source_no)
"""
_VERSIONS: Final = """
    select uuid_send(held.key), content_digest, usage_source, completed_at, numbered_by, source, position
    from usage.event_versions as held join usage.sources using (source_no) where held.key = any(%s)
"""
_KEY: Final = ", ".join(WINDOW_KEY)
_COUNTS: Final = "input_tokens, cache_hit_tokens, output_tokens, gpu_us"
# What counts at a moment is read once, however many of the chunk's messages take the place of something there.
_TAKE: Final = f"""
    with due as materialized (
        select stage.*, stronger, in_force_source, in_force_position, in_force_at
        from stage join unnest(%(positions)s::int8[], %(stronger)s::bool[], %(in_force_sources)s::text[],
            %(in_force_positions)s::int8[], %(in_force_at)s::timestamptz[])
            as told (position, stronger, in_force_source, in_force_position, in_force_at) using (position)
    ), counting as materialized (
        select due.position as by_position, e.*
        from due join (
            select held.* from (select distinct tenant_id, in_force_at from due where stronger) as moment
            cross join lateral (
                select * from usage.events as held
                where held.tenant_id = moment.tenant_id and held.completed_at = moment.in_force_at
                  and held.completed_at between %(first)s and %(last)s
            ) as held offset 0
        ) as e on e.tenant_id = due.tenant_id and e.completed_at = due.in_force_at
            and e.request_id = due.request_id and e.attempt = due.attempt
        where due.stronger and not exists (
            select from usage.superseded_events as s where s.source = e.source and s.position = e.position)
    ), alone as materialized (
        select by_position from counting group by by_position having count(*) = 1
    ), replaced as materialized (
        select counting.* from counting join alone using (by_position)
    ), taken as materialized (
        select * from due where not stronger or position in (select by_position from alone)
    ), version as (
        insert into usage.event_versions
            (key, usage_source, completed_at, position, source_no, content_digest, numbered_by)
        select key, usage_source, completed_at, position, %(source_no)s, content_digest, numbered_by from taken
    ), event as (
        insert into usage.events ({EVENT_COLUMNS}, source) select {EVENT_COLUMNS}, %(source)s from taken
    ), superseded as (
        insert into usage.superseded_events (source, position, by_source, by_position)
        select source, position, %(source)s, by_position from replaced
        union all
        select %(source)s, position, in_force_source, in_force_position from taken where not stronger
    ), changed as materialized (
        select -1 as sign, request_id, attempt, kind, completed_at, {_KEY}, {_COUNTS} from replaced
        union all
        select 1, request_id, attempt, kind, completed_at, {_KEY}, {_COUNTS} from taken where stronger
    ), feed as (
        {ADD_TO_FEED}
        select %(source)s, %(ingest_no)s, tenant_id, request_id, attempt, kind, model, adapter, status, fault,
            usage_source, completed_at, sign, sign * input_tokens, sign * cache_hit_tokens, sign * output_tokens,
            sign * gpu_us
        from changed where purpose = 'tenant'
    ), summed as materialized (
        select time_bucket('1 minute', completed_at) as minute, {_KEY}, sum(sign) as events, sum(sign) as requests,
            sum(sign * input_tokens)::int8 as input_tokens, sum(sign * cache_hit_tokens)::int8 as cache_hit_tokens,
            sum(sign * output_tokens)::int8 as output_tokens, sum(sign * gpu_us)::int8 as gpu_us
        from changed group by minute, {_KEY}
    ), minute as ({add_to_windows("windows_1m", "1 minute")}
    ), hour as ({add_to_windows("windows_1h", "1 hour")}
    )
    select taken.position, replaced.raw from taken left join replaced on by_position = taken.position
"""


class Stored(NamedTuple):
    """A stored version, and where its message stands."""

    version: Version
    source: str
    position: int


class Telling(NamedTuple):
    """A message of another source than the version in force, which it takes the place of if it is the stronger."""

    due: Due
    in_force: Stored
    stronger: bool
    younger: bool
    """Whether the identity is to be kept as long as this message's time asks for."""


def candidates(arrived: Sequence[Due]) -> list[Due]:
    """The usage events, in key order, whose identity nothing else among the messages speaks of."""
    spoken_of = Counter(key for each in arrived for key in (each.key, each.original_key) if key)
    alone = [each for each in arrived if each.original is None and spoken_of[each.key] == 1]
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
    told = {t.due.message.record.position: t for t in tellings(_stored(rows.connection, alone), alone, sealed_before)}
    if not told:
        return set()
    replaced = dict(_take(rows, list(told.values())))
    taken = [told[position] for position in replaced]
    rows.keep_young([(t.due.key, t.due.message.completed_at) for t in taken if t.younger])
    numbers.count(rows.connection, [t.due.message.event for t in taken])
    engine_sums.note_weaker(rows.connection, (t.due.message.event for t in taken if not t.stronger))
    engine_sums.note_replaced(
        rows.connection,
        ((decode(raw), told[position].due.message.event) for position, raw in replaced.items() if raw is not None),
    )
    return set(replaced)


def _stored(connection: psycopg.Connection, alone: Sequence[Due]) -> dict[bytes, list[Stored]]:
    """The stored versions by identity key; the identities locked."""
    keys = [UUID(bytes=each.key) for each in alone]
    found: dict[bytes, list[Stored]] = defaultdict(list)
    for statement in (_LOCKED, _VERSIONS):
        for key, *version, source, position in connection.execute(statement, (keys,), binary=True):
            found[key].append(Stored(Version(*version), source, position))
    return found


def _take(rows: EventRows, told: Sequence[Telling]) -> list[tuple[int, bytes | None]]:
    """Write what can be written; returns positions, each with the message that it took the place of, if any."""
    moments = [t.in_force.version.completed_at for t in told]
    given = {
        "source": rows.source,
        "source_no": rows.source_no,
        "ingest_no": rows.ingest_no,
        "positions": [t.due.message.record.position for t in told],
        "stronger": [t.stronger for t in told],
        "in_force_sources": [t.in_force.source for t in told],
        "in_force_positions": [t.in_force.position for t in told],
        "in_force_at": moments,
        "first": min(moments),
        "last": max(moments),
    }
    return rows.connection.execute(_TAKE, given, prepare=True, binary=True).fetchall()
