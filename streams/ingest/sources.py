"""Kafka partitions as sources: their rows in the database, and whether a log is the one that a row is about."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

import psycopg

from streams import alerts
from streams.alerts import Alert
from streams.ingest.logs import Log
from streams.rules.chunks import Source

Feed = Literal["usage", "replicas"]
"""What a source brings: usage events, or replicas' reports about themselves."""


class Partition(NamedTuple):
    """A partition of a topic. As a tuple it equals Faust's own."""

    topic: str
    number: int


@dataclass(frozen=True, slots=True)
class SourceState:
    """A partition's row: the log that its position is about, and the position."""

    source: str
    cluster_id: str
    topic_id: str
    next_position: int
    stopped_because: str | None
    feed: Feed = "usage"
    leader_epoch: int = -1
    """By which the log was last known to hold what was applied of it; -1: never compared."""

    def as_source(self, leader_epoch: int | None = None) -> Source:
        """The source of the partition's chunks, for a reader that knows its log by this epoch."""
        return Source(self.source, self.cluster_id, self.topic_id, leader_epoch)


TRUNCATED: Final = "it was truncated"
"""Stands in why such a source stands still: below its position the log then has other messages."""

_GO_ON: Final = "; go on from "


def source_name(topic: str, partition: int, generation: int = 1) -> str:
    """The name of a partition's source: `kafka:tollbook.usage.v1/3`; `…/3@2` for the second log of that name."""
    return f"kafka:{topic}/{partition}" + (f"@{generation}" if generation > 1 else "")


def disagreement(state: SourceState, log: Log, partition: int) -> str | None:
    """Why the stored position says nothing about the log that is there now; None if it does.

    Comparing numbers alone would skip real messages silently (docs/spec/metering.md 4.1).
    """
    if state.cluster_id != log.cluster_id:
        return f"the cluster was {state.cluster_id}, now {log.cluster_id}"
    if state.topic_id != log.topic_id:
        return f"the topic was {state.topic_id}, now {log.topic_id}: it was deleted and made again"
    if partition not in log.ends:
        return f"the topic has no partition {partition} any more"
    at, begin, end = state.next_position, log.begins[partition], log.ends[partition]
    if end < at:
        return f"the log ends at {end}, before position {at}: {TRUNCATED}"
    if begin > at:
        return f"the log begins at {begin}: positions from {at} on are gone"
    return None


def with_go_on(why: str, position: int) -> str:
    """Why a source stands still, and from where on its log is to be read when it was cut."""
    return f"{why}{_GO_ON}{position}"


def go_on_from(why: str) -> int | None:
    """The position that `with_go_on` has put there."""
    _, _, position = why.rpartition(_GO_ON)
    return int(position) if position.isdecimal() else None


def register(connection: psycopg.Connection, log: Log, feed: Feed = "usage") -> None:
    """Make a row for each partition that has none: it begins where the log begins today, and that is kept.

    A log that has lost its beginning by then is alerted: what it held there was never read.
    """
    for partition, begin in sorted(log.begins.items()):
        name = source_name(log.topic, partition)
        with connection.transaction():
            if add(connection, name, log, begin, feed) and begin > 0:
                detail = f"{name} is read from {begin} on: what its log held before was gone when it was first seen"
                subject = {"source": name, "position": begin}
                alerts.raise_all(connection, [Alert("begun_late", name, subject, detail, datetime.now(UTC))])


def add(connection: psycopg.Connection, name: str, log: Log, position: int, feed: Feed) -> bool:
    """Make a source that begins at a position; whether it was not there."""
    added = connection.execute(
        "insert into usage.sources"
        " (source, cluster_id, topic_id, leader_epoch, first_position, next_position, feed)"
        " values (%s, %s, %s, -1, %s, %s, %s) on conflict do nothing",
        (name, log.cluster_id, log.topic_id, position, position, feed),
    )
    return added.rowcount == 1


STATES: Final = """
    select source, cluster_id, topic_id, next_position, stopped_because, feed, leader_epoch from usage.sources
    where source collate "C" >= %s and source collate "C" < %s
"""
"""By an index over the names: the releases among the sources are many, and this is asked every few seconds."""


def states(connection: psycopg.Connection, topic: str) -> dict[int, SourceState]:
    """The stored state of each partition of a topic, of the newest log that it is about."""
    prefix = source_name(topic, 0)[:-1]
    rows = connection.execute(STATES, (prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)))
    newest: dict[int, tuple[int, SourceState]] = {}
    for row in rows:
        partition, _, generation = row[0][len(prefix) :].partition("@")
        found = (int(generation or 1), SourceState(*row))
        newest[int(partition)] = max(newest.get(int(partition), found), found, key=lambda each: each[0])
    return {partition: state for partition, (_, state) in newest.items()}


def note_epoch(connection: psycopg.Connection, state: SourceState, leader_epoch: int) -> bool:
    """By this epoch the log holds what was applied of it; False if it was applied further since `state` was read."""
    noted = connection.execute(
        "update usage.sources set leader_epoch = greatest(leader_epoch, %s) where source = %s and next_position = %s",
        (leader_epoch, state.source, state.next_position),
    )
    return noted.rowcount == 1


def lag(connection: psycopg.Connection, log: Log) -> int:
    """Messages in the log that are not applied yet."""
    stored = states(connection, log.topic)
    return sum(end - (stored[p].next_position if p in stored else log.begins[p]) for p, end in log.ends.items())


def mark_stopped(connection: psycopg.Connection, source: str, because: str) -> tuple[int, datetime] | None:
    """Note why a source stands still; returns where, and since when, or None if it was noted before.

    Only `resolve` lets it go on.
    """
    return connection.execute(
        "update usage.sources set stopped_because = %s, changed_at = clock_timestamp()"
        " where source = %s and stopped_because is null returning next_position, changed_at",
        (because, source),
    ).fetchone()
