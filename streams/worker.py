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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import faust
import psycopg
from faust.types.tuples import TP

from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import REPLICAS, USAGE
from streams import sources
from streams.apply import ChunkApplier
from streams.chunks import Chunk, Record
from streams.coalescing import ChunkScheduler, ChunkSchema
from streams.database import connect
from streams.errors import DatabaseUnavailable, PositionGap, SourceChanged, WorkerCrashed
from streams.positions import Applied
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
UPKEEP_EVERY_S: Final = 1.0
DRAIN_CHECK_EVERY_S: Final = 0.25


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
    stopped: dict[str, str] = field(default_factory=dict)
    """Sources that stand still, and why."""

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
    """A topic that this worker reads: which log it is, and what applies its chunks."""

    def __init__(
        self, kafka: KafkaSettings, topic: str, feed: sources.Feed, applier: Callable[[psycopg.Connection], Applier]
    ) -> None:
        """Raises KafkaUnavailable."""
        self.topic = topic
        self.feed = feed
        self.applier = applier
        self.log_reader = sources.LogReader(kafka, topic)
        self.log = self.log_reader.read()

    def waiting(self, connection: psycopg.Connection) -> list[str]:
        """Sources that are not applied up to the end that the log had when the worker started."""
        stored = sources.states(connection, self.topic)
        ends = self.log.ends.items()
        return [self.log.source(p).name for p, end in ends if stored[p].next_position < end]


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
        self._feeds: list[FeedTopic] = []
        self._appliers: dict[str, Applier] = {}
        self._connection: psycopg.Connection | None = None
        # The database has a thread of its own, so that heartbeats go on while a chunk is applied.
        self._database_thread = ThreadPoolExecutor(1, thread_name_prefix="apply")
        self._upkeep_thread = ThreadPoolExecutor(1, thread_name_prefix="upkeep")
        self._upkeep = Upkeep(kafka, database, completeness or CompletenessSettings.from_environment(), say)
        self._hints: dict[TP, int] = {}
        self.tally = Tally()
        self._reported = 0
        self._reported_at = time.monotonic()

    def run(self) -> Tally:
        """Run until stopped by SIGTERM or SIGINT, or until drained. Raises KafkaUnavailable, DatabaseUnavailable."""
        prefix = self._kafka.topic_prefix
        self._feeds = [
            FeedTopic(self._kafka, USAGE.name(prefix), "usage", ChunkApplier),
            FeedTopic(self._kafka, REPLICAS.name(prefix), "replicas", ReplicaChunkApplier),
        ]
        with connect(self._database.url) as connection:
            for feed in self._feeds:
                sources.register(connection, feed.log, feed.feed)
            if self._drain and not any(feed.waiting(connection) for feed in self._feeds):
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
        """The Faust application: an agent for each feed, and timers."""
        app = faust.App(
            f"{self._kafka.topic_prefix}.streams",
            broker=";".join(f"kafka://{host}" for host in self._kafka.bootstrap.split(",")),
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
        for feed in self._feeds:
            self._add_agent(app, feed)
        app.timer(HINT_EVERY_S)(lambda: self._hint(app))
        app.timer(REPORT_EVERY_S)(self._report)
        app.timer(UPKEEP_EVERY_S)(self._keep_up)
        if self._drain:
            app.timer(DRAIN_CHECK_EVERY_S)(self._stop_when_drained)
        return app

    def _add_agent(self, app: Any, feed: FeedTopic) -> None:
        """The agent that applies a feed's chunks."""

        async def apply_chunks(stream: Any) -> None:
            async for event in stream.events():
                await self._apply(app, feed, event.message.partition, event.value)

        app.agent(app.topic(feed.topic, schema=ChunkSchema(), acks=False), name=f"apply-{feed.feed}")(apply_chunks)

    async def _keep_up(self) -> None:
        """Completeness check and alerts, in their own thread: a chunk never waits for them."""
        await asyncio.get_running_loop().run_in_executor(self._upkeep_thread, self._upkeep.round)

    async def _apply(self, app: Any, feed: FeedTopic, partition: int, messages: list[Any]) -> None:
        """Apply one chunk, whatever it takes; a partition that must not go on is left standing."""
        source = feed.log.source(partition)
        if source.name in self.tally.stopped:
            return
        records = [
            Record(m.offset, m.key, m.value or b"", datetime.fromtimestamp(m.timestamp / 1000, UTC)) for m in messages
        ]
        chunk = Chunk(source, records, feed.log.epochs[partition])
        wait = RETRY_FIRST_S
        while True:
            try:
                done = await self._in_database(self._apply_now, feed, chunk)
            except (psycopg.OperationalError, psycopg.InterfaceError, DatabaseUnavailable) as error:
                if wait == RETRY_FIRST_S:
                    self._say(f"database: {str(error).splitlines()[0]}; waiting for it, nothing is lost")
                await asyncio.sleep(wait)
                wait = min(wait * 2, RETRY_LONGEST_S)
            except PositionGap as gap:
                await self._go_back(app, feed, partition, gap)
                return
            except SourceChanged as changed:
                await self._stand_still(source.name, str(changed))
                return
            else:
                if feed.feed == "usage":
                    self.tally.add(done)
                else:
                    self.tally.reports += done.applied
                self._hints[TP(feed.topic, partition)] = done.next_position
                return

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
        """Read again from the position that is due, if the log still has it; else stand still."""
        log = await asyncio.to_thread(feed.log_reader.read)
        if log.begins[partition] > gap.expected:
            why = f"the log begins at {log.begins[partition]}: positions from {gap.expected} on are gone"
            await self._stand_still(gap.source, why)
        elif log.ends[partition] < gap.expected:
            await self._stand_still(gap.source, f"the log ends at {log.ends[partition]}, before {gap.expected}")
        else:
            await app.consumer.seek_wait({TP(feed.topic, partition): gap.expected})

    async def _stand_still(self, source: str, why: str) -> None:
        """Leave a partition where it is until a person has looked at it."""
        self.tally.stopped[source] = why
        self._say(f"STOPPED {source}: {why}")

        def note() -> None:
            with connect(self._database.url) as connection:
                sources.mark_stopped(connection, source, why)

        await self._in_database(note)

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

    async def _stop_when_drained(self) -> None:
        """End the process once every partition is applied up to the end that the log had when we started."""

        def waiting() -> list[str]:
            with connect(self._database.url) as connection:
                return [source for feed in self._feeds for source in feed.waiting(connection)]

        with contextlib.suppress(DatabaseUnavailable):
            if not set(await asyncio.to_thread(waiting)) - set(self.tally.stopped):
                os.kill(os.getpid(), signal.SIGTERM)
