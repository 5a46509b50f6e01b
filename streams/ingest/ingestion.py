"""From fetched messages to applied chunks: everything a reader of Kafka needs but the reading itself.

The Faust worker and the bare consumer hand over what they fetched and are told where to read on. What is committed is
decided here and in the database: by the source's row, which moves in the transaction of the events.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Protocol, TypeVar

import psycopg

from serving_adapter.errors import KafkaUnavailable
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import REPLICAS, USAGE
from streams import alerts
from streams.alerts import Alert
from streams.database import connect, done_later, is_passing
from streams.errors import DatabaseUnavailable, PositionGap, SourceChanged, SourceStopped
from streams.ingest import sources
from streams.ingest.apply import Checkpoint, ChunkApplier, no_checkpoint
from streams.ingest.orphans import Orphans
from streams.ingest.positions import Applied
from streams.ingest.replica_apply import ReplicaChunkApplier
from streams.ingest.sources import Feed, Log, LogReader, Partition, SourceState
from streams.rules.chunks import Chunk, Record, contiguous_runs
from streams.settings import DatabaseSettings

RETRY_FIRST_S: Final = 0.2
RETRY_LONGEST_S: Final = 5.0
READ_LOGS_EVERY_S: Final = 5.0
GO_BACK_TIMES: Final = 20
"""A chunk that was fetched before the seek may follow it; after so many there really is nothing at that position."""

_LAST_MS: Final = 253_402_300_799_999
"""The end of the year 9999, in milliseconds since 1970."""
_Done = TypeVar("_Done")


class Message(Protocol):
    """A message as a Kafka client gives it."""

    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...
    @property
    def timestamp(self) -> int:
        """When the broker appended it, in milliseconds since 1970."""


class Observer(Protocol):
    """Who is told what happens, once a chunk; in the thread that calls `take`."""

    def chunk(self, feed: Feed, done: Applied, seconds: float) -> None:
        """A chunk was applied, by a transaction that took so long."""

    def database_wait(self) -> None:
        """A chunk could not be applied: the database is away, and the chunk will be tried again."""


class Unobserved:
    """Nobody is told."""

    def chunk(self, feed: Feed, done: Applied, seconds: float) -> None:
        """Nothing."""

    def database_wait(self) -> None:
        """Nothing."""


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

    @property
    def seen(self) -> int:
        """Usage messages with an outcome."""
        return self.applied + self.duplicates + self.quarantined

    def add(self, done: Applied) -> None:
        """Count a chunk."""
        self.applied += done.applied
        self.duplicates += done.duplicates
        self.quarantined += done.quarantined
        self.skipped += done.skipped
        self.chunks += 1


def appended_at(timestamp_ms: int) -> datetime:
    """When the broker appended a message, from a client's milliseconds since 1970.

    What no broker says, only a producer that may set the time (a topic not fit for production), is held within bounds.
    """
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0 if timestamp_ms < 0 else _LAST_MS / 1000, UTC)


class FeedTopic:
    """A topic that is read: what it brings, which log it is, and how far its partitions are."""

    def __init__(
        self, kafka: KafkaSettings, topic: str, feed: Feed, applier: Callable[[psycopg.Connection], Applier]
    ) -> None:
        """Raises KafkaUnavailable."""
        self.topic = topic
        self.feed: Feed = feed
        self.applier = applier
        self.states: dict[int, SourceState] = {}
        self._log_reader = LogReader(kafka, topic)
        self._asking = threading.Lock()
        self._asked_at = 0.0
        self.log = self._log_reader.read()

    def read_log(self) -> Log:
        """Ask what the log is and how far it reaches. Raises KafkaUnavailable."""
        with self._asking:
            return self._read_log()

    def log_after(self, fetched_at: float) -> Log:
        """The log as it is known to have been after a fetch (monotonic seconds). Raises KafkaUnavailable.

        Its topic's id is asked for if it was not since then; the rest only if that is another one.
        """
        with self._asking:
            if self._asked_at <= fetched_at:
                asked_at = time.monotonic()
                if self._log_reader.topic_id() != self.log.topic_id:
                    return self._read_log()
                self._asked_at = asked_at
            return self.log

    def _read_log(self) -> Log:
        asked_at = time.monotonic()
        self.log = self._log_reader.read()
        self._asked_at = asked_at
        return self.log

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
        observer: Observer | None = None,
    ) -> None:
        """Read what the topics are and how far they are applied. Raises KafkaUnavailable, DatabaseUnavailable."""
        self._database = database
        self._say = say
        self._connection: psycopg.Connection | None = None
        self._appliers: dict[str, Applier] = {}
        self._sweeping: Orphans | None = None
        self._went_back: dict[Partition, int] = {}
        self._sent_back_at: dict[Partition, float] = {}
        self._logs_read_at = time.monotonic()
        self.asked_in_vain: set[Partition] = set()
        """Partitions of which messages were passed by, because Kafka could not be asked whose they are."""
        self._moved: dict[Partition, int] = {}
        self._ending = threading.Event()
        self._observer = observer or Unobserved()
        self.trying_since: float | None = None
        """When the transaction in hand began (monotonic seconds); None between two."""
        self._taking_since: float | None = None
        self._busy_s = 0.0
        self.tally = Tally()
        prefix = kafka.topic_prefix
        usage = FeedTopic(kafka, USAGE.name(prefix), "usage", lambda to: ChunkApplier(to, checkpoint))
        replicas = FeedTopic(kafka, REPLICAS.name(prefix), "replicas", lambda to: ReplicaChunkApplier(to, checkpoint))
        self.feeds = {feed.topic: feed for feed in (usage, replicas)}
        with connect(database.url) as connection:
            for feed in self.feeds.values():
                sources.register(connection, feed.log, feed.feed)
                feed.states = sources.states(connection, feed.topic)
                self._compare_with_log(connection, feed)

    def end(self) -> None:
        """Give up waiting for the database: the process is to end, and what is not applied will be read again."""
        self._ending.set()

    def close(self) -> None:
        """Give the connections back, once `take` has returned for the last time."""
        if self._connection is not None:
            self._connection.close()
        if self._sweeping is not None:
            self._sweeping.connection.close()

    @property
    def busy_s(self) -> float:
        """For how many seconds `take` was at work since we started, also waiting for the database."""
        since = self._taking_since
        return self._busy_s + (time.monotonic() - since if since is not None else 0.0)

    def take(self, partition: Partition, messages: Sequence[Message], fetched_at: float) -> int | None:
        """Apply messages of a partition; returns the position to read again from, where one is missing.

        Waits for the database, whatever it takes. A partition that must not go on is left standing. `fetched_at` =
        monotonic seconds, after the fetch.
        """
        began = self._taking_since = time.monotonic()
        try:
            return self._take(partition, messages, fetched_at)
        finally:
            self._taking_since = None
            self._busy_s += time.monotonic() - began

    def _take(self, partition: Partition, messages: Sequence[Message], fetched_at: float) -> int | None:
        if partition in self.tally.stopped or fetched_at < self._sent_back_at.get(partition, 0.0):
            return None  # fetched before we went back: it comes again
        self._read_logs_when_due()
        if partition.number not in self.feeds[partition.topic].states:
            with done_later(), contextlib.suppress(KafkaUnavailable):
                self._add_partitions(self.feeds[partition.topic])
            if partition.number not in self.feeds[partition.topic].states:
                self.asked_in_vain.add(partition)
                return None
        if not self.is_same_log(partition, fetched_at) or partition in self.tally.stopped:
            return None
        records = [
            Record(m.offset, m.key, m.value or b"", appended_at(m.timestamp), m.headers, m.value is None)
            for m in messages
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
            except SourceStopped:
                return self._look_again(partition)
        return None

    def is_same_log(self, partition: Partition, fetched_at: float) -> bool:
        """Whether what was fetched came from the log that the stored position is about.

        The topic's id, which no other log ever has, is asked for after the fetch: if it is the one that was stored
        before it, the topic cannot have been another one in between. One question serves all partitions of a poll.
        """
        feed = self.feeds[partition.topic]
        try:
            log = feed.log_after(fetched_at)
        except KafkaUnavailable as error:
            self._say(f"Kafka: {error}; what was fetched is read again")
            self.asked_in_vain.add(partition)
            return False  # a later chunk, or the sweep, finds the gap
        self.asked_in_vain.discard(partition)
        state = feed.states[partition.number]
        if (state.cluster_id, state.topic_id) == (log.cluster_id, log.topic_id):
            return True
        self.stand_still(partition, sources.disagreement(state, log, partition.number) or "another log")
        return False

    def _look_again(self, partition: Partition) -> int | None:
        """Somebody stopped the source that we go by: stand still as well, or go on where it was resolved."""

        def read() -> SourceState:
            with connect(self._database.url) as connection:
                return sources.states(connection, partition.topic)[partition.number]

        state = self._waiting_for_the_database(read)
        if state is None:
            return None
        if state.stopped_because is not None:
            self._note_stopped(partition, state)
            return None
        self.feeds[partition.topic].states[partition.number] = state
        self._sent_back_at[partition] = time.monotonic()
        return state.next_position

    def stand_still(self, partition: Partition, why: str) -> None:
        """Leave a partition where it is until a person has looked at it. Waits for the database, to write that down."""
        self.tally.stopped[partition] = why

        def write() -> None:
            with connect(self._database.url) as connection:
                source = self.feeds[partition.topic].states[partition.number].source
                self._stop(connection, partition, source, why)

        self._waiting_for_the_database(write)

    def stored(self) -> dict[Partition, SourceState]:
        """The stored state of every partition. Raises DatabaseUnavailable, psycopg.Error."""
        with connect(self._database.url) as connection:
            return self.stored_in(connection)

    def stored_in(self, connection: psycopg.Connection) -> dict[Partition, SourceState]:
        """The same, by a connection of the caller's. Raises psycopg.Error."""
        return {
            Partition(feed.topic, number): state
            for feed in self.feeds.values()
            for number, state in sources.states(connection, feed.topic).items()
        }

    def sweep(self) -> dict[Partition, SourceState]:
        """Apply some corrections whose original has come; return the stored states. Raises as `stored`.

        For one thread at a time, over a connection that is kept.
        """
        if self._sweeping is None:
            self._sweeping = Orphans(connect(self._database.url, application="tollbook streams sweep"))
        try:
            self._sweeping.release_some()
            return self.stored_in(self._sweeping.connection)
        except psycopg.Error:
            self._sweeping.connection.close()
            self._sweeping = None
            raise

    def release_orphans(self) -> None:
        """Apply all corrections whose original has come. Raises DatabaseUnavailable, psycopg.Error."""
        with connect(self._database.url) as connection:
            Orphans(connection).release_all()

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
        self._logs_read_at = time.monotonic()
        with connect(self._database.url) as connection:
            for feed in self.feeds.values():
                self._compare_with_log(connection, feed)

    def _compare_with_log(self, connection: psycopg.Connection, feed: FeedTopic) -> None:
        """Read positions, then the log: whatever other workers apply in between, its end is not before a position.

        What disagrees is asked about once more: a log's beginning may have moved past a position that moved on as well.
        """
        for _ in range(2):
            stored = sources.states(connection, feed.topic)
            log = feed.read_log()
            going = {n: state for n, state in stored.items() if state.stopped_because is None}
            found = {n: why for n, state in going.items() if (why := sources.disagreement(state, log, n))}
            if not found:
                break
        for number, why in found.items():
            self._stop(connection, Partition(feed.topic, number), stored[number].source, why)
        for number, state in stored.items():
            if state.stopped_because is not None:
                self._note_stopped(Partition(feed.topic, number), state)

    def _read_logs_when_due(self) -> None:
        """A log that was cut below its position must be noticed before it has grown past it again."""
        if time.monotonic() - self._logs_read_at > READ_LOGS_EVERY_S:
            with done_later(), contextlib.suppress(KafkaUnavailable):
                self.read_logs()

    def _add_partitions(self, feed: FeedTopic) -> None:
        """The topic has more partitions than when we started."""
        log = feed.read_log()
        with connect(self._database.url) as connection:
            sources.register(connection, log, feed.feed)
            feed.states = sources.states(connection, feed.topic) | feed.states

    def _apply(self, partition: Partition, records: Sequence[Record]) -> bool:
        """Apply one chunk, waiting for the database; False if told to end meanwhile."""
        feed = self.feeds[partition.topic]
        chunk = Chunk(feed.states[partition.number].as_source, records, feed.log.epochs[partition.number])
        began = 0.0

        def apply() -> Applied:
            nonlocal began
            began = time.monotonic()
            return self._apply_now(feed, chunk)

        done = self._waiting_for_the_database(apply)
        if done is None:
            return False
        self._count(partition, feed.feed, done)
        self._observer.chunk(feed.feed, done, time.monotonic() - began)
        return True

    def _waiting_for_the_database(self, work: Callable[[], _Done]) -> _Done | None:
        """What `work` returns, tried again for as long as the database is away; None if told to end meanwhile."""
        wait = RETRY_FIRST_S
        while True:
            self.trying_since = time.monotonic()
            try:
                return work()
            except (psycopg.Error, DatabaseUnavailable) as error:
                if not is_passing(error):
                    raise
                if wait == RETRY_FIRST_S:
                    self._say(f"database: {str(error).splitlines()[0]}; waiting for it, nothing is lost")
                self._observer.database_wait()
                self.trying_since = None  # the pause is no attempt
                if self._ending.wait(wait):
                    return None
                wait = min(wait * 2, RETRY_LONGEST_S)
            finally:
                self.trying_since = None

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
            log = feed.read_log()
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
        self._sent_back_at[partition] = time.monotonic()
        return gap.expected

    def _note_stopped(self, partition: Partition, state: SourceState) -> None:
        """A partition was stopped before we came, or by another worker: it stands still for all."""
        if partition not in self.tally.stopped:
            self.tally.stopped[partition] = str(state.stopped_because)
            self._say(f"STOPPED {state.source}: {state.stopped_because}; `tollbook streams resolve` lets it go on")

    def _stop(self, connection: psycopg.Connection, partition: Partition, source: str, why: str) -> None:
        self.tally.stopped[partition] = why
        self._say(f"STOPPED {source}: {why}; `tollbook streams resolve` lets it go on")
        with connection.transaction():
            stopped = sources.mark_stopped(connection, source, why)
            if stopped is not None:  # each stop is alerted once, by whoever notes it
                position, at = stopped
                subject = {"source": source, "position": position, "why": why, "since": at.isoformat()}
                alert = Alert("source_stopped", source, subject, f"{source} stands still: {why}", at)
                alerts.raise_all(connection, [alert])
