"""A chunk of a source's messages, and what may be done with it: values in, values out."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from serving_adapter.errors import RefusedEvent
from serving_adapter.events import UNREADABLE, KeyName, Seq, UsageEvent, decode_completed, decode_known_fields, key_of
from serving_adapter.identity import content_digest_of
from streams.errors import PositionGap

FUTURE_ALLOWED: Final = timedelta(minutes=5)
"""How far an event's completion may lie after the broker received it (docs/spec/metering.md 2)."""

LATE_AFTER: Final = timedelta(hours=1)


class Record(NamedTuple):
    """One message: where it stands in its source, and when the broker appended it."""

    position: int
    key: bytes | None
    value: bytes
    appended_at: datetime
    headers: Sequence[tuple[str, bytes | None]] = ()
    is_null: bool = False
    """Whether the message has no value, which is read as an empty one."""
    unreadable: str = ""
    """What of it could not be read, its value aside; it is refused for that."""


def headers_of(names: Sequence[bytes], values: Sequence[bytes | None]) -> list[tuple[str, bytes | None]]:
    """A message's headers, from how they are stored: a name need not be text that PostgreSQL stores."""
    return [(name.decode("utf-8", "replace"), value) for name, value in zip(names, values, strict=True)]


@dataclass(frozen=True, slots=True)
class Source:
    """Where messages come from: a Kafka partition, known by cluster and topic id, not by name alone."""

    name: str
    cluster_id: str
    topic_id: str
    leader_epoch: int | None = None
    """By which whoever reads it knows that the log holds what was applied; None: it is no log."""


Ranges = Sequence[tuple[int, int]]
"""Positions from one to before another, in order, none touching the next."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive messages of one source."""

    source: Source
    records: Sequence[Record]
    judged_at: datetime | None = None
    """By which clock a usage event lies in the future, where that is later than when the broker appended it."""
    empty: Ranges = ()
    """Positions of which the log itself has proved that they hold no message: they may be missing."""


class Number(NamedTuple):
    """An event's number in its boot's sequence."""

    replica_id: str
    boot_id: str
    seq: int


class Accepted(NamedTuple):
    """A message that holds a usage event which may be counted, if it is not there already."""

    record: Record
    event: UsageEvent
    completed_at: datetime
    content_digest: bytes
    rating_band: str = ""


class Refused(NamedTuple):
    """A message for the quarantine, and why; with its event, where it could be decoded."""

    record: Record
    reason: str
    detail: str
    tenant_id: str | None
    event: UsageEvent | None = None


def not_yet_applied(source: str, next_position: int, records: Sequence[Record], empty: Ranges = ()) -> Sequence[Record]:
    """The records from `next_position` on: all, a part, or none of them.

    Raises PositionGap when a position would be skipped, before the chunk or within it, that is not `empty`.
    """
    for expected, found in holes(next_position, records):
        if not _within(empty, expected, found):
            raise PositionGap(source, expected, found)
    first, last = records[0].position, records[-1].position
    if last - first == len(records) - 1:  # no hole, not even among the positions that are applied
        return records[max(0, next_position - first) :]
    return [record for record in records if record.position >= next_position]


def holes(next_position: int, records: Sequence[Record]) -> list[tuple[int, int]]:
    """Positions from `next_position` on that are missing before the last record. Usually none.

    A record that does not come behind the one before it stands there as a range that ends before it begins.
    """
    first = records[0].position
    found = [(next_position, first)] if first > next_position else []
    found += [(a.position + 1, b.position) for a, b in pairwise(records) if b.position != a.position + 1]
    return [(max(a, next_position) if a < b else a, b) for a, b in found if b > next_position or b < a]


def _within(ranges: Ranges, first: int, after: int) -> bool:
    at = bisect_right(ranges, first, key=lambda each: each[0]) - 1
    return at >= 0 and first < after <= ranges[at][1]


def read(record: Record, judged_at: datetime | None = None) -> Accepted | Refused:
    """Decode one message and check what needs no database. `judged_at` as a chunk's."""
    try:
        event, at = decode_completed(record.value)
    except RefusedEvent as refused:
        key = key_of(record.value)
        tenant_id = key.decode() if key is not None else None
        later = decode_known_fields(record.value) if refused.reason == "unsupported" else None
        return Refused(record, refused.reason, str(refused), tenant_id, later)
    if at > record.appended_at + FUTURE_ALLOWED and (judged_at is None or at > judged_at + FUTURE_ALLOWED):
        detail = f"timestamp {at.isoformat()} lies after {record.appended_at.isoformat()}, when it was received"
        return Refused(record, "future", detail, event.tenant_id, event)
    if record.unreadable:
        return Refused(record, "invalid", record.unreadable, event.tenant_id, event)
    return Accepted(record, event, at, content_digest_of(event))


def late_before(appended_at: datetime) -> datetime:
    """An event that was completed before this came late: before the hour that precedes the one of its arrival."""
    return appended_at.replace(minute=0, second=0, microsecond=0) - LATE_AFTER


def number_of(event: UsageEvent) -> Number | None:
    """The event's number, if it has all of replica, boot and number."""
    if not event.replica_id or not event.boot_id or event.seq is None:
        return None
    return Number(event.replica_id, event.boot_id, event.seq)


class _NumberOnly(msgspec.Struct, gc=False):
    replica_id: KeyName
    boot_id: KeyName
    seq: Seq


_decode_number = msgspec.json.Decoder(_NumberOnly).decode


def number_in(refused: Refused) -> Number | None:
    """The number of a refused message, where it can be read: it fills its place all the same (rule 1.5)."""
    if refused.event is not None:
        return number_of(refused.event)
    try:
        found = _decode_number(refused.record.value)
    except UNREADABLE:
        return None
    if not found.replica_id or not found.boot_id or "\0" in found.replica_id + found.boot_id:
        return None
    return Number(found.replica_id, found.boot_id, found.seq)


def digest(records: Iterable[Record]) -> bytes:
    """SHA-256 over positions and messages: what a source held, when it no longer holds it."""
    sha = hashlib.sha256()
    for record in records:
        sha.update(b"%d:%d:" % (record.position, len(record.value)))
        sha.update(record.value)
    return sha.digest()
