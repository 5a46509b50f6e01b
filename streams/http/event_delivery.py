"""Into Kafka on behalf of HTTP requests: an answer is given when every event of a request is acknowledged.

Runs on the event loop alone: a task serves librdkafka's callbacks while anything is on its way. A polling thread was
measured beside it: no faster (docs/http-events.md), and every count here would need a lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from serving_adapter.errors import DeliveryFailed
from serving_adapter.ingest import cloud_event_headers
from serving_adapter.producer import open_producer
from serving_adapter.settings import KafkaSettings
from streams.errors import QueueFull
from streams.http.http_events import Submission

DELIVER_WITHIN_S: Final = 10.0
"""How long Kafka may take to acknowledge: an emitter waits for it, and repeats; a leader change takes 1 to 5 s."""
LINGER_MS: Final = 5
"""How long a message waits for company: what single events cost in latency, and many small requests save in work."""
QUEUED_MESSAGES: Final = 50_000
"""Messages on their way at most: half a second's worth."""
QUEUED_KIB: Final = 64 * 1024
POLL_EVERY_S: Final = 0.001


class EventDelivery:
    """Sends the events of requests and tells when all of a request's are acknowledged by all in-sync replicas."""

    def __init__(self, kafka: KafkaSettings, topic: str) -> None:
        """Connect. Raises KafkaUnavailable."""
        self.topic = topic
        self.acknowledged_at = 0.0
        """Monotonic time of the last acknowledgement."""
        self.broken: str | None = None
        """Why the producer can send nothing any more (librdkafka: fatal); only a new process helps."""
        self._waiting = 0
        self._pump: asyncio.Task[None] | None = None
        self._producer: Producer = open_producer(
            kafka,
            topic,
            **{
                "linger.ms": LINGER_MS,
                "delivery.timeout.ms": int(DELIVER_WITHIN_S * 1000),
                "queue.buffering.max.messages": 2 * QUEUED_MESSAGES,
                "queue.buffering.max.kbytes": QUEUED_KIB,
            },
        )

    @property
    def waiting(self) -> int:
        """Messages that are not acknowledged yet."""
        return self._waiting

    async def send(self, submissions: Sequence[Submission], emitter: str) -> None:
        """Send a request's events and wait until all are acknowledged.

        Raises QueueFull if too much is on its way (some events may have been sent), DeliveryFailed if Kafka did not
        acknowledge all of them in time (some may be in the log). After either, repeating all of them is safe.
        """
        if self._waiting + len(submissions) > QUEUED_MESSAGES:
            raise QueueFull("too many events wait for Kafka")
        request = _Request(self, len(submissions))
        try:
            for submission in submissions:
                headers: list[Any] = cloud_event_headers(submission.event, submission.source, submission.event_id)
                headers.append(("ce_emitter", emitter.encode()))
                self._producer.produce(
                    self.topic,
                    submission.message,
                    submission.event.tenant_id.encode(),
                    headers=headers,
                    on_delivery=request.done,
                )
                self._waiting += 1
        except BufferError:
            raise QueueFull("too many bytes wait for Kafka") from None
        except KafkaException as error:
            self._note(error.args[0])
            raise DeliveryFailed(f"Kafka's client refused an event: {error.args[0].str()}") from None
        finally:
            if self._waiting and self._pump is None:
                self._pump = asyncio.get_running_loop().create_task(self._serve_callbacks())
        await request.all_done
        if request.failed is not None:
            raise DeliveryFailed(f"Kafka did not acknowledge all events: {request.failed}")

    def close(self) -> None:
        """Wait for what is on its way, as long as its delivery may take."""
        self._producer.flush(DELIVER_WITHIN_S)

    def reaches_kafka(self, within_s: float) -> bool:
        """Whether a broker answers; blocks, so call it in a thread."""
        try:
            return self._producer.list_topics(self.topic, timeout=within_s).topics[self.topic].error is None
        except KafkaException:
            return False

    async def _serve_callbacks(self) -> None:
        while self._waiting:
            self._producer.poll(0)
            await asyncio.sleep(POLL_EVERY_S)
        self._pump = None

    def _done(self, error: KafkaError | None) -> None:
        self._waiting -= 1
        if error is None:
            self.acknowledged_at = time.monotonic()
        else:
            self._note(error)

    def _note(self, error: KafkaError) -> None:
        if error.fatal() or error.code() == KafkaError._FATAL:
            self.broken = error.str()


class _Request:
    """The events of one request that are on their way."""

    def __init__(self, delivery: EventDelivery, events: int) -> None:
        self._delivery = delivery
        self._left = events
        self.failed: str | None = None
        self.all_done = asyncio.get_running_loop().create_future()

    def done(self, error: KafkaError | None, _message: Message) -> None:
        """librdkafka's callback, on the loop's own thread."""
        self._delivery._done(error)
        if error is not None:
            self.failed = error.str()
        self._left -= 1
        if not self._left and not self.all_done.done():
            self.all_done.set_result(None)
