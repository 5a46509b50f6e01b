"""The Faust worker: membership, rebalancing, back-pressure and timers are Faust's; what is committed is not.

Faust never acknowledges anything (`acks=False`): the position that counts is the source's row, which moves in the
transaction of the events (`ingestion.py`). What Kafka is told now and then is a hint about where to start reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import faust
import psycopg
from faust.types.tuples import TP

from serving_adapter.errors import KafkaUnavailable
from serving_adapter.settings import KafkaSettings
from streams.apply import Checkpoint, no_checkpoint
from streams.coalescing import ChunkScheduler, ChunkSchema, Fetched
from streams.errors import DatabaseUnavailable, WorkerCrashed
from streams.faust_credentials import credentials
from streams.ingestion import FeedTopic, Ingestion, Tally
from streams.kafka_security import security_of
from streams.settings import CHUNK_MESSAGES, CompletenessSettings, DatabaseSettings
from streams.sources import Partition, SourceState
from streams.upkeep import Upkeep

BUFFERED_CHUNKS: Final = 8
"""Chunks waiting in memory per worker; beyond that Faust stops fetching. 8 x 2,000 x 300 bytes is about 5 MB."""
POLL_MESSAGES: Final = 8000
SESSION_TIMEOUT_S: Final = 6
"""A worker that was killed is missed after this; its partitions then move."""
HINT_EVERY_S: Final = 1.0
REPORT_EVERY_S: Final = 2.0
DRAIN_CHECK_EVERY_S: Final = 0.25
SWEEP_EVERY_S: Final = 2.0
UPKEEP_EVERY_S: Final = 1.0
QUIET_S: Final = 3.0
"""With nothing in hand for so long, what was fetched and is not applied was dropped on the way."""
LOG_CHECK_EVERY_S: Final = 10.0
METADATA_AGE_MS: Final = 30_000
"""How soon a topic that was made again, or has more partitions, is noticed."""
STUCK_S: Final = 60.0
"""Messages are there and nothing came for so long: the consumer hangs, and a restarted worker does not."""
READ_AGAIN_TIMES: Final = 3
"""After so many times there really is nothing: the log ends with a transaction's marker."""


