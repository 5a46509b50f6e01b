"""The Faust worker: membership, rebalancing, back-pressure and timers are Faust's; what is committed is not.

Faust never acknowledges anything (`acks=False`): the position that counts is the source's row, which moves in the
transaction of the events. What Kafka is told now and then is a hint about where to start reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import faust
import psycopg
from faust.types.tuples import TP

from serving_adapter.errors import KafkaUnavailable
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import REPLICAS, USAGE
from streams import sources
from streams.apply import ChunkApplier
from streams.chunks import Chunk, Record, contiguous_runs
from streams.coalescing import ChunkScheduler, ChunkSchema, Fetched
from streams.database import connect, is_passing
from streams.errors import DatabaseUnavailable, PositionGap, SourceChanged, WorkerCrashed
from streams.faust_credentials import credentials
from streams.kafka_security import security_of
from streams.positions import Applied
from streams.release import Releaser
from streams.replica_apply import ReplicaChunkApplier
from streams.settings import CHUNK_MESSAGES, CompletenessSettings, DatabaseSettings
from streams.upkeep import Upkeep

BUFFERED_CHUNKS: Final = 8
"""Chunks waiting in memory per worker; beyond that Faust stops fetching. 8 x 2,000 x 300 bytes is about 5 MB."""
POLL_MESSAGES: Final = 8000
SESSION_TIMEOUT_S: Final = 6
"""A worker that was killed is missed after this; its partitions then move."""
RETRY_FIRST_S: Final = 0.2
RETRY_LONGEST_S: Final = 5.0
HINT_EVERY_S: Final = 1.0
REPORT_EVERY_S: Final = 2.0
DRAIN_CHECK_EVERY_S: Final = 0.25
SWEEP_EVERY_S: Final = 2.0
UPKEEP_EVERY_S: Final = 1.0
QUIET_S: Final = 3.0
"""With nothing in hand for so long, what was fetched and is not applied was dropped on the way."""
READ_AGAIN_TIMES: Final = 3
"""After so many times there really is nothing: the log ends with a transaction's marker."""
GO_BACK_TIMES: Final = 20
"""A chunk that was fetched before the seek may follow it; after so many there really is nothing at that position."""


@dataclass(slots=True)
class Tally:
    """What this worker has done since it started."""

    applied: int = 0
    duplicates: int = 0
    quarantined: int = 0
    skipped: int = 0
    chunks: int = 0
    reports: int = 0
    """Messages of replicas about themselves; the other counts are usage."""
    stopped: dict[TP, str] = field(default_factory=dict)

    def add(self, done: Applied) -> None:
        """Count a chunk."""
        self.applied += done.applied
        self.duplicates += done.duplicates
        self.quarantined += done.quarantined
        self.skipped += done.skipped
        self.chunks += 1


class Applier(Protocol):
    """What applies the chunks of one feed."""

    def apply(self, chunk: Chunk) -> Applied:
        """Apply what is new in the chunk, all or nothing."""


class FeedTopic:
    """A topic that the worker reads: what it brings, which log it is, and how far its partitions are."""

    def __init__(
        self, kafka: KafkaSettings, topic: str, feed: sources.Feed, applier: Callable[[psycopg.Connection], Applier]
    ) -> None:
        """Raises KafkaUnavailable."""
        self.topic = topic
        self.feed: sources.Feed = feed
        self.applier = applier
        self.log_reader = sources.LogReader(kafka, topic)
        self.log = self.log_reader.read()
        self.log_read_at = 0.0
        self.states: dict[int, sources.SourceState] = {}
        self.drain_to = {self.tp(partition): end for partition, end in self.log.ends.items()}

    def tp(self, partition: int) -> TP:
        """One of its partitions, as Faust names it."""
        return TP(self.topic, partition)


