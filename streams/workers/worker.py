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
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import faust
from faust.types.tuples import TP

from serving_adapter.errors import KafkaUnavailable
from streams.database import done_later
from streams.errors import WorkerCrashed
from streams.ingest.feed_topics import FeedTopic
from streams.ingest.sources import Partition
from streams.ingest.tally import Tally
from streams.workers.coalescing import ChunkScheduler, ChunkSchema, Fetched
from streams.workers.faust_credentials import credentials
from streams.workers.fetching import PromptTransport
from streams.workers.kafka_security import security_of
from streams.workers.reader import Reader
from streams.workers.sweeping import (
    DRAIN_CHECK_EVERY_S,
    HINT_EVERY_S,
    METADATA_AGE_MS,
    REPORT_EVERY_S,
    SESSION_TIMEOUT_S,
    SIGN_EVERY_S,
    SWEEP_EVERY_S,
    UPKEEP_EVERY_S,
)

BUFFERED_CHUNKS: Final = 1024
"""Never reached: fetching stops long before (`fetching.py`)."""
POLL_MESSAGES: Final = 8000
POLL_AT_LEAST_EVERY_S: Final = 365 * 86_400
"""The longest outage of the database that a worker waits out in its group: aiokafka leaves after this, and does not
come back. A worker that hangs is seen by other signs (`worker_health.py`).
"""


class Application(faust.App):
    """A Faust application that keeps nothing on disk: it has no tables."""

    def _create_directories(self) -> None:
        pass


