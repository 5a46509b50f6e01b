"""From fetched messages to applied chunks: everything a reader of Kafka needs but the reading itself.

The Faust worker and the bare consumer hand over what they fetched and are told where to read on. What is committed is
decided here and in the database: by the source's row, which moves in the transaction of the events.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Protocol

import psycopg

from serving_adapter.errors import KafkaUnavailable
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import REPLICAS, USAGE
from streams import sources
from streams.apply import Checkpoint, ChunkApplier, no_checkpoint
from streams.chunks import Chunk, Record, contiguous_runs
from streams.database import connect, is_passing
from streams.errors import DatabaseUnavailable, PositionGap, SourceChanged
from streams.positions import Applied
from streams.release import Releaser
from streams.replica_apply import ReplicaChunkApplier
from streams.settings import DatabaseSettings
from streams.sources import Feed, LogReader, Partition, SourceState

RETRY_FIRST_S: Final = 0.2
RETRY_LONGEST_S: Final = 5.0
GO_BACK_TIMES: Final = 20
"""A chunk that was fetched before the seek may follow it; after so many there really is nothing at that position."""


class Message(Protocol):
    """A message as a Kafka client gives it."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int
    """When the broker appended it, in milliseconds since 1970."""


class Applier(Protocol):
    """What applies the chunks of one feed."""

    def apply(self, chunk: Chunk) -> Applied:
        """Apply what is new in the chunk, all or nothing."""


@dataclass(slots=True)
class Tally:
    """What this process has done since it started."""

    applied: int = 0
    duplicates: int = 0
    quarantined: int = 0
    skipped: int = 0
    chunks: int = 0
    reports: int = 0
    """Messages of replicas about themselves; the other counts are usage."""
    stopped: dict[Partition, str] = field(default_factory=dict)

    def add(self, done: Applied) -> None:
        """Count a chunk."""
        self.applied += done.applied
        self.duplicates += done.duplicates
        self.quarantined += done.quarantined
        self.skipped += done.skipped
        self.chunks += 1


class FeedTopic:
    """A topic that is read: what it brings, which log it is, and how far its partitions are."""

    def __init__(
        self, kafka: KafkaSettings, topic: str, feed: Feed, applier: Callable[[psycopg.Connection], Applier]
    ) -> None:
        """Raises KafkaUnavailable."""
        self.topic = topic
        self.feed: Feed = feed
        self.applier = applier
        self.log_reader = LogReader(kafka, topic)
        self.log = self.log_reader.read()
        self.asked_at = 0.0
        """When the log's ids were last asked for (monotonic seconds)."""
        self.states: dict[int, SourceState] = {}

    @property
    def ends(self) -> dict[Partition, int]:
        """How far each partition reached when the log was last read."""
        return {Partition(self.topic, number): end for number, end in self.log.ends.items()}


