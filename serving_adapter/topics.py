"""The topics (docs/spec/interfaces.md 3): names and settings, and how to create them where they are missing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from serving_adapter.errors import KafkaUnavailable
from serving_adapter.kafka_client import ANSWER_WITHIN_S, admin_client
from serving_adapter.settings import KafkaSettings

DAY_MS: Final = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic's name without the installation's prefix, its partitions, and how long messages stay."""

    suffix: str
    partitions: int
    retention_ms: int

    def name(self, prefix: str) -> str:
        """The topic's full name, e.g. `tollbook.usage.v1`."""
        return f"{prefix}.{self.suffix}"


USAGE: Final = Topic("usage.v1", partitions=8, retention_ms=14 * DAY_MS)
REPLICAS: Final = Topic("replicas.v1", partitions=1, retention_ms=14 * DAY_MS)
ALERTS: Final = Topic("alerts.v1", partitions=1, retention_ms=14 * DAY_MS)
TOPICS: Final = (USAGE, REPLICAS, ALERTS)


def ensure_topics(kafka: KafkaSettings, replication: int = 1) -> list[str]:
    """Create the topics that are missing and return their names. What exists is left as it is.

    `delete`, because compaction would drop late events of a tenant; `LogAppendTime`, because the broker's clock
    says when a message arrived (docs/spec/metering.md 5). Raises KafkaUnavailable.
    """
    admin = admin_client(kafka)
    wanted = [
        NewTopic(
            topic.name(kafka.topic_prefix),
            num_partitions=topic.partitions,
            replication_factor=replication,
            config={
                "cleanup.policy": "delete",
                "message.timestamp.type": "LogAppendTime",
                "retention.ms": str(topic.retention_ms),
            },
        )
        for topic in TOPICS
    ]
    created = []
    for name, future in admin.create_topics(wanted, operation_timeout=ANSWER_WITHIN_S).items():
        try:
            future.result(timeout=ANSWER_WITHIN_S)
            created.append(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise KafkaUnavailable(
                    f"cannot create topic {name} at {kafka.bootstrap}: {error.args[0].str()}"
                ) from None
        except TimeoutError:
            raise KafkaUnavailable(f"no answer from Kafka at {kafka.bootstrap}") from None
    _wait_until_known(admin, kafka, {topic.topic for topic in wanted})
    return created


def _wait_until_known(admin: AdminClient, kafka: KafkaSettings, names: set[str]) -> None:
    """Brokers hear of a new topic a moment after the controller has created it."""
    deadline = time.monotonic() + ANSWER_WITHIN_S
    try:
        while True:
            known = admin.list_topics(timeout=ANSWER_WITHIN_S).topics
            if all(name in known and known[name].error is None for name in names):
                return
            if time.monotonic() > deadline:
                raise KafkaUnavailable(f"the topics that were created are not known at {kafka.bootstrap}: try again")
            time.sleep(0.05)
    except KafkaException as error:
        raise KafkaUnavailable(f"no answer from Kafka at {kafka.bootstrap}: {error.args[0].str()}") from None