class StreamsWorker(Reader):
    """The reader that works by Faust."""

    def _set_up(self) -> None:
        self._credentials = credentials(security_of(self._kafka.properties))
        # A thread of its own, so that heartbeats to the group go on while a chunk is applied.
        self._ingestion_thread = ThreadPoolExecutor(1, thread_name_prefix="apply")
        self._upkeep_thread = ThreadPoolExecutor(1, thread_name_prefix="upkeep")
        self._in_hand: set[str] = set()
        """Feeds of which a chunk is being applied."""
        self._queues: dict[str, asyncio.Queue[Any]] = {}

    def run(self) -> Tally:
        """Run until stopped by SIGTERM or SIGINT, or until drained. Raises WorkerCrashed and as `Ingestion` does."""
        if self._drain and not self._sweeper.waiting(self.ingestion.stored()):
            self.ingestion.release_orphans()
            self._end_upkeep()
            return self.tally
        app = self._app()
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
        self._upkeep_thread.submit(self._upkeep.round, at_once=True).result()
        self._upkeep_thread.shutdown()
        self._upkeep.close()

    def _app(self) -> Any:
        """The Faust application: an agent for each feed, and a few timers."""
        app = Application(
            f"{self._kafka.topic_prefix}.streams",
            broker=";".join(f"kafka://{host}" for host in self._kafka.bootstrap.split(",")),
            broker_credentials=self._credentials,
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            stream_buffer_maxsize=BUFFERED_CHUNKS,
            broker_max_poll_records=POLL_MESSAGES,
            broker_session_timeout=SESSION_TIMEOUT_S,
            broker_heartbeat_interval=1,
            broker_rebalance_timeout=SESSION_TIMEOUT_S,
            broker_max_poll_interval=POLL_AT_LEAST_EVERY_S,
            consumer_auto_offset_reset="earliest",
            consumer_group_instance_id=self._instance,
            consumer_metadata_max_age_ms=METADATA_AGE_MS,
            ConsumerScheduler=ChunkScheduler.of(self._chunk_messages),
            agent_supervisor="mode.CrashingSupervisor",
        )
        app.transport = PromptTransport(app.conf.broker_consumer, app)
        app.transport.waiting = lambda: sum(queue.qsize() for queue in self._queues.values())
        for feed in self.ingestion.feeds.values():
            self._add_agent(app, feed)
        app.timer(HINT_EVERY_S)(lambda: self._hint(app))
        app.timer(REPORT_EVERY_S)(self._report)
        app.timer(SIGN_EVERY_S)(self._sign)
        app.timer(UPKEEP_EVERY_S)(self._keep_up)
        app.timer(SWEEP_EVERY_S)(lambda: self._sweep(app))
        if self._drain:
            app.timer(DRAIN_CHECK_EVERY_S)(lambda: self._stop_when_drained(app))
        app.on_before_shutdown.connect(self._before_shutdown, weak=False)
        app.on_partitions_assigned.connect(self._on_assigned, weak=False)
        app.on_partitions_revoked.connect(self._on_revoked, weak=False)
        return app

    async def _before_shutdown(self, *_: Any, **__: Any) -> None:
        """A chunk that waits for the database waits no longer."""
        self.ingestion.end()

    async def _on_assigned(self, *args: Any, **_: Any) -> None:
        (_, assigned) = args
        self.signs.assigned, self.signs.in_group = frozenset(Partition(*tp) for tp in assigned), True

    async def _on_revoked(self, *_: Any, **__: Any) -> None:
        self.signs.assigned, self.signs.in_group = frozenset(), False

    def _add_agent(self, app: Any, feed: FeedTopic) -> None:
        """The agent that applies a feed's chunks."""

        async def apply_chunks(stream: Any) -> None:
            self._queues[feed.topic] = stream.channel.queue
            # Closed here, which stops the stream. Left to the interpreter, that may come after Faust has started the
            # agent anew on the same stream, which would then bring nothing (from Python 3.12 on it does).
            async with contextlib.aclosing(aiter(stream)) as chunks:
                async for fetched in chunks:
                    self._in_hand.add(feed.topic)
                    partition = Partition(feed.topic, stream.current_event.message.partition)
                    try:
                        await self._take(app, partition, fetched)
                    finally:
                        self._in_hand.discard(feed.topic)
                        self._sweeper.took(partition)

        app.agent(app.topic(feed.topic, schema=ChunkSchema(), acks=False), name=f"apply-{feed.feed}")(apply_chunks)

    async def _take(self, app: Any, partition: Partition, fetched: Fetched) -> None:
        """Apply what was fetched of a partition, and go back where a message is missing."""
        back_to = await self._in_ingestion(
            self.ingestion.take, partition, fetched.records, fetched.at, fetched.leader_epoch
        )
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
        with done_later(), contextlib.suppress(KafkaUnavailable):
            states = await asyncio.to_thread(self._sweeper.look)
            for partition, position in self.ingestion.resume(states).items():
                await self._seek(app, partition, position)
            fetched = await self._fetched(app)
            in_hand = bool(self._in_hand)
            dropped = await asyncio.to_thread(self._sweeper.dropped, states, fetched, in_hand=in_hand)
            for partition, position in dropped.items():
                await self._seek(app, partition, position)
            await asyncio.to_thread(self._sweeper.check_logs, states, fetched)

    async def _fetched(self, app: Any) -> dict[Partition, int | None]:
        """How far each of our partitions is fetched."""
        consumer = app.consumer
        return {
            Partition(*tp): await consumer.position(tp) for tp in consumer.assignment() if tp in consumer.assignment()
        }

    async def _hint(self, app: Any) -> None:
        """Tell Kafka where a restart may begin to read. Losing it costs time, never an event."""
        moved = self.ingestion.take_hints()
        self._sweeper.moved(moved)
        assigned = app.consumer.assignment()
        offsets = {TP(*partition): at for partition, at in moved.items() if partition in assigned}
        if offsets:
            # Not public; the version is pinned. The public `commit` offers only what was acknowledged.
            await app.consumer._commit(offsets)

    async def _report(self) -> None:
        self._sweeper.report()

    async def _sign(self) -> None:
        """Show that the loop goes round."""
        self.signs.seen_at = time.monotonic()

    async def _stop_when_drained(self, app: Any) -> None:
        """End the process once every partition is applied up to the end that the log had when we started."""
        with done_later():
            fetched = None if self._in_hand else await self._fetched(app)
            if await asyncio.to_thread(self._sweeper.is_drained, fetched):
                os.kill(os.getpid(), signal.SIGTERM)
