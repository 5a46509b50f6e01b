"""Does a log still hold what was applied of it? What it has there now is compared with the chunks' digests.

A partition whose leader changed may have lost its end by that, and have grown past the stored position again since. Its
leader epoch is then another one; numbers alone would show nothing (docs/spec/metering.md 4.1).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from typing import Final

import psycopg
from confluent_kafka import Consumer, KafkaError, TopicPartition

from serving_adapter.errors import KafkaUnavailable
from serving_adapter.kafka_client import ANSWER_WITHIN_S, quiet_log
from serving_adapter.settings import KafkaSettings
from streams.ingest.sources import Partition
from streams.rules.chunks import Record, digest

_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
_APPLIED: Final = """
    select first_position, next_position, content_digest from usage.applied_chunks
    where source = %s and next_position >= %s and first_position >= %s order by first_position
"""


class LogProof:
    """Reads a log's messages again, by a client that belongs to no group; to be closed."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._consumer = Consumer(
            kafka.client(
                **{
                    "group.id": f"{kafka.topic_prefix}.streams.proof",  # asked for, and never joined
                    "enable.auto.commit": False,
                    "enable.partition.eof": True,
                    "isolation.level": "read_committed",  # as it was applied
                }
            ),
            logger=quiet_log,
        )

    def close(self) -> None:
        """Give the connections back."""
        self._consumer.close()

    def differs_at(
        self, connection: psycopg.Connection, source: str, partition: Partition, *, since: int, begins: int
    ) -> int | None:
        """Where the first chunk begins whose messages are others now; None if all are what was applied.

        Of the chunks that reach to `since` or further; what the log has let go of (it begins at `begins`) cannot be
        compared. Raises KafkaUnavailable, psycopg.Error.
        """
        for first, after, was in connection.execute(_APPLIED, (source, since, begins)).fetchall():
            if digest(self._read(partition, first, after)) != bytes(was):
                return int(first)
        return None

    def _read(self, partition: Partition, first: int, after: int) -> Iterator[Record]:
        """What stands at these positions, as far as anything does."""
        self._consumer.assign([TopicPartition(*partition, first)])
        with contextlib.closing(_messages(self._consumer)) as messages:
            for offset, value in messages:
                if offset >= after or value is None:
                    return
                yield Record(offset, None, value, _NEVER)
                if offset + 1 >= after:
                    return


def _messages(consumer: Consumer) -> Generator[tuple[int, bytes | None]]:
    """Offsets and values; None at the end of the log. Raises KafkaUnavailable."""
    while True:
        message = consumer.poll(ANSWER_WITHIN_S)  # not `consume`, which waits for as many as it is asked for
        if message is None:
            raise KafkaUnavailable("what was applied cannot be read again")
        error, value = message.error(), message.value()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaUnavailable(f"what was applied cannot be read again: {error.str()}")
        told = value.encode() if isinstance(value, str) else value
        yield message.offset() or 0, None if error is not None else told or b""