class StreamsWorker:
    """Applies the partitions that the group gives it, until told to stop or, with `drain`, until all is applied."""

    def __init__(
        self,
        kafka: KafkaSettings,
        database: DatabaseSettings,
        *,
        drain: bool = False,
        chunk_messages: int = CHUNK_MESSAGES,
        instance: str | None = None,
        completeness: CompletenessSettings | None = None,
        say: Callable[[str], None] = print,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> None:
        """`instance` names a place in the group that a restarted worker takes again at once (static membership).

        Raises KafkaUnavailable, DatabaseUnavailable.
        """
        self._kafka = kafka
        self._drain = drain
        self._chunk_messages = chunk_messages
        self._instance = instance
        self._say = say
        self._credentials = credentials(security_of(kafka.properties))
        self.ingestion = Ingestion(kafka, database, say=say, checkpoint=checkpoint)
        self._drain_to = {p: end for feed in self.ingestion.feeds.values() for p, end in feed.ends.items()}
        # A thread of its own, so that heartbeats to the group go on while a chunk is applied.
        self._ingestion_thread = ThreadPoolExecutor(1, thread_name_prefix="apply")
        self._upkeep_thread = ThreadPoolExecutor(1, thread_name_prefix="upkeep")
        self._upkeep = Upkeep(kafka, database, completeness or CompletenessSettings.from_environment(), say)
        self._taken_at = time.monotonic()
        self._logs_read_at = time.monotonic()
        self._in_hand = False
        self._read_again: dict[Partition, int] = {}
        self._hints: dict[Partition, int] = {}
        self._reported = 0
        self._reported_at = time.monotonic()

    @property
    def tally(self) -> Tally:
        """What this worker has done since it started."""
        return self.ingestion.tally

    def run(self) -> Tally:
        """Run until stopped by SIGTERM or SIGINT, or until drained. Raises WorkerCrashed and as `Ingestion` does."""
        if self._drain and not self._waiting(self.ingestion.stored()):
            self.ingestion.release_orphans()
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
                self.ingestion.end()
                self._ingestion_thread.shutdown()
                self.ingestion.close()
                self._end_upkeep()
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
            consumer_group_instance_id=self._instance,
            consumer_metadata_max_age_ms=METADATA_AGE_MS,
            ConsumerScheduler=ChunkScheduler.of(self._chunk_messages),
            agent_supervisor="mode.CrashingSupervisor",
        )
        for feed in self.ingestion.feeds.values():
            self._add_agent(app, feed)
        app.timer(HINT_EVERY_S)(lambda: self._hint(app))
        app.timer(REPORT_EVERY_S)(self._report)
        app.timer(UPKEEP_EVERY_S)(self._keep_up)
        app.timer(SWEEP_EVERY_S)(lambda: self._sweep(app))
        if self._drain:
            app.timer(DRAIN_CHECK_EVERY_S)(lambda: self._stop_when_drained(app))
        app.on_before_shutdown.connect(self._before_shutdown, weak=False)
        return app

    async def _before_shutdown(self, *_: Any, **__: Any) -> None:
        """A chunk that waits for the database waits no longer."""
        self.ingestion.end()

    def _add_agent(self, app: Any, feed: FeedTopic) -> None:
        """The agent that applies a feed's chunks."""

        async def apply_chunks(stream: Any) -> None:
            async for event in stream.events():
                self._in_hand = True
                try:
                    await self._take(app, Partition(feed.topic, event.message.partition), event.value)
                finally:
                    self._in_hand, self._taken_at = False, time.monotonic()

        app.agent(app.topic(feed.topic, schema=ChunkSchema(), acks=False), name=f"apply-{feed.feed}")(apply_chunks)

    async def _take(self, app: Any, partition: Partition, fetched: Fetched) -> None:
        """Apply what was fetched of a partition, and go back where a message is missing."""
        back_to = await self._in_ingestion(self.ingestion.take, partition, fetched.records, fetched.at)
        if back_to is not None:
            await self._seek(app, partition, back_to)

    async def _in_ingestion(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._ingestion_thread, call, *args)

    async def _seek(self, app: Any, partition: Partition, position: int) -> None:
        """Read on from a position, if the partition is ours."""
        if partition in app.consumer.assignment():
            await app.consumer.seek_wait({TP(*partition): position})

    async def _keep_up(self) -> None:
        """Completeness check and alerts, in their own thread: a chunk never waits for them."""
        await asyncio.get_running_loop().run_in_executor(self._upkeep_thread, self._upkeep.round)

    async def _sweep(self, app: Any) -> None:
        """Release corrections whose original has come; go on where a person has resolved, or where messages got lost
        between the broker and us.
        """
        began = time.monotonic()

        def look() -> dict[Partition, SourceState]:
            self.ingestion.release_orphans()
            return self.ingestion.stored()

        try:
            states = await asyncio.to_thread(look)
            for partition, position in self.ingestion.resume(states).items():
                await self._seek(app, partition, position)
            if not self._in_hand and self._taken_at <= began - QUIET_S:
                await self._read_what_was_dropped(app, states)
                await self._check_quiet_logs(app, states)
        except (psycopg.OperationalError, DatabaseUnavailable, KafkaUnavailable):
            return  # the next sweep

    async def _read_what_was_dropped(self, app: Any, states: Mapping[Partition, SourceState]) -> None:
        """Go back where more was fetched than is applied, while nothing is in hand.

        Faust drops what it had fetched before a rebalance, and we what came while Kafka could not be asked. A later
        message would show the gap; this is for when there is none.
        """
        for partition, state in states.items():
            times = self._read_again.get(partition, 0)
            if not self._is_ours(app, partition) or times >= READ_AGAIN_TIMES:
                continue
            if (await app.consumer.position(TP(*partition)) or 0) > state.next_position:
                self._read_again[partition] = times + 1
                await self._seek(app, partition, state.next_position)

    async def _check_quiet_logs(self, app: Any, states: Mapping[Partition, SourceState]) -> None:
        """Where nothing comes: is there nothing, or another log, or does the consumer hang? Then end."""
        now = time.monotonic()
        if now - self._logs_read_at < LOG_CHECK_EVERY_S:
            return
        self._logs_read_at = now
        await asyncio.to_thread(self.ingestion.read_logs)
        if now - self._taken_at <= STUCK_S:
            return
        for partition, end in ((p, end) for feed in self.ingestion.feeds.values() for p, end in feed.ends.items()):
            tried = self._read_again.get(partition, 0) >= READ_AGAIN_TIMES  # in vain: a marker at its end
            if self._is_ours(app, partition) and not tried and end > states[partition].next_position:
                raise WorkerCrashed(f"{partition}: nothing came for {STUCK_S:.0f} s, and there is something")

    def _is_ours(self, app: Any, partition: Partition) -> bool:
        """Whether we are to apply a partition."""
        return partition in app.consumer.assignment() and partition not in self.tally.stopped

    async def _hint(self, app: Any) -> None:
        """Tell Kafka where a restart may begin to read. Losing it costs time, never an event."""
        moved = self.ingestion.take_hints()
        for partition in moved:
            self._read_again.pop(partition, None)
        assigned = app.consumer.assignment()
        offsets = {TP(*partition): at for partition, at in moved.items() if partition in assigned}
        if offsets:
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
        with contextlib.suppress(DatabaseUnavailable):
            waiting = self._waiting(await asyncio.to_thread(self.ingestion.stored))
            if waiting and not self._in_hand:
                waiting = [partition for partition in waiting if not await self._has_nothing_left(app, partition)]
            if not waiting:
                await asyncio.to_thread(self.ingestion.release_orphans)
                os.kill(os.getpid(), signal.SIGTERM)

    async def _has_nothing_left(self, app: Any, partition: Partition) -> bool:
        """Whether everything readable was read, though the log goes on: it ends with a marker. Then it stands still."""
        end = self._drain_to[partition]
        if self._read_again.get(partition, 0) < READ_AGAIN_TIMES or partition not in app.consumer.assignment():
            return False
        if (await app.consumer.position(TP(*partition)) or 0) < end:
            return False
        why = f"the log ends at {end}, but what is left has no message: a transaction's marker"
        await asyncio.to_thread(self.ingestion.stand_still, partition, why)
        return True

    def _waiting(self, states: Mapping[Partition, SourceState]) -> list[Partition]:
        """Partitions that are not applied up to the end that the log had when we started, and could be."""
        return [
            partition
            for partition, end in self._drain_to.items()
            if partition not in self.tally.stopped and states[partition].next_position < end
        ]
