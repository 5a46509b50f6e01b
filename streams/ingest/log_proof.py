"""Does a log still hold what was applied of it? What it has there now is compared with the chunks' digests.

A partition whose leader changed may have lost its end by that, and have grown past the stored position again since. Its
leader epoch is then another one; numbers alone would show nothing (docs/spec/metering.md 4.1).
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import psycopg
from confluent_kafka import Consumer, KafkaError, TopicPartition

from serving_adapter.errors import KafkaUnavailable
from serving_adapter.kafka_client import ANSWER_WITHIN_S, quiet_log
from serving_adapter.settings import KafkaSettings
from streams.ingest.logs import Log
from streams.ingest.sources import Partition
from streams.rules.chunks import Record, digest

_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END: Final = 2**63 - 1
_NOTHING: Final = digest(())
_CHUNKS: Final = """
    select first_position, next_position, content_digest from usage.applied_chunks
    where source = %s and first_position >= %s and first_position < %s order by first_position desc limit %s
"""
_FOLDED: Final = """
    select first_position, next_position, proofs from usage.applied_ranges
    where source = %s and first_position < %s order by first_position desc limit 1
"""
_FOLDED_PROOF: Final = struct.Struct(">q32s")


class Proof(NamedTuple):
    """Of one chunk: its positions, from one to before another, and the digest of what they held."""

    first: int
    after: int
    was: bytes


class Held(NamedTuple):
    """What a log has now of what was applied of it."""

    differs: bool
    """Whether it has something else, or nothing, where something was applied."""
    to: int
    """Up to here it is what was applied: who reads on from here, or from before, misses nothing."""


FindHeld = Callable[[psycopg.Connection, str, Partition, Log], Held]
"""What a log has of what was applied of a source. Raises KafkaUnavailable, psycopg.Error."""


def held(kafka: KafkaSettings, connection: psycopg.Connection, source: str, partition: Partition, log: Log) -> Held:
    """As `LogProof.held`, for one question."""
    with contextlib.closing(LogProof(kafka)) as proof:
        return proof.held(connection, source, partition, log)


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

    def held(
        self, connection: psycopg.Connection, source: str, partition: Partition, log: Log, since: int | None = None
    ) -> Held:
        """What the log has of the newest chunk that was applied, and of all that reach to `since` or further.

        Where it has not all of that, as far back as it takes: in ever longer runs of chunks, until it has one whole
        run. What it has let go of, or a closed period has no proof of, cannot be compared. Raises KafkaUnavailable,
        psycopg.Error.
        """
        begins, end = log.begins[partition.number], log.ends[partition.number]
        proofs = itertools.takewhile(lambda each: each.first >= begins, backwards(connection, source))
        run = list(itertools.islice(proofs, 1))
        while since is not None and run and run[-1].first >= since and (further := next(proofs, None)) is not None:
            run.append(further)
        cut, is_beneath = None, False
        while run:
            differing, same = self._compare(partition, run, end)
            if same and not differing:
                return Held(cut is not None, max(same) if cut is None else cut)
            if differing:
                cut = min(differing)
                is_beneath = any(after <= cut for after in same)
            run = list(itertools.islice(proofs, 2 * len(run)))
        return Held(cut is not None, cut if cut is not None and is_beneath else begins)

    def _compare(self, partition: Partition, run: Sequence[Proof], end: int) -> tuple[list[int], list[int]]:
        """Of a run of chunks, newest first: where those begin that are others now; where those end that are the same.

        One that held no message, and holds none, tells nothing.
        """
        differing = [each.first for each in run if each.after > end]
        there = [each for each in reversed(run) if each.after <= end]
        same = []
        if there:
            with contextlib.closing(self._read(partition, there[0].first, there[-1].after)) as records:
                record = next(records, None)
                for first, after, was in there:
                    found = []
                    while record is not None and record.position < after:
                        if record.position >= first:
                            found.append(record)
                        record = next(records, None)
                    if (now := digest(found)) != was:
                        differing.append(first)
                    elif now != _NOTHING:
                        same.append(after)
        return differing, same

    def _read(self, partition: Partition, first: int, after: int) -> Generator[Record]:
        """What stands at these positions, as far as anything does."""
        self._consumer.assign([TopicPartition(*partition, first)])
        with contextlib.closing(_messages(self._consumer)) as messages:
            for offset, value in messages:
                if offset >= after or value is None:
                    return
                yield Record(offset, None, value, _NEVER)
                if offset + 1 >= after:
                    return


def backwards(connection: psycopg.Connection, source: str) -> Iterator[Proof]:
    """Proofs of a source's chunks, newest first, also those that were folded; as far back as there are proofs."""
    before, page = _END, 8
    while True:
        folded = connection.execute(_FOLDED, (source, before)).fetchone()
        floor = folded[1] if folded else 0
        while chunks := connection.execute(_CHUNKS, (source, floor, before, page)).fetchall():
            for first, after, was in chunks:
                yield Proof(first, after, bytes(was))
            before, page = chunks[-1][0], min(page * 4, 1000)
        if folded is None or folded[2] is None:
            return
        before = first = folded[0]
        proofs = []
        for after, was in _FOLDED_PROOF.iter_unpack(folded[2]):
            proofs.append(Proof(first, after, was))
            first = after
        yield from reversed(proofs)


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
