"""Messages that are neither new nor plain resends: other sources of an event, corrections (docs/spec/metering.md 1).

They are rare, so each takes its own statements, in the chunk's transaction. The identity's row is locked first: what is
decided about one event is decided one after another. Plain resends are taken out before (`resends.py`), unless their
identity has other messages in the chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.rows import namedtuple_row

from serving_adapter.events import UsageEvent, decode
from serving_adapter.identity import Identity, event_id_of, identity_of
from streams.ingest import engine_sums
from streams.rules.chunks import Accepted, Refused
from streams.rules.duplicates import Verdict, Version, judge
from streams.rules.identity_keys import identity_key, minted, numbered_by
from streams.rules.windows import WINDOW_KEY, WINDOW_SUMS

COUNTS: Final = ("input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us")
_KEYS: Final = ", ".join(WINDOW_KEY)
_SUMS: Final = ", ".join(WINDOW_SUMS)
_WIDTHS: Final = {"windows_1m": "1 minute", "windows_1h": "1 hour"}

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
_ADD_FEED: Final = """
    insert into usage.quota_feed (source, ingest_no, tenant_id, request_id, attempt, kind, model, adapter, status,
        fault, usage_source, completed_at, requests, input_tokens, cache_hit_tokens, output_tokens, gpu_us)
    values (%(source)s, %(ingest_no)s, %(tenant_id)s, %(request_id)s, %(attempt)s, %(kind)s, %(model)s, %(adapter)s,
        %(status)s, %(fault)s, %(usage_source)s, %(completed_at)s, %(requests)s, %(input_tokens)s,
        %(cache_hit_tokens)s, %(output_tokens)s, %(gpu_us)s)
