"""Faust, one message a chunk: a poll's records reach the agent together, at a twentieth of the cost of one by one.

Both classes are Faust's own extension points (settings `ConsumerScheduler`, `Topic(schema=…)`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, NamedTuple

from faust.serializers.schemas import Schema
from faust.types.transports import SchedulingStrategyT
from faust.types.tuples import TP

from streams.settings import CHUNK_MESSAGES
from streams.workers.lenient_batches import leader_epochs


class Fetched(NamedTuple):
    """Records of one partition, and when they had been fetched (monotonic seconds)."""

    records: list[Any]
    at: float
    leader_epoch: int
    """Of the leader that appended the newest, or a later one; -1: not told."""


class CoalescedRecord(NamedTuple):
    """What Faust takes for one record: `value` holds the records, `offset` is that of the last one."""

    topic: str
    partition: int
    offset: int
    timestamp: int | None
    timestamp_type: int | None
    headers: tuple[()]
    key: None
    value: Fetched
    checksum: None
    serialized_key_size: int
    serialized_value_size: int


class ChunkScheduler(SchedulingStrategyT):
    """Cuts each partition's records of a poll into chunks of at most `chunk_messages`, in order."""

    chunk_messages = CHUNK_MESSAGES

    @classmethod
    def of(cls, chunk_messages: int) -> type[ChunkScheduler]:
        """The scheduler for another chunk size: Faust takes a class, not an instance."""
        return type(cls.__name__, (cls,), {"chunk_messages": chunk_messages})

    @classmethod
    def map_from_records(cls, records: Any) -> Any:
        """Faust's interface; the records stay as they are."""
        return records

    def iterate(self, records: Mapping[TP, list[Any]]) -> Iterator[tuple[TP, CoalescedRecord]]:
        """One pseudo-record per chunk."""
        fetched_at = time.monotonic()
        for partition, messages in records.items():
            epoch = leader_epochs.get(partition, -1)
            for start in range(0, len(messages), self.chunk_messages):
                chunk = messages[start : start + self.chunk_messages]
                last = chunk[-1]
                yield (
                    partition,
                    CoalescedRecord(
                        last.topic, last.partition, last.offset, last.timestamp, last.timestamp_type,
                        (), None, Fetched(chunk, fetched_at, epoch), None, 0, 0,
                    ),
                )  # fmt: skip


class ChunkSchema(Schema[None, Fetched]):
    """Hands a chunk's records to the agent undecoded: Faust acknowledges what it cannot decode, and loses it."""

    def compile(self, app: Any, **_: Any) -> Callable[..., Awaitable[Any]]:
        """The decoder of one pseudo-record."""
        create_event = app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return create_event(None, message.value, {}, message)

        return decode
