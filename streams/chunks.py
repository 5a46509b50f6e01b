"""A chunk of a source's messages, and what may be done with it: values in, values out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import msgspec

from serving_adapter.errors import RefusedEvent
from serving_adapter.events import Label, Seq, UsageEvent, completed_at, decode
from serving_adapter.identity import content_digest_of
from serving_adapter.ingest import key_of
from streams.errors import PositionGap

FUTURE_ALLOWED: Final = timedelta(minutes=5)
"""How far an event's completion may lie after the broker received it (docs/spec/metering.md 2)."""


class Record(NamedTuple):
    """One message: where it stands in its source, and when the broker appended it."""

    position: int
    key: bytes | None
    value: bytes
    appended_at: datetime


@dataclass(frozen=True, slots=True)
class Source:
    """Where messages come from: a Kafka partition, known by cluster and topic id, not by name alone."""

    name: str
    cluster_id: str
    topic_id: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive messages of one source."""

    source: Source
    records: Sequence[Record]
    leader_epoch: int = -1


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


class Refused(NamedTuple):
    """A message for the quarantine, and why."""

    record: Record
    reason: str
    detail: str
    tenant_id: str | None
    number: Number | None = None


def not_yet_applied(source: str, next_position: int, records: Sequence[Record]) -> Sequence[Record]:
    """The records from `next_position` on: all, a part, or none of them.

    Raises PositionGap when a position would be skipped, before the chunk or within it.
    """
    expected = records[0].position
    for record in records:
        if record.position != expected:
            raise PositionGap(source, expected, record.position)
        expected += 1
    first = records[0].position
    if first > next_position:
        raise PositionGap(source, next_position, first)
    return records[next_position - first :]


def read(record: Record) -> Accepted | Refused:
    """Decode one message and check what needs no database."""
    try:
        event = decode(record.value)
        at = completed_at(event)
    except RefusedEvent as refused:
        key = key_of(record.value)
        tenant_id = None if key is None or b"\0" in key else key.decode()
        return Refused(record, refused.reason, str(refused), tenant_id, _number_in(record.value))
    if at > record.appended_at + FUTURE_ALLOWED:
        detail = f"timestamp {at.isoformat()} lies after {record.appended_at.isoformat()}, when it was received"
        return Refused(record, "future", detail, event.tenant_id, number_of(event))
    if event.kind == "correction":
        detail = "corrections are not applied by this version"
        return Refused(record, "unsupported", detail, event.tenant_id, number_of(event))
    return Accepted(record, event, at, content_digest_of(event))


def number_of(event: UsageEvent) -> Number | None:
    """The event's number, if it has all of replica, boot and number."""
    if not event.replica_id or not event.boot_id or event.seq is None:
        return None
    return Number(event.replica_id, event.boot_id, event.seq)


class _NumberOnly(msgspec.Struct, gc=False):
    replica_id: Label
    boot_id: Label
    seq: Seq


_decode_number = msgspec.json.Decoder(_NumberOnly).decode


def _number_in(message: bytes) -> Number | None:
    """The number of a message that is refused: it fills its place in the sequence all the same (rule 1.5)."""
    try:
        found = _decode_number(message)
    except msgspec.DecodeError:
        return None
    if not found.replica_id or not found.boot_id or "\0" in found.replica_id + found.boot_id:
        return None
    return Number(found.replica_id, found.boot_id, found.seq)


def digest(records: Sequence[Record]) -> bytes:
    """SHA-256 over positions and messages: what a source held, when it no longer holds it."""
    sha = hashlib.sha256()
    for record in records:
        sha.update(b"%d:%d:" % (record.position, len(record.value)))
        sha.update(record.value)
    return sha.digest()
