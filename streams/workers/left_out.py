"""Positions of a log that hold nothing for anybody who reads what is committed: is it only that, or was something lost?

A transaction's end is a record of its own (a marker), and what a transaction aborted stays in the log; a reader is
given neither. The log says so itself, batch by batch, beside the broker's list of what was aborted: where every
position of a range lies in such a batch, nothing is missing there.
"""

from __future__ import annotations

import asyncio
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
from streams.ingest.sources import Partition
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
    """How far positions hold nothing, and what they hold instead of messages."""

    after: int
    markers: int = 0
    aborted: int = 0


def left_out(batches: Iterable[Batch], aborted: Collection[tuple[int, int]], first: int) -> LeftOut:
    """From `first` on, as far as there are only markers and what transactions aborted, without a hole.

    `aborted` = the transactions that were aborted: their producer's id and first position.
    """
    waiting = sorted(aborted, key=lambda each: each[1])
    aborting: set[int | None] = set()
    found = LeftOut(first)
    for batch in batches:
        while waiting and waiting[0][1] < batch.after:
            aborting.add(waiting.pop(0)[0])
        was_aborted = batch.is_transactional and batch.producer_id in aborting
        if batch.aborts:
            aborting.discard(batch.producer_id)
        if batch.after <= found.after:
            continue
        if batch.first > found.after or not (batch.is_marker or was_aborted):
            break
        positions = batch.after - found.after
        markers, others = (positions, 0) if batch.is_marker else (0, positions)
        found = LeftOut(batch.after, found.markers + markers, found.aborted + others)
    return found


def explain(kafka: KafkaSettings, partition: Partition, first: int, after: int) -> str | None:
    """What positions [first, after) hold instead of messages; None if anything else may be there.

    They lie before the end of what is committed. Raises KafkaUnavailable.
    """
    try:
        found = asyncio.run(_read(kafka, partition, first, after))
    except (KafkaError, OSError, TimeoutError) as error:
        raise KafkaUnavailable(f"{partition.topic}/{partition.number} cannot be looked at: {error!r}") from None
    except SettingsError:  # librdkafka reads by it, and this client cannot
        return None
    if found.after < after:
        return None
    return f"no messages: {found.markers} transactions' markers, {found.aborted} positions of aborted transactions"


async def _read(kafka: KafkaSettings, partition: Partition, first: int, after: int) -> LeftOut:
    found = LeftOut(first)
    async with _client(kafka, partition.topic) as client, asyncio.timeout(ANSWER_WITHIN_S):
        while found.after < after:
            batches, aborted = await _fetch(client, partition, found.after)
            more = left_out(batches, aborted, found.after)
            if more.after == found.after:
                break
            found = LeftOut(more.after, found.markers + more.markers, found.aborted + more.aborted)
    return found


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