class StreamsWorker:
    """Applies the partitions that the group gives it, until told to stop or, with `drain`, until all is applied."""

    def __init__(
        self,
        kafka: KafkaSettings,
        database: DatabaseSettings,
        *,
        drain: bool = False,
        chunk_messages: int = CHUNK_MESSAGES,
        completeness: CompletenessSettings | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self._kafka = kafka
        self._database = database
        self._drain = drain
        self._chunk_messages = chunk_messages
        self._say = say
        self._feeds: dict[str, FeedTopic] = {}
        self._appliers: dict[str, Applier] = {}
        self._credentials = credentials(security_of(kafka.properties))
        self._connection: psycopg.Connection | None = None
        # The database has a thread of its own, so that heartbeats go on while a chunk is applied.
        self._database_thread = ThreadPoolExecutor(1, thread_name_prefix="apply")
        self._upkeep_thread = ThreadPoolExecutor(1, thread_name_prefix="upkeep")
        self._upkeep = Upkeep(kafka, database, completeness or CompletenessSettings.from_environment(), say)
        self._taken_at = time.monotonic()
        self._went_back: dict[TP, int] = {}
        self._read_again: dict[TP, int] = {}
        self._in_hand = False
        self._hints: dict[TP, int] = {}
        self.tally = Tally()
        self._reported = 0
        self._reported_at = time.monotonic()

    def run(self) -> Tally:
        """Run until stopped by SIGTERM or SIGINT, or until drained. Raises KafkaUnavailable, DatabaseUnavailable."""
        prefix = self._kafka.topic_prefix
        for feed in (
            FeedTopic(self._kafka, USAGE.name(prefix), "usage", ChunkApplier),
            FeedTopic(self._kafka, REPLICAS.name(prefix), "replicas", ReplicaChunkApplier),
        ):
            self._feeds[feed.topic] = feed
        with connect(self._database.url) as connection:
            for feed in self._feeds.values():
                sources.register(connection, feed.log, feed.feed)
                feed.states = sources.states(connection, feed.topic)
                for partition, state in feed.states.items():
                    if why := sources.disagreement(state, feed.log, partition):
                        self._stop(connection, feed.tp(partition), why)
            if self._drain and not self._waiting(self._stored(connection)):
                self._end_upkeep()
                return self.tally
        with tempfile.TemporaryDirectory(prefix="tollbook-faust-") as scratch:
            app = self._app(scratch)
            logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
            worker = faust.Worker(app, loglevel="critical", quiet=True, redirect_stdouts=False, override_logging=False)
            worker.spinner = None  # it would write to the terminal even when quiet
            try:
                worker.execute_from_commandline()
            except SystemExit as ended:
                if ended.code:
                    raise WorkerCrashed(f"the worker crashed: {worker.crash_reason or app.crash_reason!r}") from None
            finally:
                self._database_thread.shutdown()
                self._end_upkeep()
                if self._connection is not None:
                    self._connection.close()
        return self.tally

    def _end_upkeep(self) -> None:
        """A last round, so that what this worker applied is folded when it has ended."""
        self._upkeep_thread.submit(self._upkeep.round).result()
        self._upkeep_thread.shutdown()
        self._upkeep.close()

    def _app(self, scratch: str) -> Any:
        """The Faust application: an agent for each feed, and a few timers."""
        app = faust.App(
            f"{self._kafka.topic_prefix}.streams",
            broker=";".join(f"kafka://{host}" for host in self._kafka.bootstrap.split(",")),
            broker_credentials=self._credentials,
            datadir=scratch,
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            stream_buffer_maxsize=BUFFERED_CHUNKS,
            broker_max_poll_records=POLL_MESSAGES,
            broker_session_timeout=SESSION_TIMEOUT_S,
            broker_heartbeat_interval=1,
            broker_rebalance_timeout=SESSION_TIMEOUT_S,
            consumer_auto_offset_reset="earliest",
            ConsumerScheduler=ChunkScheduler.of(self._chunk_messages),
            agent_supervisor="mode.CrashingSupervisor",
        )
        for feed in self._feeds.values():
            self._add_agent(app, feed)
        app.timer(HINT_EVERY_S)(lambda: self._hint(app))
        app.timer(REPORT_EVERY_S)(self._report)
        app.timer(UPKEEP_EVERY_S)(self._keep_up)
        app.timer(SWEEP_EVERY_S)(lambda: self._sweep(app))
        if self._drain:
            app.timer(DRAIN_CHECK_EVERY_S)(lambda: self._stop_when_drained(app))
        return app

    def _add_agent(self, app: Any, feed: FeedTopic) -> None:
        """The agent that applies a feed's chunks."""

        async def apply_chunks(stream: Any) -> None:
            async for event in stream.events():
                self._in_hand = True
                try:
                    await self._take(app, feed, event.message.partition, event.value)
                finally:
                    self._in_hand, self._taken_at = False, time.monotonic()

        app.agent(app.topic(feed.topic, schema=ChunkSchema(), acks=False), name=f"apply-{feed.feed}")(apply_chunks)

    async def _keep_up(self) -> None:
        """Completeness check and alerts, in their own thread: a chunk never waits for them."""
        await asyncio.get_running_loop().run_in_executor(self._upkeep_thread, self._upkeep.round)

    async def _take(self, app: Any, feed: FeedTopic, partition: int, fetched: Fetched) -> None:
        """Apply what was fetched of a partition; one that must not go on is left standing."""
        if feed.tp(partition) in self.tally.stopped or not await self._is_same_log(feed, partition, fetched.at):
            return
        records = [
            Record(m.offset, m.key, m.value or b"", datetime.fromtimestamp(m.timestamp / 1000, UTC))
            for m in fetched.records
        ]
        for run in contiguous_runs(records):
            if not await self._apply(app, feed, partition, run):
                return

    async def _apply(self, app: Any, feed: FeedTopic, partition: int, records: Sequence[Record]) -> bool:
        """Apply one chunk, whatever it takes; False if the partition cannot go on with it."""
        tp = feed.tp(partition)
        chunk = Chunk(feed.states[partition].as_source, records, feed.log.epochs[partition])
        wait = RETRY_FIRST_S
        while True:
            try:
                done = await self._in_database(self._apply_now, feed, chunk)
            except (psycopg.OperationalError, psycopg.InterfaceError, DatabaseUnavailable) as error:
                if not is_passing(error):
                    raise
                if wait == RETRY_FIRST_S:
                    self._say(f"database: {str(error).splitlines()[0]}; waiting for it, nothing is lost")
                await asyncio.sleep(wait)
                wait = min(wait * 2, RETRY_LONGEST_S)
            except PositionGap as gap:
                await self._go_back(app, feed, partition, gap)
                return False
            except SourceChanged as changed:
                await self._stand_still(tp, str(changed))
                return False
            else:
                if feed.feed == "usage":
                    self.tally.add(done)
                else:
                    self.tally.reports += done.applied
                self._hints[tp] = done.next_position
                self._went_back.pop(tp, None)
                self._read_again.pop(tp, None)
                return True

    async def _is_same_log(self, feed: FeedTopic, partition: int, fetched_at: float) -> bool:
        """Whether what was fetched came from the log that the stored position is about.

        The ids are asked for after the fetch: if they are those that were stored before it, the topic cannot have been
        another one in between. One question serves all partitions of a poll.
        """
        if feed.log_read_at <= fetched_at:
            asked_at = time.monotonic()
            try:
                feed.log = await asyncio.to_thread(feed.log_reader.read)
            except KafkaUnavailable as error:
                self._say(f"Kafka: {error}; what was fetched is read again")
                return False  # the next chunk finds a gap and goes back
            feed.log_read_at = asked_at
        state = feed.states[partition]
        if (state.cluster_id, state.topic_id) == (feed.log.cluster_id, feed.log.topic_id):
            return True
        why = sources.disagreement(state, feed.log, partition) or "another log"
        await self._stand_still(feed.tp(partition), why)
        return False

    def _apply_now(self, feed: FeedTopic, chunk: Chunk) -> Applied:
        """In the database thread: (re)connect if needed, then apply."""
        if self._connection is None:
            self._connection = connect(self._database.url, application="tollbook streams")
        try:
            if feed.topic not in self._appliers:
                self._appliers[feed.topic] = feed.applier(self._connection)
            return self._appliers[feed.topic].apply(chunk)
        except (psycopg.OperationalError, psycopg.InterfaceError):
            self._appliers.clear()
            self._connection.close()
            self._connection = None
            raise

    async def _in_database(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._database_thread, call, *args)

    async def _go_back(self, app: Any, feed: FeedTopic, partition: int, gap: PositionGap) -> None:
        """Read again from the position that is due; stand still if the log does not have it."""
        tp = feed.tp(partition)
        log = await asyncio.to_thread(feed.log_reader.read)
        state = replace(feed.states[partition], next_position=gap.expected)
        if why := sources.disagreement(state, log, partition):
            await self._stand_still(tp, why)
        elif self._went_back.get(tp, 0) >= GO_BACK_TIMES:
            why = (
                f"the log has nothing at position {gap.expected}, but at {gap.found}: a transaction's marker, or a loss"
            )
            await self._stand_still(tp, why)
        elif tp in app.consumer.assignment():
            self._went_back[tp] = self._went_back.get(tp, 0) + 1
            await app.consumer.seek_wait({tp: gap.expected})

    async def _stand_still(self, tp: TP, why: str) -> None:
        """Leave a partition where it is until a person has looked at it."""

        def note() -> None:
            with connect(self._database.url) as connection:
                self._stop(connection, tp, why)

        await self._in_database(note)

    def _stop(self, connection: psycopg.Connection, tp: TP, why: str) -> None:
        self.tally.stopped[tp] = why
        source = self._feeds[tp.topic].states[tp.partition].source
        self._say(f"STOPPED {source}: {why}; `tollbook streams resolve` lets it go on")
        sources.mark_stopped(connection, source, why)

    def _stored(self, connection: psycopg.Connection) -> dict[TP, sources.SourceState]:
        """The stored state of every partition."""
        return {
            feed.tp(partition): state
            for feed in self._feeds.values()
            for partition, state in sources.states(connection, feed.topic).items()
        }

    async def _sweep(self, app: Any) -> None:
        """Release corrections whose original has come; go on where a person has resolved, or where messages got lost
        between the broker and us.
        """
        began = time.monotonic()

        def look() -> dict[TP, sources.SourceState]:
            with connect(self._database.url) as connection:
                Releaser(connection).release_orphans()
                return self._stored(connection)

        try:
            states = await asyncio.to_thread(look)
        except (psycopg.OperationalError, DatabaseUnavailable):
            return
        for tp in [tp for tp in self.tally.stopped if states[tp].stopped_because is None]:
            self._feeds[tp.topic].states[tp.partition] = states[tp]
            self._went_back.pop(tp, None)
            del self.tally.stopped[tp]
            if tp in app.consumer.assignment():
                await app.consumer.seek_wait({tp: states[tp].next_position})
        await self._read_what_was_dropped(app, states, began)

    async def _read_what_was_dropped(self, app: Any, states: Mapping[TP, sources.SourceState], began: float) -> None:
        """Go back where more was fetched than is applied, and nothing is in hand.

        Faust drops what it had fetched before a rebalance, and we what came while Kafka could not be asked. A later
        message would show the gap; this is for when there is none.
        """
        if self._in_hand or self._taken_at > began - QUIET_S:
            return
        for tp, state in states.items():
            times = self._read_again.get(tp, 0)
            if tp in self.tally.stopped or tp not in app.consumer.assignment() or times >= READ_AGAIN_TIMES:
                continue
            if (await app.consumer.position(tp) or 0) > state.next_position:
                self._read_again[tp] = times + 1
                await app.consumer.seek_wait({tp: state.next_position})

    async def _hint(self, app: Any) -> None:
        """Tell Kafka where a restart may begin to read. Losing it costs time, never an event."""
        assigned = app.consumer.assignment()
        offsets = {tp: at for tp, at in self._hints.items() if tp in assigned}
        if offsets:
            self._hints.clear()
            # Not public; the version is pinned. The public `commit` offers only what was acknowledged.
            await app.consumer._commit(offsets)

    async def _report(self) -> None:
        """Say how far this worker is, when something has changed."""
        now, tally = time.monotonic(), self.tally
        seen = tally.applied + tally.duplicates + tally.quarantined
        if seen == self._reported:
            return
        rate = (seen - self._reported) / (now - self._reported_at)
        self._reported, self._reported_at = seen, now
        self._say(
            f"applied {tally.applied:,}, duplicates {tally.duplicates:,}, quarantined {tally.quarantined:,}"
            f" ({rate:,.0f} messages/s)"
        )

    async def _stop_when_drained(self, app: Any) -> None:
        """End the process once every partition is applied up to the end that the log had when we started."""

        def stored() -> dict[TP, sources.SourceState]:
            with connect(self._database.url) as connection:
                return self._stored(connection)

        with contextlib.suppress(DatabaseUnavailable):
            waiting = self._waiting(await asyncio.to_thread(stored))
            if waiting and not self._in_hand:
                waiting = [tp for tp in waiting if not await self._has_nothing_left(app, tp)]
            if not waiting:
                await self._in_database(self._release_orphans)
                os.kill(os.getpid(), signal.SIGTERM)

    async def _has_nothing_left(self, app: Any, tp: TP) -> bool:
        """Whether everything readable was read, though the log goes on: it ends with a marker. Then it stands still."""
        end = self._feeds[tp.topic].drain_to[tp]
        if self._read_again.get(tp, 0) < READ_AGAIN_TIMES or tp not in app.consumer.assignment():
            return False
        if (await app.consumer.position(tp) or 0) < end:
            return False
        await self._stand_still(tp, f"the log ends at {end}, but what is left has no message: a transaction's marker")
        return True

    def _waiting(self, states: Mapping[TP, sources.SourceState]) -> list[TP]:
        """Partitions that are not applied up to the end that the log had when we started, and could be."""
        ends = {tp: end for feed in self._feeds.values() for tp, end in feed.drain_to.items()}
        return [tp for tp, end in ends.items() if tp not in self.tally.stopped and states[tp].next_position < end]

    def _release_orphans(self) -> None:
        with connect(self._database.url) as connection:
            Releaser(connection).release_orphans()
