"""The rows of one message that is told apart by itself: its version, its event, its part of the windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.rows import namedtuple_row

from serving_adapter.identity import Identity, identity_of
from streams.ingest.quota_feed import Place
from streams.rules.chunks import Accepted
from streams.rules.duplicates import Version, original_of
from streams.rules.identity_keys import identity_key, numbered_by
from streams.rules.windows import WIDTHS, WINDOW_KEY, WINDOW_SUMS

COUNTS: Final = ("input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us")
_KEYS: Final = ", ".join(WINDOW_KEY)
EVENT_COLUMNS: Final = (
    "completed_at, tenant_id, request_id, attempt, kind, correction_no, model, adapter, region, tier, pool, status,"
    " fault, purpose, usage_source, rating_band, input_tokens, cache_hit_tokens, output_tokens, gpu_us, position,"
    " ingested_at, raw"
)
_SUMS: Final = ", ".join(WINDOW_SUMS)

_STORED: Final = """
    select content_digest, usage_source, completed_at, numbered_by, source, position
    from usage.event_identities as i join usage.sources using (source_no)
    where key = %s
    for update of i
"""
_VERSIONS: Final = """
    select content_digest, usage_source, completed_at, numbered_by, source, position
    from usage.event_versions join usage.sources using (source_no)
    where key = %s
"""
# An event with its corrections: a correction is stored at the completion time of what it corrects.
_COUNTING: Final = """
    select e.* from usage.events as e
    where tenant_id = %(tenant_id)s and completed_at = %(completed_at)s and request_id = %(request_id)s
      and attempt = %(attempt)s
      and not exists (select from usage.superseded_events as s where s.source = e.source and s.position = e.position)
    order by kind desc, correction_no
"""
_ADD_EVENT: Final = f"""
    insert into usage.events (completed_at, {_KEYS}, request_id, attempt, kind, correction_no,
        {", ".join(COUNTS)}, source, position, ingested_at, raw)
    values (%(completed_at)s, {", ".join(f"%({key})s" for key in WINDOW_KEY)}, %(request_id)s, %(attempt)s, %(kind)s,
        %(correction_no)s, {", ".join(f"%({name})s" for name in COUNTS)}, %(source)s, %(position)s, %(ingested_at)s,
        %(raw)s)
"""
_IDENTIFIED: Final = "key, usage_source, completed_at, position, source_no, content_digest, numbered_by"
_IDENTIFIED_VALUES: Final = ", ".join(f"%({name.strip()})s" for name in _IDENTIFIED.split(","))
_ADD_IDENTITY: Final = f"insert into usage.event_identities ({_IDENTIFIED}) values ({_IDENTIFIED_VALUES})"
_ADD_VERSION: Final = f"insert into usage.event_versions ({_IDENTIFIED}) values ({_IDENTIFIED_VALUES})"
_KEEP_YOUNG: Final = """
    insert into usage.identity_ages as a (key, completed_at)
    select * from unnest(%s::uuid[], %s::timestamptz[]) as due (key, completed_at) order by key
    on conflict (key) do update set completed_at = excluded.completed_at where a.completed_at < excluded.completed_at
"""
ADD_TO_FEED: Final = """
        insert into usage.quota_feed (source, ingest_no, tenant_id, request_id, attempt, kind, model, adapter, status,
            fault, usage_source, completed_at, requests, input_tokens, cache_hit_tokens, output_tokens, gpu_us)
"""
_ADD_FEED: Final = f"""{ADD_TO_FEED}
    values (%(fed_by)s, %(fed_no)s, %(tenant_id)s, %(request_id)s, %(attempt)s, %(kind)s, %(model)s, %(adapter)s,
        %(status)s, %(fault)s, %(usage_source)s, %(completed_at)s, %(requests)s, %(input_tokens)s,
        %(cache_hit_tokens)s, %(output_tokens)s, %(gpu_us)s)
"""


class Outcome(Enum):
    """How a further arrival counts among its chunk's messages."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    RETIMED = "retimed"


