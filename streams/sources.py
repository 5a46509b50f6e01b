"""Kafka partitions as sources: which log they really are, where they begin and end, and their rows in the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from confluent_kafka import KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

from serving_adapter.errors import KafkaUnavailable
from serving_adapter.kafka_client import ANSWER_WITHIN_S, admin_client
from serving_adapter.settings import KafkaSettings
from streams.chunks import Source

Feed = Literal["usage", "replicas"]
"""What a source brings: usage events, or replicas' reports about themselves."""


@dataclass(frozen=True, slots=True)
class Log:
    """A topic as the broker has it now: its ids, and each partition's first and next offset and leader epoch."""

    topic: str
    cluster_id: str
    topic_id: str
    begins: dict[int, int]
    ends: dict[int, int]
    epochs: dict[int, int]

    def source(self, partition: int) -> Source:
        """The partition as a source of chunks."""
        return Source(source_name(self.topic, partition), self.cluster_id, self.topic_id)


@dataclass(frozen=True, slots=True)
class SourceState:
    """A source's row."""

    source: str
    next_position: int
    stopped_because: str | None


def source_name(topic: str, partition: int) -> str:
    """The name under which a partition's position is stored, e.g. `kafka:tollbook.usage.v1/3`."""
    return f"kafka:{topic}/{partition}"


class LogReader:
    """Asks the broker what a topic is and how far it reaches."""

    def __init__(self, kafka: KafkaSettings, topic: str) -> None:
        self._admin = admin_client(kafka)
        self._bootstrap = kafka.bootstrap
        self._topic = topic

    def read(self) -> Log:
        """Ids and offsets now. Raises KafkaUnavailable."""
        try:
            cluster = self._admin.describe_cluster(request_timeout=ANSWER_WITHIN_S).result()
            topics = self._admin.describe_topics(TopicCollection([self._topic]), request_timeout=ANSWER_WITHIN_S)
            topic = topics[self._topic].result()
            numbers = [partition.id for partition in topic.partitions]
            begins = self._offsets(numbers, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
            ends = self._offsets(numbers, OffsetSpec.latest())  # type: ignore[no-untyped-call]
            return Log(
                self._topic,
                str(cluster.cluster_id),
                str(topic.topic_id),
                {p: at.offset for p, at in begins.items()},
                {p: at.offset for p, at in ends.items()},
                {p: at.leader_epoch if at.leader_epoch is not None else -1 for p, at in ends.items()},
            )
        except KafkaException as error:
            raise KafkaUnavailable(f"Kafka at {self._bootstrap}, topic {self._topic}: {error.args[0].str()}") from None

    def _offsets(self, partitions: list[int], which: OffsetSpec) -> dict[int, Any]:
        asked = {TopicPartition(self._topic, number): which for number in partitions}
        answers = self._admin.list_offsets(asked, request_timeout=ANSWER_WITHIN_S)
        return {at.partition: future.result() for at, future in answers.items()}


def register(connection: psycopg.Connection, log: Log, feed: Feed = "usage") -> None:
    """Make a row for each partition that has none: it begins where the log begins today, and that is kept."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into usage.sources"
            " (source, cluster_id, topic_id, leader_epoch, first_position, next_position, feed)"
            " values (%s, %s, %s, -1, %s, %s, %s) on conflict do nothing",
            [
                (source_name(log.topic, p), log.cluster_id, log.topic_id, begin, begin, feed)
                for p, begin in sorted(log.begins.items())
            ],
        )


def states(connection: psycopg.Connection, topic: str) -> dict[int, SourceState]:
    """The stored state of each partition of a topic."""
    prefix = source_name(topic, 0)[:-1]
    rows = connection.execute(
        "select source, next_position, stopped_because from usage.sources where starts_with(source, %s)", (prefix,)
    )
    return {int(row[0][len(prefix) :]): SourceState(*row) for row in rows}


def lag(connection: psycopg.Connection, log: Log) -> int:
    """Messages in the log that are not applied yet."""
    stored = states(connection, log.topic)
    return sum(end - (stored[p].next_position if p in stored else log.begins[p]) for p, end in log.ends.items())


def mark_stopped(connection: psycopg.Connection, source: str, because: str | None) -> None:
    """Note why a source stands still, or that it goes on again (None)."""
    connection.execute(
        "update usage.sources set stopped_because = %s, changed_at = now()"
        " where source = %s and stopped_because is distinct from %s",
        (because, source, because),
    )


def extents(connection: psycopg.Connection) -> dict[str, tuple[int, int]]:
    """Each source's first and next position."""
    rows = connection.execute("select source, first_position, next_position from usage.sources")
    return {source: (first, after) for source, first, after in rows}


def chunks(connection: psycopg.Connection) -> list[tuple[str, int, int, int]]:
    """Each applied chunk: source, first and next position, messages with an outcome; in order of position."""
    rows = connection.execute(
        "select source, first_position, next_position, applied + duplicates + quarantined"
        " from usage.applied_chunks order by source, first_position"
    )
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def stored_counts(connection: psycopg.Connection) -> dict[str, tuple[int, int]]:
    """Each usage source's rows that are really there: events, and messages in quarantine."""
    rows = connection.execute(
        "select source, coalesce(e.n, 0), coalesce(q.n, 0) from usage.sources"
        " left join (select source, count(*) as n from usage.events group by source) e using (source)"
        " left join (select source, count(*) as n from usage.quarantine group by source) q using (source)"
        " where feed = 'usage'"
    )
    return {source: (events, held) for source, events, held in rows}


def counted_outcomes(connection: psycopg.Connection) -> dict[str, tuple[int, int]]:
    """Each usage source's applied and quarantined messages, as its chunks recorded them."""
    rows = connection.execute(
        "select source, coalesce(sum(applied), 0)::int8, coalesce(sum(quarantined), 0)::int8"
        " from usage.sources left join usage.applied_chunks using (source) where feed = 'usage' group by source"
    )
    return {source: (applied, held) for source, applied, held in rows}
