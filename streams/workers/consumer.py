"""The bare consumer: the same ingestion without Faust, on librdkafka (`tollbook streams run --reader bare`).

One thread polls, the other applies. What is polled waits in the applying thread's queue, bounded by messages and bytes;
beyond that the partitions are paused, and polling goes on, so that the group does not miss us. As in the Faust worker
nothing is acknowledged by reading: what Kafka is told is a hint.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from serving_adapter.errors import KafkaUnavailable
from serving_adapter.kafka_client import quiet_log, why
from serving_adapter.settings import KafkaSettings
from streams.database import done_later
from streams.errors import WorkerCrashed
from streams.ingest.sources import Partition
from streams.ingest.tally import Tally
from streams.workers.apply_queue import ApplyQueue, chunks_of
from streams.workers.reader import Reader
from streams.workers.sweeping import (
    DRAIN_CHECK_EVERY_S,
    HINT_EVERY_S,
    METADATA_AGE_MS,
    REPORT_EVERY_S,
    SESSION_TIMEOUT_S,
    SWEEP_EVERY_S,
    UPKEEP_EVERY_S,
)

PREFETCHED_KB: Final = 8 * 1024
"""What librdkafka holds beside; its default is eight times that."""
POLL_MESSAGES: Final = 4000
POLL_S: Final = 0.02
"""librdkafka waits so long for a batch to fill."""
POLL_AT_LEAST_EVERY_MS: Final = 60_000
ENDED: Final = (KafkaError._FATAL, KafkaError.INCONSISTENT_GROUP_PROTOCOL, KafkaError.TOPIC_AUTHORIZATION_FAILED,
                KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.FENCED_INSTANCE_ID)  # fmt: skip
"""Errors that do not pass; librdkafka tries on after any other."""
FENCED: Final = KafkaError(KafkaError.FENCED_INSTANCE_ID).str()
"""What stands in the error that ends a client for that."""
FENCED_TIMES: Final = 3
FENCED_WITHIN_S: Final = 60.0
"""A broker that is killed again and again does not bring it about so often; another worker of the name does at once."""


class BareConsumer(Reader):
    """The reader that works by librdkafka alone."""

    def _set_up(self) -> None:
        self._consumer = self._open()
        self._queue = ApplyQueue(self.ingestion)
        self._paused = False
        self._fetched: dict[Partition, int | None] = {}
        """Kept here: librdkafka's own `position` waits for seconds beside a thread that polls."""
        self._ending = threading.Event()
        self._asks_anew = threading.Event()
        self._fenced_at: list[float] = []
        self._beside = ThreadPoolExecutor(2, thread_name_prefix="beside")

    def run(self) -> Tally:
        """Run until stopped by SIGTERM or SIGINT, or until drained. Raises WorkerCrashed and as `Ingestion` does."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        try:
            if not (self._drain and not self._sweeper.waiting(self.ingestion.stored())):
                self._subscribe()
                self._read()
            else:
                self.ingestion.release_orphans()
        finally:
            self._close()
        return self.tally

    def _subscribe(self) -> None:
        self._consumer.subscribe(
            list(self.ingestion.feeds), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )

    def _read(self) -> None:
        """The loop."""
        chores = [
            Chore(self._hint, HINT_EVERY_S),
            Chore(self._sweeper.report, REPORT_EVERY_S),
            Beside(self._upkeep.round, UPKEEP_EVERY_S, self._beside),
            Beside(self._sweep, SWEEP_EVERY_S, self._beside),
        ]
        if self._drain:
            chores.append(Beside(self._stop_when_drained, DRAIN_CHECK_EVERY_S, self._beside))
        while not self._ending.is_set():
            self.signs.seen_at = time.monotonic()
            if self._asks_anew.is_set():
                self._asks_anew.clear()
                self._subscribe()
            messages = self._poll()
            for partition, position in self._queue.take_seeks():
                self._seek(partition, position)
                messages = [m for m in messages if (m.topic(), m.partition()) != partition]
            for partition, chunk in chunks_of((m for m in messages if m.error() is None), self._chunk_messages):
                self._queue.submit(partition, chunk)
                self._fetched[partition] = chunk[-1].offset + 1
                self._sweeper.took(partition)
            for partition, end in _ends(messages):
                self._fetched[partition] = max(self._fetched.get(partition) or 0, end)
            for partition in self._queue.collect():
                self._sweeper.took(partition)
            self._hold_back()
            for chore in chores:
                chore.do(self.signs.seen_at)

    def _poll(self) -> list[Message]:
        messages = self._consumer.consume(POLL_MESSAGES, POLL_S)
        for message in messages:
            if (error := message.error()) is not None and error.code() in ENDED:
                if self._instance and FENCED in error.str():
                    self._take_place_again()
                    return []
                mixed = error.code() == KafkaError.INCONSISTENT_GROUP_PROTOCOL
                hint = ": Faust workers are in the group, stop them first" if mixed else ""
                raise WorkerCrashed(f"Kafka: {why(error)}{hint}")
        return messages

    def _take_place_again(self) -> None:
        """Join anew: librdkafka gives up a client whose place in the group was given away, if only to the same client.

        It asks for its place anew where it heard of no broker for a session's time, and what it had under way is then
        refused. Of two workers of one name each takes it from the other, and the one that came first ends first.
        """
        now = time.monotonic()
        self._fenced_at = [at for at in self._fenced_at if at > now - FENCED_WITHIN_S] + [now]
        if len(self._fenced_at) >= FENCED_TIMES:
            raise WorkerCrashed(
                f"Kafka gave the place {self._instance!r} in the group to another {FENCED_TIMES} times within"
                f" {FENCED_WITHIN_S:.0f} s: another worker runs under this name; give each an --instance of its own"
            )
        self._say(f"Kafka: {FENCED}; it is taken again, nothing is lost")
        self._on_revoke(self._consumer, [])
        with contextlib.suppress(KafkaException):
            self._consumer.close()
        self._consumer = self._open()
        self._subscribe()

    def _hold_back(self) -> None:
        """Fetch no more while enough waits."""
        full = self._queue.is_full
        if full != self._paused:
            partitions = self._consumer.assignment()
            (self._consumer.pause if full else self._consumer.resume)(partitions)
            self._paused = full

    def _on_assign(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._paused = False  # new partitions are not; the next round pauses them all
        self._fetched = dict.fromkeys(map(_partition, partitions))
        self.signs.assigned, self.signs.in_group = frozenset(map(_partition, partitions)), True

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._queue.drop(map(_partition, partitions))
        self._fetched = {}
        self.signs.assigned, self.signs.in_group = frozenset(), False

    def _seek(self, partition: Partition, position: int) -> None:
        """Read on from a position, if the partition is ours."""
        if partition in self.signs.assigned:
            try:
                self._consumer.seek(TopicPartition(*partition, position))
                self._fetched[partition] = position
            except KafkaException as error:  # it was just given away, or not fetched from yet: the sweep tries again
                self._say(f"Kafka: {error.args[0].str()}; {partition.topic}/{partition.number} is read again later")

    def _hint(self) -> None:
        """Tell Kafka where a restart may begin to read. Losing it costs time, never an event."""
        moved = self.ingestion.take_hints()
        self._sweeper.moved(moved)
        hints = [TopicPartition(*partition, at) for partition, at in moved.items() if partition in self.signs.assigned]
        if hints:
            self._consumer.commit(offsets=hints, asynchronous=True)

    def _sweep(self) -> None:
        """Release corrections whose original has come; go on where a person has resolved, or something was dropped."""
        with done_later(), contextlib.suppress(KafkaUnavailable):
            states = self._sweeper.look()
            resolved = self.ingestion.resume(states)
            self._queue.ask_to_seek(resolved)
            if resolved and not self.signs.assigned:
                # librdkafka gives out nothing where topics were gone, and does not see that they are there again
                self._asks_anew.set()
            fetched, in_hand = dict(self._fetched), self._queue.in_hand
            self._queue.ask_to_seek(self._sweeper.dropped(states, fetched, in_hand=in_hand))
            self._sweeper.check_logs(states, fetched)

    def _stop_when_drained(self) -> None:
        """End once every partition is applied up to the end that the log had when we started."""
        with done_later():
            if self._sweeper.is_drained(None if self._queue.in_hand else dict(self._fetched)):
                self._ending.set()

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        self._ending.set()

    def _close(self) -> None:
        """Finish the chunk in hand, unless it waits for the database; leave the group, unless our place is kept."""
        self.ingestion.end()
        self._queue.close()
        self._beside.shutdown(cancel_futures=True)
        try:
            self._hint()
            self._consumer.close()
        except KafkaException as error:
            self._say(f"Kafka: {error.args[0].str()}")
        self.ingestion.close()
        self._upkeep.round(at_once=True)  # so that what this worker applied is folded when it has ended
        self._upkeep.close()

    def _open(self) -> Consumer:
        return Consumer(self._configuration(self._kafka, self._instance), logger=quiet_log)

    @staticmethod
    def _configuration(kafka: KafkaSettings, instance: str | None) -> dict[str, Any]:
        """librdkafka's. The group is the Faust worker's: either may take over, and Kafka refuses both at once."""
        static = {"group.instance.id": instance} if instance else {}
        return kafka.client(
            **static,
            **{
                "group.id": f"{kafka.topic_prefix}.streams",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "partition.assignment.strategy": "range",  # all at once: `_on_assign` is told the whole
                "isolation.level": "read_committed",  # what is left out leaves a gap, at which the partition stops
                "enable.partition.eof": True,  # so that an end without messages is known to be reached
                "session.timeout.ms": SESSION_TIMEOUT_S * 1000,
                "heartbeat.interval.ms": 1000,
                "max.poll.interval.ms": POLL_AT_LEAST_EVERY_MS,
                "topic.metadata.refresh.interval.ms": METADATA_AGE_MS,
                "queued.max.messages.kbytes": PREFETCHED_KB,
                "fetch.message.max.bytes": 1024 * 1024,
            },
        )


class Chore:
    """Something to be done every so often."""

    def __init__(self, call: Callable[[], Any], every_s: float) -> None:
        self._call = call
        self._every_s = every_s
        self._due_at = time.monotonic() + every_s

    def do(self, now: float) -> None:
        """Do it if it is due."""
        if now >= self._due_at:
            self._due_at = now + self._every_s
            self._call()


class Beside(Chore):
    """The same in another thread, once at a time: it may take long. Raises what it raised, the next time."""

    def __init__(self, call: Callable[[], Any], every_s: float, threads: ThreadPoolExecutor) -> None:
        super().__init__(call, every_s)
        self._threads = threads
        self._running: Future[Any] | None = None

    def do(self, now: float) -> None:
        """Begin it if it is due and does not run."""
        if self._running is not None and self._running.done():
            ended, self._running = self._running, None
            ended.result()
        if now >= self._due_at and self._running is None:
            self._due_at = now + self._every_s
            self._running = self._threads.submit(self._call)


def _ends(messages: Iterable[Message]) -> Iterator[tuple[Partition, int]]:
    """Where partitions were read to their ends, also over what has no message there: markers, aborted transactions."""
    for message in messages:
        error, topic, number, end = message.error(), message.topic(), message.partition(), message.offset()
        if error is not None and error.code() == KafkaError._PARTITION_EOF:
            assert topic is not None, "it is a partition's"
            assert number is not None, "it is a partition's"
            assert end is not None, "it is a partition's"
            yield Partition(topic, number), end


def _partition(at: TopicPartition) -> Partition:
    return Partition(at.topic, at.partition)
