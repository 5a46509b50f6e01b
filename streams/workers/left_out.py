"""Positions of a log that hold nothing for anybody who reads what is committed: is it only that, or was something lost?

A transaction's end is a record of its own (a marker), and what a transaction aborted stays in the log; a reader is
given neither. The log says so itself, batch by batch, beside the broker's list of what was aborted: where every
position of a hole lies in such a batch, nothing is missing there. All holes of a chunk are looked at in one walk.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from serving_adapter.errors import KafkaUnavailable
from serving_adapter.kafka_client import ANSWER_WITHIN_S
from serving_adapter.settings import KafkaSettings, SettingsError
from streams.ingest.log_gaps import Nothing
from streams.ingest.sources import Partition
from streams.rules.chunks import Ranges
from streams.workers.kafka_security import security_of
from streams.workers.tls_context import tls_context

READ_COMMITTED: Final = 1
FETCH_WAIT_MS: Final = 100
FETCH_BYTES: Final = 1024 * 1024
RACKS_SINCE: Final = 11
"""From this version of an answer on the replica that is nearest stands before the records."""


class Batch(NamedTuple):
    """Positions [first, after) of a log, as they were written together."""

    first: int
    after: int
    producer_id: int | None
    is_transactional: bool = False
    is_marker: bool = False
    aborts: bool = False
    """Whether it is the marker that ends an aborted transaction."""


class LeftOut(NamedTuple):
    """How far a log was walked, and which positions on the way hold nothing."""

    after: int
    nothing: Nothing = Nothing()
    is_disproved: bool = False
    """Whether what comes at `after` lies in a hole, and may be a message."""


def left_out(batches: Iterable[Batch], aborted: Collection[tuple[int, int]], holes: Ranges, walked: LeftOut) -> LeftOut:
    """Walk further: up to the end of the batches, or to where a hole holds more than markers and aborted messages.

    `aborted` = the transactions that were aborted: their producer's id and first position.
    """
    waiting = sorted(aborted, key=lambda each: each[1])
    aborting: set[int | None] = set()
    after, (ranges, markers, others), _ = walked
    found = list(ranges)
    for batch in batches:
        while waiting and waiting[0][1] < batch.after:
            aborting.add(waiting.pop(0)[0])
        was_aborted = batch.is_transactional and batch.producer_id in aborting
        if batch.aborts:
            aborting.discard(batch.producer_id)
        if batch.after <= after:
            continue
        is_empty = batch.is_marker or was_aborted
        if _touches(holes, after, batch.first if is_empty else batch.after):
            return LeftOut(after, Nothing(found, markers, others), is_disproved=True)
        if is_empty:
            first, after = max(batch.first, after), batch.after
            markers, others = (
                (markers + after - first, others) if batch.is_marker else (markers, others + after - first)
            )
            begin = found.pop()[0] if found and found[-1][1] == first else first
            found.append((begin, after))
        after = batch.after
    return LeftOut(after, Nothing(found, markers, others))


def _touches(holes: Ranges, first: int, after: int) -> bool:
    """Whether any position from one to before another lies in a hole."""
    at = bisect_right(holes, first, key=lambda each: each[1])
    return first < after and at < len(holes) and holes[at][0] < after


def explain(kafka: KafkaSettings, partition: Partition, holes: Ranges) -> Nothing:
    """Which positions from the first hole on hold no messages, as far as all holes do.

    They lie before the end of what is committed. Raises KafkaUnavailable.
    """
    try:
        return asyncio.run(_read(kafka, partition, holes))
    except (KafkaError, OSError, TimeoutError) as error:
        raise KafkaUnavailable(f"{partition.topic}/{partition.number} cannot be looked at: {error!r}") from None
    except SettingsError:  # librdkafka reads by it, and this client cannot
        return Nothing()


async def _read(kafka: KafkaSettings, partition: Partition, holes: Ranges) -> Nothing:
    walked = LeftOut(holes[0][0])
    async with _client(kafka, partition.topic) as client, asyncio.timeout(ANSWER_WITHIN_S):
        while walked.after < holes[-1][1] and not walked.is_disproved:
            batches, aborted = await _fetch(client, partition, walked.after)
            before, walked = walked, left_out(batches, aborted, holes, walked)
            if walked.after == before.after:
                break
    ranges = [(first, min(after, holes[-1][1])) for first, after in walked.nothing.ranges if first < holes[-1][1]]
    return walked.nothing._replace(ranges=ranges)


@asynccontextmanager
async def _client(kafka: KafkaSettings, topic: str) -> AsyncIterator[AIOKafkaClient]:
    """A client that belongs to no group."""
    security = security_of(kafka.properties)
    protocol = ("SASL_" if security.sasl else "") + ("SSL" if security.tls else "PLAINTEXT")
    given: dict[str, Any] = {"ssl_context": tls_context(security.tls)} if security.tls else {}
    if sasl := security.sasl:
        given |= {"sasl_mechanism": sasl.mechanism, "sasl_plain_username": sasl.username,
                  "sasl_plain_password": sasl.password}  # fmt: skip
    client = AIOKafkaClient(
        bootstrap_servers=kafka.bootstrap, security_protocol=protocol,
        request_timeout_ms=int(ANSWER_WITHIN_S * 1000), **given,
    )  # fmt: skip
    try:
        await client.bootstrap()
        await client.set_topics([topic])
        yield client
    finally:
        await client.close()


async def _fetch(
    client: AIOKafkaClient, partition: Partition, position: int
) -> tuple[Sequence[Batch], Sequence[tuple[int, int]]]:
    """Batches from the one on that holds a position, and which transactions among them were aborted."""
    leader = client.cluster.leader_for_partition(TopicPartition(*partition))
    if leader is None or leader < 0:
        raise KafkaUnavailable(f"{partition.topic}/{partition.number} has no leader")
    wanted = [(partition.topic, [(partition.number, position, FETCH_BYTES)])]
    answer = await client.send(leader, FetchRequest(FETCH_WAIT_MS, 1, FETCH_BYTES, READ_COMMITTED, wanted))
    ((_, ((_, code, *more),)),) = answer.topics
    if code:
        raise for_code(code)()
    aborted = more[-3] if answer.API_VERSION >= RACKS_SINCE else more[-2]
    return list(_batches(MemoryRecords(more[-1]))), aborted or []


def _batches(records: Any) -> Iterable[Batch]:
    while records.has_next():
        batch = records.next_batch()
        aborts = batch.is_control_batch and ControlRecord.parse(next(batch).key) == ABORT_MARKER
        yield Batch(
            batch.base_offset, batch.next_offset, batch.producer_id, batch.is_transactional, batch.is_control_batch,
            aborts,
        )  # fmt: skip
