"""From fetched messages to applied chunks: everything a reader of Kafka needs but the reading itself.

The Faust worker and the bare consumer hand over what they fetched and are told where to read on. What is committed is
decided here and in the database: by the source's row, which moves in the transaction of the events.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import psycopg

from serving_adapter.errors import KafkaUnavailable
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import REPLICAS, USAGE
from streams.database import connect, done_later, is_passing
from streams.errors import LeaderChanged, PositionGap, SourceChanged, SourceStopped
from streams.ingest import sources
from streams.ingest.apply import Checkpoint, ChunkApplier, no_checkpoint
from streams.ingest.feed_topics import Applier, FeedTopic, Message, record_of
from streams.ingest.log_gaps import Explain, LogGaps, unexplained
from streams.ingest.log_watch import LogWatch
from streams.ingest.orphans import OrphanSweep
from streams.ingest.patience import Patience
from streams.ingest.positions import Applied
from streams.ingest.replica_apply import ReplicaChunkApplier
from streams.ingest.sources import Feed, Partition, SourceState
from streams.ingest.tally import Observer, Tally, Unobserved, WorkTime
from streams.rules.chunks import Chunk, Ranges, Record, holes
from streams.settings import DatabaseSettings

READ_LOGS_EVERY_S: Final = 5.0


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
        explain: Explain = unexplained,
    ) -> None:
        """Read what the topics are and how far they are applied. Raises KafkaUnavailable, DatabaseUnavailable."""
        self._database = database
        self._say = say
        self._connection: psycopg.Connection | None = None
        self._appliers: dict[str, Applier] = {}
        self._orphans = OrphanSweep(database)
        self._sent_back_at: dict[Partition, float] = {}
        self._logs_read_at = time.monotonic()
        self.asked_in_vain: set[Partition] = set()
        """Partitions of which messages were passed by, because Kafka could not be asked whose they are."""
        self._moved: dict[Partition, int] = {}
        self._observer = observer or Unobserved()
        self._patience = Patience(say, self._observer)
        self._gaps = LogGaps(database, explain, self._patience, say)
        self._at_work = WorkTime()
        self.tally = Tally()
        self._log_watch = LogWatch(self.tally, say)
        prefix = kafka.topic_prefix

        def reached(step: str) -> None:
            if step == "committed":
                self._patience.note_progress()
            checkpoint(step)

        usage = FeedTopic(kafka, USAGE.name(prefix), "usage", lambda to: ChunkApplier(to, reached))
        replicas = FeedTopic(kafka, REPLICAS.name(prefix), "replicas", lambda to: ReplicaChunkApplier(to, reached))
        self.feeds = {feed.topic: feed for feed in (usage, replicas)}
        with connect(database.url) as connection:
            for feed in self.feeds.values():
                sources.register(connection, feed.log, feed.feed)
                feed.states = sources.states(connection, feed.topic)
                self._log_watch.compare(connection, feed)

    def end(self) -> None:
        """Give up waiting for the database: the process is to end, and what is not applied will be read again."""
        self._patience.end()

    def close(self) -> None:
        """Give the connections back, once `take` has returned for the last time."""
        if self._connection is not None:
            self._connection.close()
        self._orphans.close()

    @property
    def busy_s(self) -> float:
        """For how many seconds `take` was at work since we started, also waiting for the database."""
        return self._at_work.seconds

    @property
    def trying_since(self) -> float | None:
        """When the transaction in hand began (monotonic seconds); None between two."""
        return self._patience.trying_since

    def take(
        self, partition: Partition, messages: Sequence[Message], fetched_at: float, leader_epoch: int = -1
    ) -> int | None:
        """Apply messages of a partition; returns the position to read again from, where one is missing.

        Waits for the database, whatever it takes. A partition that must not go on is left standing. `fetched_at` =
        monotonic seconds, after the fetch; `leader_epoch` = of the leader that appended the newest of them (-1: not
        told).
        """
        with self._at_work.counted():
            return self._take(partition, messages, fetched_at, leader_epoch)

    def _take(
        self, partition: Partition, messages: Sequence[Message], fetched_at: float, leader_epoch: int
    ) -> int | None:
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
        if not self._log_watch.knows(partition, leader_epoch):
            # A leader that lacks the end of what was applied may have put other messages there, and these behind them
            try:
                with done_later():
                    self.read_logs()
            except KafkaUnavailable as error:
                self._say(f"Kafka: {error}; what was fetched is read again")
                self.asked_in_vain.add(partition)
                return None  # a later chunk, or the sweep, finds the gap
            return None if partition in self.tally.stopped else self._look_again(partition)
        if self._log_watch.knew_after(partition, fetched_at):
            return self._look_again(partition)
        try:
            self._apply_over_holes(partition, [record_of(message) for message in messages])
        except PositionGap as gap:
            return self._go_back(partition, gap)
        except SourceChanged as changed:
            self.stand_still(partition, str(changed))
        except (SourceStopped, LeaderChanged):
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
        """Somebody stopped the source that we go by, or its log had another leader: stand still as well, or read again
        from where it stands now."""

        def read() -> SourceState:
            with connect(self._database.url) as connection:
                return sources.states(connection, partition.topic)[partition.number]

        state = self._patience.wait(read)
        if state is None:
            return None
        if state.stopped_because is not None:
            self._log_watch.note_stopped(partition, state)
            return None
        self.feeds[partition.topic].states[partition.number] = state
        self._sent_back_at[partition] = now = time.monotonic()
        if not self._log_watch.knows(partition, state.leader_epoch):
            self._log_watch.note_known(partition, state.leader_epoch, now)
        return state.next_position

    def stand_still(self, partition: Partition, why: str) -> None:
        """Leave a partition where it is until a person has looked at it. Waits for the database, to write that down."""
        self.tally.stopped[partition] = why

        def write() -> None:
            feed, number = self.feeds[partition.topic], partition.number
            with connect(self._database.url) as connection:
                self._log_watch.stop(connection, feed, number, feed.states[number].source, why)

        self._patience.wait(write)

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
        return self._orphans.release_some(self.stored_in)

    def release_orphans(self) -> None:
        """Apply all corrections whose original has come. Raises DatabaseUnavailable, psycopg.Error."""
        self._orphans.release_all()

    def resume(self, states: Mapping[Partition, SourceState]) -> dict[Partition, int]:
        """Partitions that a person has resolved go on; returns the positions to read from."""
        resolved = [p for p in self.tally.stopped if states[p].stopped_because is None]
        for partition in resolved:
            self.feeds[partition.topic].states[partition.number] = states[partition]
            self._gaps.closed(partition)
            self._sent_back_at[partition] = time.monotonic()
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
                self._log_watch.compare(connection, feed)

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

    def _apply_over_holes(self, partition: Partition, records: Sequence[Record]) -> None:
        """Apply one chunk, with positions missing where the log has nothing; what lies before any other hole."""
        try:
            self._apply(partition, records)
            return
        except PositionGap as gap:
            if gap.expected >= gap.found:
                raise
            empty = self._empty(partition, holes(gap.expected, records))
        if self._patience.ending:
            return
        try:
            self._apply(partition, records, empty)
        except PositionGap as gap:
            before = [record for record in records if record.position < gap.expected]
            if before and not self._apply(partition, before, empty):
                return
            raise

    def _empty(self, partition: Partition, missing: Ranges) -> Ranges:
        """Which of these positions the log has proved to hold nothing, if it is still the same log."""
        empty = self._gaps.empty(partition, missing)
        return empty if empty and self.is_same_log(partition, time.monotonic()) else ()

    def pass_over(self, partition: Partition, first: int, after: int) -> bool:
        """Go on behind [first, after), if the log proves that there is nothing for anybody. Waits for the database."""
        if list(self._empty(partition, [(first, after)])) != [(first, after)]:
            return False
        return self._gaps.pass_over(self.feeds[partition.topic].states[partition.number], first, after)

    def _apply(self, partition: Partition, records: Sequence[Record], empty: Ranges = ()) -> bool:
        """Apply one chunk, waiting for the database; False if told to end meanwhile."""
        feed = self.feeds[partition.topic]
        source = feed.states[partition.number].as_source(self._log_watch.epoch_of(partition))
        chunk = Chunk(source, records, empty=empty)
        began = 0.0

        def apply() -> Applied:
            nonlocal began
            began = time.monotonic()
            return self._apply_now(feed, chunk)

        done = self._patience.wait(apply)
        if done is None:
            return False
        self._count(partition, feed.feed, done)
        self._observer.chunk(feed.feed, done, time.monotonic() - began)
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
        self._gaps.closed(partition)

    def _go_back(self, partition: Partition, gap: PositionGap) -> int | None:
        """The position that is due; None, standing still, if the log does not have it."""
        feed = self.feeds[partition.topic]
        try:
            why = self._gaps.stands(partition, feed.states[partition.number], feed.read_log(), gap)
        except KafkaUnavailable as error:
            self._say(f"Kafka: {error}; what was fetched is read again")
            return gap.expected
        if why:
            self.stand_still(partition, why)
            return None
        self._sent_back_at[partition] = time.monotonic()
        return gap.expected
