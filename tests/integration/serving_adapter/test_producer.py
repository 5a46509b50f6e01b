"""What every producer of usage events keeps to, whatever it is asked: docs/spec/metering.md 5."""

from __future__ import annotations

import json
import time
from typing import Any

from serving_adapter.producer import EventProducer, open_producer
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import USAGE
from tests.simulation.line import PATIENCE_S

MURMUR2 = {
    "21": -973932308,
    "foobar": -790332482,
    "a-little-bit-long-string": -985981536,
    "a-little-bit-longer-string": -1486304829,
    "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    "abc": 479470107,
}
"""What Java's client makes of keys: clients/src/test/java/org/apache/kafka/common/utils/UtilsTest.java in Kafka."""


def test_a_key_lies_in_the_partition_that_javas_client_chooses(kafka: KafkaSettings) -> None:
    producer = EventProducer(kafka, USAGE.name(kafka.topic_prefix))
    found: dict[str, int] = {}
    for key in MURMUR2:
        producer.send(key.encode(), b"{}", told=lambda partition, _, key=key: found.update({key: partition}))
    producer.flush()
    assert found == {key: (hashed & 0x7FFFFFFF) % USAGE.partitions for key, hashed in MURMUR2.items()}


def test_a_producer_is_idempotent_and_waits_for_all_copies_whatever_else_it_is_asked(kafka: KafkaSettings) -> None:
    """Only with `acks=all` does librdkafka take idempotence at all."""
    told: list[dict[str, Any]] = []
    weaker = {"acks": "1", "enable.idempotence": False, "partitioner": "random"}
    producer = open_producer(
        kafka, USAGE.name(kafka.topic_prefix), stats_cb=lambda text: told.append(json.loads(text)),
        **{**weaker, "statistics.interval.ms": 20},
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE_S
    while not any(each.get("eos", {}).get("producer_id", -1) >= 0 for each in told):
        assert time.monotonic() < deadline, "the broker has given it no id as an idempotent producer"
        producer.poll(0.05)