@dataclass(frozen=True, slots=True)
class EventRows:
    """Where messages come from, for the rows they leave in a chunk's transaction."""

    connection: psycopg.Connection
    source: str
    source_no: int
    fed: Place
    """Where the quota feed gets them."""

    def stored_versions(self, identity: Identity) -> list[Any]:
        """Every stored version of an identity, the first one locked; empty if it is not known."""
        with self.connection.cursor(row_factory=namedtuple_row) as cursor:
            key = (_key(identity),)
            first = cursor.execute(_STORED, key).fetchall()
            return [*first, *(cursor.execute(_VERSIONS, key).fetchall() if first else [])]

    def counting(self, identity: Identity, completed_at: datetime) -> list[Any]:
        """The rows that count for a request's attempt at a completion time: the event, then its corrections."""
        with self.connection.cursor(row_factory=namedtuple_row) as cursor:
            return cursor.execute(_COUNTING, identity._asdict() | {"completed_at": completed_at}).fetchall()

    def count(self, row: Any, sign: int) -> None:
        """Add an event's row to its windows and the feed (+1), or take it out (-1)."""
        values = {key: getattr(row, key) for key in WINDOW_KEY}
        values |= {name: sign * getattr(row, name) for name in COUNTS}
        values |= {"events": sign, "requests": sign * (row.kind == "usage"), "completed_at": row.completed_at}
        added = ", ".join(f"{name} = w.{name} + excluded.{name}" for name in WINDOW_SUMS)
        for table, width in WIDTHS.items():
            self.connection.execute(
                f"insert into usage.{table} as w (bucket, {_KEYS}, {_SUMS})"
                f" values (time_bucket('{width}', %(completed_at)s),"
                f" {', '.join(f'%({name})s' for name in (*WINDOW_KEY, *WINDOW_SUMS))})"
                f" on conflict (tenant_id, bucket, {', '.join(WINDOW_KEY[1:])}) do update set {added}",
                values,
            )
        if row.purpose == "tenant":
            named = {"request_id": row.request_id, "attempt": row.attempt, "kind": row.kind}
            self.connection.execute(_ADD_FEED, values | named | self.fed._asdict())

    def supersede(self, source: str, position: int, by_source: str, by_position: int) -> None:
        """Write down that an event does not count, and because of which."""
        self.connection.execute(
            "insert into usage.superseded_events (source, position, by_source, by_position) values (%s, %s, %s, %s)",
            (source, position, by_source, by_position),
        )

    def keep_young(self, identities: Sequence[tuple[bytes, datetime]]) -> None:
        """Identities that age by their events' times are as young as the latest they came with; by key."""
        if identities:
            keys, times = zip(*identities, strict=True)
            self.connection.execute(_KEEP_YOUNG, ([UUID(bytes=key) for key in keys], list(times)))

    def add_identity(self, message: Accepted) -> None:
        """Store the first version of an identity."""
        self._execute(_ADD_IDENTITY, message)

    def add_version(self, message: Accepted) -> None:
        """Store a further version of an identity."""
        self._execute(_ADD_VERSION, message)

    def add_event(self, message: Accepted) -> None:
        """Store an event under its own keys and time."""
        self._execute(_ADD_EVENT, message)

    def add_correction(self, message: Accepted, corrected: Any) -> None:
        """Store a correction in the bucket of what it corrects."""
        bucket = {key: getattr(corrected, key) for key in (*WINDOW_KEY, "completed_at")}
        self._execute(_ADD_EVENT, message, **bucket)

    def enter_correction(self, message: Accepted, corrected: Any) -> Any:
        """Store a correction in the bucket of what it corrects, and count it; returns its row."""
        self.add_correction(message, corrected)
        mine = (self.source, message.record.position)
        rows = self.counting(original_of(message.event), corrected.completed_at)
        (row,) = [row for row in rows if (row.source, row.position) == mine]
        self.count(row, +1)
        return row

    def _execute(self, statement: str, message: Accepted, **other: object) -> None:
        event = message.event
        values: dict[str, object] = {name: getattr(event, name) for name in event.__struct_fields__ if name != "labels"}
        values |= {
            "key": _key(identity_of(event)),
            "numbered_by": numbered_by(event.replica_id, event.boot_id, event.seq),
            "source_no": self.source_no,
            "adapter": event.adapter or "",
            "rating_band": message.rating_band,
            "completed_at": message.completed_at,
            "content_digest": message.content_digest,
            "source": self.source,
            "position": message.record.position,
            "ingested_at": message.record.appended_at,
            "raw": message.record.value,
        }
        self.connection.execute(statement, values | other)


def _key(identity: Identity) -> UUID:
    return UUID(bytes=identity_key(identity))


def version_of(row: Any) -> Version:
    """What a stored version's row says of it."""
    by = None if row.numbered_by is None else bytes(row.numbered_by)
    return Version(bytes(row.content_digest), row.usage_source, row.completed_at, by)