"""


class Outcome(Enum):
    """How a further arrival counts among its chunk's messages."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    RETIMED = "retimed"


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Where arrivals come from, for the rows they leave."""

    connection: psycopg.Connection
    source: str
    source_no: int
    ingest_no: int
    sealed_before: datetime | None = None
    """What was counted before this is archived: nothing takes its place or corrects it any more."""

    def take(self, message: Accepted) -> Outcome | Refused:
        """Do what is to be done with one message whose identity may be known already."""
        return self._correct(message) if message.event.kind == "correction" else self._other_version(message)

    def _other_version(self, message: Accepted) -> Outcome | Refused:
        """A usage event whose identity was counted before this message."""
        identity = identity_of(message.event)
        stored = self._stored_versions(identity)
        verdict = judge([_version(row) for row in stored], arriving(message))
        if verdict is Verdict.DUPLICATE:
            return Outcome.DUPLICATE
        if verdict is Verdict.CONFLICT:
            return _conflict(message, stored[0])
        self._keep_young(identity, message, stored)
        if verdict is Verdict.RETIMED:
            return Outcome.RETIMED
        counting = max(stored, key=lambda row: _version(row).strength)
        if self._is_sealed(counting):
            return _refuse(message, "too_old", "what it belongs to is archived")
        self._execute(f"insert into usage.event_versions ({_IDENTIFIED}) values ({_IDENTIFIED_VALUES})", message)
        self._execute(_ADD_EVENT, message)
        if verdict is Verdict.WEAKER:
            self._supersede(self.source, message.record.position, counting.source, counting.position)
            engine_sums.note_weaker(self.connection, message.event)
        else:
            self._take_the_place(message, counting)
        return Outcome.APPLIED

    def _take_the_place(self, message: Accepted, counting: Any) -> None:
        """What counted, with its corrections, leaves the windows; the arrival enters under its own keys and time."""
        mine = (self.source, message.record.position)
        replaced = [
            row
            for row in self._counting(identity_of(message.event), counting.completed_at)
            if (row.source, row.position) != mine
        ]
        for row in replaced:
            self._count(row, -1)
            self._supersede(row.source, row.position, *mine)
            engine_sums.note_superseded(self.connection, decode(replaced[0].raw), decode(row.raw))
        engine_sums.note_new(self.connection, [message.event])
        (entered,) = [
            row
            for row in self._counting(identity_of(message.event), message.completed_at)
            if (row.source, row.position) == mine
        ]
        self._count(entered, +1)

    def _correct(self, message: Accepted) -> Outcome | Refused:
        """A correction: signed deltas, counted where the event that it corrects counts (rule 1.3)."""
        event = message.event
        original = original_of(event)
        stored = self._stored_versions(original)
        if event.corrects != str(event_id_of(original)):
            return _refuse(message, "invalid", "corrects: not the event_id of this tenant, request and attempt")
        if not stored:
            return _refuse(message, "orphan", "what it corrects has not arrived yet")
        known = self._stored_versions(identity_of(event))
        verdict = judge([_version(row) for row in known], arriving(message)) if known else None
        if verdict is Verdict.DUPLICATE:
            return Outcome.DUPLICATE
        if verdict is Verdict.CONFLICT:
            return _conflict(message, known[0])
        if verdict is Verdict.RETIMED:
            self._keep_young(identity_of(event), message, known)
            return Outcome.RETIMED
        counting = max(stored, key=lambda row: _version(row).strength)
        if self._is_sealed(counting):
            return _refuse(message, "too_old", "what it corrects is archived")
        rows = self._counting(original, counting.completed_at)
        # The same correction as a weaker source told it leaves, as with an event (rule 1.5)
        told = [row for row in rows if row.kind == "correction" and row.correction_no == event.correction_no]
        if verdict is not Verdict.WEAKER:
            left = [row for row in rows if row not in told]
            sums = {name: sum(getattr(row, name) for row in left) + getattr(event, name) for name in COUNTS}
            if min(sums.values()) < 0 or sums["cache_hit_tokens"] > sums["input_tokens"]:
                return _refuse(message, "invalid", f"would leave {', '.join(f'{k} {v}' for k, v in sums.items())}")
        table = "event_versions" if known else "event_identities"
        self._execute(f"insert into usage.{table} ({_IDENTIFIED}) values ({_IDENTIFIED_VALUES})", message)
        if known:
            self._keep_young(identity_of(event), message, known)
        corrected = {key: getattr(rows[0], key) for key in WINDOW_KEY} | {"completed_at": counting.completed_at}
        self._execute(_ADD_EVENT, message, **corrected)
        mine = (self.source, message.record.position)
        if verdict is Verdict.WEAKER:
            stronger = max(known, key=lambda row: _version(row).strength)
            self._supersede(*mine, stronger.source, stronger.position)
            engine_sums.note_weaker(self.connection, event)
            return Outcome.APPLIED
        for row in told:
            self._count(row, -1)
            self._supersede(row.source, row.position, *mine)
            engine_sums.note_superseded(self.connection, decode(rows[0].raw), decode(row.raw))
        for row in self._counting(original, counting.completed_at):
            if (row.source, row.position) == mine:
                self._count(row, +1)
        engine_sums.note_correction(self.connection, decode(rows[0].raw), event)
        return Outcome.APPLIED

    def _keep_young(self, identity: Identity, message: Accepted, stored: Sequence[Any]) -> None:
        """An identity that ages by its event's time is as young as the latest it came with."""
        if makes_younger(message, [_version(row) for row in stored]):
            self.connection.execute(
                "insert into usage.identity_ages as a (key, completed_at) values (%s, %s) on conflict (key) do update"
                " set completed_at = excluded.completed_at where a.completed_at < excluded.completed_at",
                (_key(identity), message.completed_at),
            )

    def _is_sealed(self, counting: Any) -> bool:
        return self.sealed_before is not None and counting.completed_at < self.sealed_before

    def _stored_versions(self, identity: Identity) -> list[Any]:
        """Every stored version of an identity, the first one locked; empty if it is not known."""
        with self.connection.cursor(row_factory=namedtuple_row) as cursor:
            key = (_key(identity),)
            first = cursor.execute(_STORED, key).fetchall()
            return [*first, *(cursor.execute(_VERSIONS, key).fetchall() if first else [])]

    def _counting(self, identity: Identity, completed_at: datetime) -> list[Any]:
        """The rows that count for a request's attempt at a completion time: the event, then its corrections."""
        with self.connection.cursor(row_factory=namedtuple_row) as cursor:
            return cursor.execute(_COUNTING, identity._asdict() | {"completed_at": completed_at}).fetchall()

    def _count(self, row: Any, sign: int) -> None:
        """Add an event's row to its windows and the feed (+1), or take it out (-1)."""
        values = {key: getattr(row, key) for key in WINDOW_KEY}
        values |= {name: sign * getattr(row, name) for name in COUNTS}
        values |= {"events": sign, "requests": sign * (row.kind == "usage"), "completed_at": row.completed_at}
        added = ", ".join(f"{name} = w.{name} + excluded.{name}" for name in WINDOW_SUMS)
        for table, width in _WIDTHS.items():
            self.connection.execute(
                f"insert into usage.{table} as w (bucket, {_KEYS}, {_SUMS})"
                f" values (time_bucket('{width}', %(completed_at)s),"
                f" {', '.join(f'%({name})s' for name in (*WINDOW_KEY, *WINDOW_SUMS))})"
                f" on conflict (tenant_id, bucket, {', '.join(WINDOW_KEY[1:])}) do update set {added}",
                values,
            )
        if row.purpose == "tenant":
            named = {"request_id": row.request_id, "attempt": row.attempt, "kind": row.kind}
            feed = values | named | {"source": self.source, "ingest_no": self.ingest_no}
            self.connection.execute(_ADD_FEED, feed)

    def _supersede(self, source: str, position: int, by_source: str, by_position: int) -> None:
        self.connection.execute(
            "insert into usage.superseded_events (source, position, by_source, by_position) values (%s, %s, %s, %s)",
            (source, position, by_source, by_position),
        )

    def _execute(self, statement: str, message: Accepted, **other: object) -> None:
        event = message.event
        values: dict[str, object] = {name: getattr(event, name) for name in event.__struct_fields__ if name != "labels"}
        values |= {
            "key": _key(identity_of(event)),
            "numbered_by": numbered_by(event.replica_id, event.boot_id),
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


def original_of(correction: UsageEvent) -> Identity:
    """The identity of what a correction corrects."""
    return Identity(correction.tenant_id, correction.request_id, correction.attempt, "usage", 0)


def makes_younger(message: Accepted, stored: Sequence[Version]) -> bool:
    """Whether an identity that ages by its event's time, being no UUIDv7, comes with a later one than ever before."""
    later = all(message.completed_at > version.completed_at for version in stored)
    return later and minted(message.event.request_id) is None


def arriving(message: Accepted) -> Version:
    """What a message is judged by."""
    e: UsageEvent = message.event
    by = numbered_by(e.replica_id, e.boot_id)
    return Version(message.content_digest, e.usage_source, message.completed_at, by)


def _version(row: Any) -> Version:
    by = None if row.numbered_by is None else bytes(row.numbered_by)
    return Version(bytes(row.content_digest), row.usage_source, row.completed_at, by)


def _refuse(message: Accepted, reason: str, detail: str) -> Refused:
    return Refused(message.record, reason, detail, message.event.tenant_id, message.event)


def _conflict(message: Accepted, counted: Any) -> Refused:
    return _refuse(message, "conflict", f"same identity as {counted.source}@{counted.position}, other content")
