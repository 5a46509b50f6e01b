"""What is stored of many identities, read at once for a chunk: their versions, and what counts of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg
from psycopg.rows import namedtuple_row

from serving_adapter.events import UsageEvent
from streams.ingest.event_rows import COUNTS
from streams.rules.duplicates import Version
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
EVENT_ROW: Final = ("source", "position", "completed_at", "request_id", "attempt", *WINDOW_KEY, *COUNTS)
"""What a counting row says of its event, beside `kind`, `correction_no` and `raw`."""
# `offset 0`: by the index for each moment, and never by a join with all that was counted between the first and last.
_COUNTING: Final = f"""
    select raw, kind, correction_no, {", ".join(EVENT_ROW)}
    from (select distinct * from unnest(%(tenants)s::text[], %(moments)s::timestamptz[]) as due (tenant, moment)) as due
    cross join lateral (
        select * from usage.events as e
        where e.tenant_id = tenant and e.completed_at = moment and e.completed_at between %(first)s and %(last)s
          and e.request_id = any(%(requests)s) and not exists (
              select from usage.superseded_events as s where s.source = e.source and s.position = e.position)
        offset 0
    ) as e
    order by kind desc, correction_no
"""


class Stored(NamedTuple):
    """A stored version, and where its message stands."""

    version: Version
    source: str
    position: int


def locked(connection: psycopg.Connection, keys: Sequence[bytes]) -> dict[bytes, list[Stored]]:
    """The stored versions by identity key, the identities locked; `keys` are in order."""
    asked = [UUID(bytes=key) for key in keys]
    found: dict[bytes, list[Stored]] = defaultdict(list)
    for statement in (_LOCKED, _VERSIONS):
        for key, *version, source, position in connection.execute(statement, (asked,), binary=True):
            found[key].append(Stored(Version(*version), source, position))
    return found


def counting(connection: psycopg.Connection, asked: Sequence[tuple[UsageEvent, datetime]]) -> list[list[Any]]:
    """Of each request's attempt the rows that count at a completion time: the event, then its corrections."""
    if not asked:
        return []
    moments = [moment for _, moment in asked]
    given = {
        "tenants": [event.tenant_id for event, _ in asked],
        "moments": moments,
        "first": min(moments),
        "last": max(moments),
        "requests": [event.request_id for event, _ in asked],
    }
    found: dict[tuple[object, ...], list[Any]] = defaultdict(list)
    with connection.cursor(row_factory=namedtuple_row, binary=True) as cursor:
        rows: list[Any] = cursor.execute(_COUNTING, given, prepare=False).fetchall()
        for row in rows:
            found[row.tenant_id, row.request_id, row.attempt, row.completed_at].append(row)
    return [found[event.tenant_id, event.request_id, event.attempt, moment] for event, moment in asked]
