"""Into Kafka: the one producer of usage events (docs/spec/metering.md 5).

Idempotent and `acks=all`, so that a message is in the log once per send and on every in-sync replica when it is
reported delivered; keyed by tenant with the partitioner that Java clients share, so that a tenant keeps its order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from serving_adapter.errors import DeliveryFailed, KafkaUnavailable, MessageTooLarge
from serving_adapter.kafka_client import connect
from serving_adapter.settings import KafkaSettings

DELIVER_WITHIN_S: Final = 120.0
"""librdkafka's own default for `delivery.timeout.ms`; the caller's file or spool is what is durable until then."""


def open_producer(kafka: KafkaSettings, topic: str, **more: Any) -> Producer:
    """A connected producer with the guarantees of rule 5, whatever else `more` says.

    Raises KafkaUnavailable if no broker answers or the topic does not exist.
    """
    guarantees = {"acks": "all", "enable.idempotence": True, "partitioner": "murmur2_random"}
    producer, metadata = connect(Producer, kafka, topic, **{"compression.type": "lz4", **more, **guarantees})
    if metadata.topics[topic].error is not None:
        raise KafkaUnavailable(f"topic {topic} does not exist at {kafka.bootstrap}: `make up` creates it")
    return producer


class EventProducer:
    """Sends messages to one topic and counts what the brokers acknowledged."""

    def __init__(self, kafka: KafkaSettings, topic: str, deliver_within_s: float = DELIVER_WITHIN_S) -> None:
        """Connect. Raises KafkaUnavailable if no broker answers or the topic does not exist."""
        self.topic = topic
        self.delivered = 0
        self._failed: str | None = None
        self._lock = threading.Lock()
        self._bootstrap = kafka.bootstrap
        self._deliver_within_s = deliver_within_s
        self._producer = open_producer(
            kafka, topic, **{"linger.ms": 20, "delivery.timeout.ms": int(deliver_within_s * 1000)}
        )

    def send(
        self,
        key: bytes | None,
        value: bytes,
        headers: Iterable[tuple[str, bytes]] = (),
        told: Callable[[int, int], None] | None = None,
    ) -> None:
        """Queue one message; waits while the queue is full. Raises MessageTooLarge, then nothing
        was queued, and DeliveryFailed once any message has failed.

        `told` hears partition and offset once it is acknowledged.
        """
        done = self._done if told is None else partial(self._done_and_tell, told)
        while True:
            self._raise_failed()
            try:
                self._producer.produce(self.topic, value, key, headers=list(headers) or None, on_delivery=done)
                self._producer.poll(0)
                return
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    raise
                raise MessageTooLarge(f"{len(value)} bytes are more than Kafka takes in a message") from None

    def flush(self) -> None:
        """Wait until everything queued is acknowledged. Raises DeliveryFailed, with how many were not."""
        deadline = time.monotonic() + self._deliver_within_s
        while left := len(self._producer):
            self._producer.poll(0.1)
            self._raise_failed()
            if time.monotonic() > deadline:
                raise DeliveryFailed(
                    f"{left} messages not acknowledged by {self._bootstrap}; sending them again is safe"
                )
        self._raise_failed()

    def _done(self, error: KafkaError | None, _message: Message) -> None:
        with self._lock:
            if error is None:
                self.delivered += 1
            elif self._failed is None:
                self._failed = error.str()

    def _done_and_tell(self, told: Callable[[int, int], None], error: KafkaError | None, message: Message) -> None:
        self._done(error, message)
        if error is None:
            told(message.partition() or 0, message.offset() or 0)

    def _raise_failed(self) -> None:
        if self._failed is not None:
            raise DeliveryFailed(
                f"Kafka did not take a message ({self._failed}); {self.delivered} delivered; sending all again is safe"
            )
