"""Kafka's topics as the broker has them: which log a topic really is, and how far it reaches."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from serving_adapter.errors import KafkaUnavailable
from serving_adapter.kafka_client import ANSWER_WITHIN_S, admin_client, why
from serving_adapter.settings import KafkaSettings


@dataclass(frozen=True, slots=True)
class Log:
    """A topic as the broker has it now: its ids, and each partition's first and next offset and leader epoch."""

    topic: str
    cluster_id: str
    topic_id: str
    begins: dict[int, int]
    ends: dict[int, int]
    epochs: dict[int, int]


LEADER_CHANGES: Final = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE,
                         KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH)  # fmt: skip
LEADER_ASKED_TIMES: Final = 10
LEADER_ASKED_AGAIN_S: Final = 0.2


COMMITTED: Final = IsolationLevel.READ_COMMITTED
"""A log ends where an open transaction begins: readers come no further."""


class LogReader:
    """Asks the broker what a topic is and how far it reaches."""

    def __init__(self, kafka: KafkaSettings, topic: str) -> None:
        """Raises KafkaUnavailable."""
        self._kafka = kafka
        self.topic = topic
        self._admin: AdminClient | None = admin_client(kafka)

    def read(self) -> Log:
        """Ids and offsets now. Raises KafkaUnavailable; only after some patience while a leader changes."""
        for left in reversed(range(LEADER_ASKED_TIMES)):
            try:
                return self._read()
            except KafkaException as error:
                if not left or error.args[0].code() not in LEADER_CHANGES:
                    raise self._unavailable(error) from None
                time.sleep(LEADER_ASKED_AGAIN_S)
        raise AssertionError("the last time returns or raises")

    def _read(self) -> Log:
        admin = self._client()
        cluster = admin.describe_cluster(request_timeout=ANSWER_WITHIN_S).result()
        topics = admin.describe_topics(TopicCollection([self.topic]), request_timeout=ANSWER_WITHIN_S)
        topic = topics[self.topic].result()
        numbers = [partition.id for partition in topic.partitions]
        begins = self._offsets(admin, numbers, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        ends = self._offsets(admin, numbers, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        return Log(
            self.topic,
            str(cluster.cluster_id),
            str(topic.topic_id),
            {p: at.offset for p, at in begins.items()},
            {p: at.offset for p, at in ends.items()},
            {p: at.leader_epoch if at.leader_epoch is not None else -1 for p, at in ends.items()},
        )

    def topic_id(self) -> str:
        """The topic's id alone, as cheaply as it can be had. Raises KafkaUnavailable."""
        admin = self._client()
        try:
            topics = admin.describe_topics(TopicCollection([self.topic]), request_timeout=ANSWER_WITHIN_S)
            return str(topics[self.topic].result().topic_id)
        except KafkaException as error:
            raise self._unavailable(error) from None

    def _client(self) -> AdminClient:
        """The client: to be held while it is asked, its answers end with it. A new one after an error."""
        if (admin := self._admin) is None:
            admin = self._admin = admin_client(self._kafka)
        return admin

    def _unavailable(self, error: KafkaException) -> KafkaUnavailable:
        self._admin = None  # librdkafka asks the controller that it knows, for minutes after it is gone
        return KafkaUnavailable(f"Kafka at {self._kafka.bootstrap}, topic {self.topic}: {why(error.args[0])}")

    def _offsets(self, admin: AdminClient, partitions: list[int], which: OffsetSpec) -> dict[int, Any]:
        asked = {TopicPartition(self.topic, number): which for number in partitions}
        answers = admin.list_offsets(asked, isolation_level=COMMITTED, request_timeout=ANSWER_WITHIN_S)
        return {at.partition: future.result() for at, future in answers.items()}
