"""Messages of the usage topic by the time at which the broker appended them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from reconciliation.errors import MaterialUnreadable
from reconciliation.replay.material import Found, Material
from serving_adapter.errors import KafkaUnavailable
from serving_adapter.kafka_client import ANSWER_WITHIN_S, admin_client, quiet_log
from serving_adapter.settings import KafkaSettings

GROUP: Final = "tollbook-replay"
"""Never joined: partitions are assigned, and nothing is committed."""
BATCH: Final = 1000


def appended(kafka: KafkaSettings, topic: str, begin: datetime, end: datetime) -> Material:
    """Every message appended in [begin, end), partition by partition. Raises MaterialUnreadable, KafkaUnavailable."""
    admin_client(kafka)
    consumer = _consumer(kafka)
    try:
        for partition, first, after in _bounds(consumer, topic, begin, end):
            for message in _read(consumer, topic, partition, first, after):
                yield Found(f"{topic}/{partition}@{message.offset()}", message.value() or b"")
    except KafkaException as error:
        raise MaterialUnreadable(f"cannot read {topic}: {error.args[0].str()}") from None
    finally:
        consumer.close()


def _consumer(kafka: KafkaSettings) -> Consumer:
    """One that tells where what it is to read is gone; by default it would go on at the end."""
    settings = {
        "group.id": GROUP, "enable.auto.commit": False, "isolation.level": "read_committed",
        "auto.offset.reset": "error",
    }  # fmt: skip
    return Consumer(kafka.client(**settings), logger=quiet_log)


def _bounds(consumer: Consumer, topic: str, begin: datetime, end: datetime) -> list[tuple[int, int, int]]:
    """Of each partition the first offset within the time, and the one behind the last."""
    known = consumer.list_topics(topic, timeout=ANSWER_WITHIN_S).topics[topic].partitions
    found = []
    for number in sorted(known):
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=ANSWER_WITHIN_S)
        asked = [TopicPartition(topic, number, round(at.timestamp() * 1000)) for at in (begin, end)]
        offsets = [
            consumer.offsets_for_times([each], timeout=ANSWER_WITHIN_S)[0].offset for each in asked
        ]  # fmt: skip
        first, after = (high if offset < 0 else offset for offset in offsets)
        if max(first, low) < after:
            found.append((number, max(first, low), after))
    return found


def _read(consumer: Consumer, topic: str, partition: int, first: int, after: int) -> Iterator[Message]:
    consumer.assign([TopicPartition(topic, partition, first)])
    while True:
        messages = consumer.consume(BATCH, timeout=1.0)
        for message in messages:
            if (error := message.error()) is not None and error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise MaterialUnreadable(f"{topic}/{partition} was cut off while it was read: plan what is left of it")
            if error is not None:
                raise KafkaUnavailable(f"{topic}/{partition}: {error.str()}")
            if (message.offset() or 0) >= after:
                return
            yield message
        (at,) = consumer.position([TopicPartition(topic, partition)])
        if at.offset >= after:  # also where the last offsets are markers that nobody is given
            return