class Ingestion:
    """Applies what was fetched, chunk by chunk, in the one thread that calls `take`; the rest is for any thread."""

    def __init__(
        self,
        kafka: KafkaSettings,
        database: DatabaseSettings,
        *,
        say: Callable[[str], None] = print,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> None:
        """Read what the topics are and how far they are applied. Raises KafkaUnavailable, DatabaseUnavailable."""
        self._database = database
        self._say = say
        self._connection: psycopg.Connection | None = None
        self._appliers: dict[str, Applier] = {}
        self._went_back: dict[Partition, int] = {}
        self._moved: dict[Partition, int] = {}
        self._ending = threading.Event()
        self.tally = Tally()
        prefix = kafka.topic_prefix
        usage = FeedTopic(kafka, USAGE.name(prefix), "usage", lambda to: ChunkApplier(to, checkpoint))
        replicas = FeedTopic(kafka, REPLICAS.name(prefix), "replicas", ReplicaChunkApplier)
        self.feeds = {feed.topic: feed for feed in (usage, replicas)}
        with connect(database.url) as connection:
            for feed in self.feeds.values():
                sources.register(connection, feed.log, feed.feed)
                feed.states = sources.states(connection, feed.topic)
                self._stop_where_they_disagree(connection, feed)

    def end(self) -> None:
        """Give up waiting for the database: the process is to end, and what is not applied will be read again."""
        self._ending.set()

    def close(self) -> None:
        """Give the connection back, once `take` has returned for the last time."""
        if self._connection is not None:
            self._connection.close()

    def take(self, partition: Partition, messages: Sequence[Message], fetched_at: float) -> int | None:
        """Apply messages of a partition; returns the position to read again from, where one is missing.

        Waits for the database, whatever it takes. A partition that must not go on is left standing. `fetched_at` =
        monotonic seconds, after the fetch.
        """
        if partition in self.tally.stopped or not self.is_same_log(partition, fetched_at):
            return None
        records = [
            Record(m.offset, m.key, m.value or b"", datetime.fromtimestamp(m.timestamp / 1000, UTC)) for m in messages
        ]
        for run in contiguous_runs(records):
            try:
                if not self._apply(partition, run):
                    return None
            except PositionGap as gap:
                return self._go_back(partition, gap)
            except SourceChanged as changed:
                self.stand_still(partition, str(changed))
                return None
        return None

    def is_same_log(self, partition: Partition, fetched_at: float) -> bool:
        """Whether what was fetched came from the log that the stored position is about.

        The topic's id, which no other log ever has, is asked for after the fetch: if it is the one that was stored
        before it, the topic cannot have been another one in between. One question serves all partitions of a poll.
        """
        feed = self.feeds[partition.topic]
        if feed.asked_at <= fetched_at:
            asked_at = time.monotonic()
            try:
                if feed.log_reader.topic_id() != feed.log.topic_id:
                    feed.log = feed.log_reader.read()
            except KafkaUnavailable as error:
                self._say(f"Kafka: {error}; what was fetched is read again")
                return False  # a later chunk, or the sweep, finds the gap
            feed.asked_at = asked_at
        state = feed.states[partition.number]
        if (state.cluster_id, state.topic_id) == (feed.log.cluster_id, feed.log.topic_id):
            return True
        self.stand_still(partition, sources.disagreement(state, feed.log, partition.number) or "another log")
        return False

    def stand_still(self, partition: Partition, why: str) -> None:
        """Leave a partition where it is until a person has looked at it. Raises DatabaseUnavailable."""
        with connect(self._database.url) as connection:
            self._stop(connection, partition, why)

    def stored(self) -> dict[Partition, SourceState]:
        """The stored state of every partition. Raises DatabaseUnavailable, psycopg.OperationalError."""
        with connect(self._database.url) as connection:
            return {
                Partition(feed.topic, number): state
                for feed in self.feeds.values()
                for number, state in sources.states(connection, feed.topic).items()
            }

    def release_orphans(self) -> None:
        """Apply corrections whose original has come. Raises DatabaseUnavailable, psycopg.OperationalError."""
        with connect(self._database.url) as connection:
            Releaser(connection).release_orphans()

    def resume(self, states: Mapping[Partition, SourceState]) -> dict[Partition, int]:
        """Partitions that a person has resolved go on; returns the positions to read from."""
        resolved = [p for p in self.tally.stopped if states[p].stopped_because is None]
        for partition in resolved:
            self.feeds[partition.topic].states[partition.number] = states[partition]
            self._went_back.pop(partition, None)
            del self.tally.stopped[partition]
        return {partition: states[partition].next_position for partition in resolved}

    def take_hints(self) -> dict[Partition, int]:
        """Positions reached since the last time: where a restart may begin to read."""
        moved, self._moved = self._moved, {}
        return moved

    def read_logs(self) -> None:
        """Ask what the logs are and how far they reach; stop what disagrees. Raises KafkaUnavailable and as above."""
        for feed in self.feeds.values():
            asked_at = time.monotonic()
            feed.log = feed.log_reader.read()
            feed.asked_at = asked_at
            with connect(self._database.url) as connection:
                stored = sources.states(connection, feed.topic)
                self._stop_where_they_disagree(connection, feed, stored)

    def _stop_where_they_disagree(
        self, connection: psycopg.Connection, feed: FeedTopic, states: Mapping[int, SourceState] | None = None
    ) -> None:
        for number, state in (states or feed.states).items():
            partition = Partition(feed.topic, number)
            if partition not in self.tally.stopped and (why := sources.disagreement(state, feed.log, number)):
                self._stop(connection, partition, why)

    def _apply(self, partition: Partition, records: Sequence[Record]) -> bool:
        """Apply one chunk, waiting for the database; False if told to end meanwhile."""
        feed = self.feeds[partition.topic]
        chunk = Chunk(feed.states[partition.number].as_source, records, feed.log.epochs[partition.number])
        wait = RETRY_FIRST_S
        while True:
            try:
                done = self._apply_now(feed, chunk)
            except (psycopg.Error, DatabaseUnavailable) as error:
                if not is_passing(error):
                    raise
                if wait == RETRY_FIRST_S:
                    self._say(f"database: {str(error).splitlines()[0]}; waiting for it, nothing is lost")
                if self._ending.wait(wait):
                    return False
                wait = min(wait * 2, RETRY_LONGEST_S)
            else:
                self._count(partition, feed.feed, done)
                return True

    def _apply_now(self, feed: FeedTopic, chunk: Chunk) -> Applied:
        """(Re)connect if needed, then apply."""
        if self._connection is None:
            self._connection = connect(self._database.url, application="tollbook streams")
        try:
            if feed.topic not in self._appliers:
                self._appliers[feed.topic] = feed.applier(self._connection)
            return self._appliers[feed.topic].apply(chunk)
        except psycopg.Error as error:
            if is_passing(error):
                self._appliers.clear()
                self._connection.close()
                self._connection = None
            raise

    def _count(self, partition: Partition, feed: Feed, done: Applied) -> None:
        if feed == "usage":
            self.tally.add(done)
        else:
            self.tally.reports += done.applied
        self._moved[partition] = done.next_position
        self._went_back.pop(partition, None)

    def _go_back(self, partition: Partition, gap: PositionGap) -> int | None:
        """The position that is due; None, standing still, if the log does not have it."""
        feed = self.feeds[partition.topic]
        try:
            log = feed.log_reader.read()
        except KafkaUnavailable as error:
            self._say(f"Kafka: {error}; what was fetched is read again")
            return gap.expected
        state = replace(feed.states[partition.number], next_position=gap.expected)
        why = sources.disagreement(state, log, partition.number)
        if not why and self._went_back.get(partition, 0) >= GO_BACK_TIMES:
            why = (
                f"the log has nothing at position {gap.expected}, but at {gap.found}: a transaction's marker, or a loss"
            )
        if why:
            self.stand_still(partition, why)
            return None
        self._went_back[partition] = self._went_back.get(partition, 0) + 1
        return gap.expected

    def _stop(self, connection: psycopg.Connection, partition: Partition, why: str) -> None:
        self.tally.stopped[partition] = why
        source = self.feeds[partition.topic].states[partition.number].source
        self._say(f"STOPPED {source}: {why}; `tollbook streams resolve` lets it go on")
        sources.mark_stopped(connection, source, why)
