"""Into Kafka: the one producer of usage events (docs/spec/metering.md 5).

Idempotent and `acks=all`, so that a message is in the log once per send and on every in-sync replica when it is
reported delivered; keyed by tenant with the partitioner that Java clients share, so that a tenant keeps its order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from serving_adapter.errors import DeliveryFailed, KafkaUnavailable, MessageTooLarge
from serving_adapter.kafka_client import NOT_ALLOWED, connect, why
from serving_adapter.settings import KafkaSettings

NEVER_TAKEN: Final = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD})
"""Errors that are about a message, or about one of the batch that it was in: sent again, it would be refused again."""
DELIVER_WITHIN_S: Final = 120.0
"""librdkafka's own default for `delivery.timeout.ms`; the caller's file or spool is what is durable until then."""


def open_producer(kafka: KafkaSettings, topic: str, **more: Any) -> Producer:
    """A connected producer with the guarantees of rule 5, whatever else `more` says.

    Raises KafkaUnavailable if no broker answers, the topic does not exist, or this login may not see it.
    """
    guarantees = {"acks": "all", "enable.idempotence": True, "partitioner": "murmur2_random"}
    producer, metadata = connect(Producer, kafka, topic, **{"compression.type": "lz4", **more, **guarantees})
    error = metadata.topics[topic].error
    if error is not None and error.code() in NOT_ALLOWED:
        raise KafkaUnavailable(f"Kafka at {kafka.bootstrap}, topic {topic}: {why(error)}")
    if error is not None:
        raise KafkaUnavailable(f"topic {topic} does not exist at {kafka.bootstrap}: `make up` creates it")
    return producer


class Refused(NamedTuple):
    """A message that Kafka would never take, and why."""

    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    reason: str


class EventProducer:
    """Sends messages to one topic and counts what the brokers acknowledged."""

    def __init__(self, kafka: KafkaSettings, topic: str, deliver_within_s: float = DELIVER_WITHIN_S) -> None:
        """Connect. Raises KafkaUnavailable if no broker answers or the topic does not exist."""
        self.topic = topic
        self.delivered = 0
        self._failed: str | None = None
        self._refused: list[Refused] = []
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
        *,
        may_be_refused: bool = False,
    ) -> None:
        """Queue one message; waits while the queue is full. Raises MessageTooLarge, then nothing
        was queued, and DeliveryFailed once any message has failed.

        `told` hears partition and offset once it is acknowledged. `may_be_refused`: one that Kafka would never take is
        no failure, but in the answer of `settle`.
        """
        done: Callable[[KafkaError | None, Message], None] = self._done
        if told is not None:
            done = partial(self._done_and_tell, told)
        elif may_be_refused:
            done = partial(self._done_or_refused, Refused(key, value, tuple(headers), ""))
        while True:
            self._raise_failed()
            try:
                self._producer.produce(self.topic, value, key, headers=list(headers) or None, on_delivery=done)
                self._producer.poll(0)
                return
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:  # as after an error that is fatal to this one
                    self._fail(error.args[0])
                    continue
                why = f"{len(value)} bytes are more than Kafka takes in a message"
                if not may_be_refused:
                    raise MessageTooLarge(why) from None
                self._refused.append(Refused(key, value, tuple(headers), why))
                return

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

    def settle(self) -> list[Refused]:
        """Wait until everything queued is acknowledged, but for what Kafka would never take: that, with the reasons.

        A batch is refused as a whole: each of its messages is sent once more by itself. Raises DeliveryFailed.
        """
        self.flush()
        once, self._refused = self._refused, []
        for key, value, headers, _ in once:
            self.send(key, value, headers, may_be_refused=True)
            self.flush()
        again, self._refused = self._refused, []
        return again

    def _done_or_refused(self, what: Refused, error: KafkaError | None, message: Message) -> None:
        if error is not None and error.code() in NEVER_TAKEN:
            self._refused.append(what._replace(reason=error.str()))
        else:
            self._done(error, message)

    def _done(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._fail(error)
            return
        with self._lock:
            self.delivered += 1

    def _fail(self, error: KafkaError) -> None:
        with self._lock:
            self._failed = self._failed or why(error)

    def _done_and_tell(self, told: Callable[[int, int], None], error: KafkaError | None, message: Message) -> None:
        self._done(error, message)
        if error is None:
            told(message.partition() or 0, message.offset() or 0)

    def _raise_failed(self) -> None:
        if self._failed is not None:
            raise DeliveryFailed(
                f"Kafka did not take a message ({self._failed}); {self.delivered} delivered; sending all again is safe"
            )
