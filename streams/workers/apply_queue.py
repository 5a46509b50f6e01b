"""The bare consumer's chunks between polling and applying: cut, queued for a thread of their own, bounded.

The bound is kept by the reader, which pauses while the queue `is_full`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import methodcaller
from typing import Final

from confluent_kafka import Message

from streams.ingest.ingestion import Ingestion
from streams.ingest.sources import Partition

BUFFERED_MESSAGES: Final = 16_000
BUFFERED_BYTES: Final = 8 * 1024 * 1024
CHUNK_BYTES: Final = 4 * 1024 * 1024
"""A chunk's messages together; one message may be larger."""
_told_headers: Final = methodcaller("headers")
"""The client returns a broken list beside its exception where a name is not UTF-8. A call from C code is checked for
that; the interpreter's own, once it is warm, is not, and ends in a crash (CPython 3.11, confluent-kafka 2.16).
"""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A message in the words of `ingestion.Message`."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: Sequence[tuple[str, bytes | None]] | None = ()
    leader_epoch: int = -1
    """Of the leader that appended it; -1: not told."""


class ApplyQueue:
    """The thread that applies, its queue, and where it wants the reader to go back to."""

    def __init__(self, ingestion: Ingestion) -> None:
        self._ingestion = ingestion
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="apply")
        self._waiting: deque[tuple[Partition, Future[None], int, int]] = deque()
        self._messages = self._bytes = 0
        self._eras: dict[Partition, int] = {}
        """How often a partition was read anew: what was polled before is not applied."""
        self._seeks: deque[tuple[Partition, int]] = deque()

    @property
    def in_hand(self) -> bool:
        """Whether anything waits or is being applied."""
        return bool(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether no more should be polled."""
        return self._messages >= BUFFERED_MESSAGES or self._bytes >= BUFFERED_BYTES

    def submit(self, partition: Partition, chunk: Sequence[Fetched]) -> None:
        """Apply a chunk after all that was submitted before."""
        size = sum(_size(message) for message in chunk)
        era = self._eras.get(partition, 0)
        self._waiting.append(
            (partition, self._thread.submit(self._take, partition, chunk, time.monotonic(), era), len(chunk), size)
        )
        self._messages += len(chunk)
        self._bytes += size

    def collect(self) -> set[Partition]:
        """Forget what is done; returns of which partitions. Raises what applying raised."""
        done = set()
        while self._waiting and self._waiting[0][1].done():
            partition, future, messages, size = self._waiting.popleft()
            self._messages -= messages
            self._bytes -= size
            if not future.cancelled():
                future.result()
            done.add(partition)
        return done

    def drop(self, partitions: Iterable[Partition]) -> None:
        """Do not apply what waits of these."""
        for partition in partitions:
            self._eras[partition] = self._eras.get(partition, 0) + 1

    def ask_to_seek(self, positions: Mapping[Partition, int]) -> None:
        """Have the reader go back; for any thread."""
        self.drop(positions)
        self._seeks.extend(positions.items())

    def take_seeks(self) -> list[tuple[Partition, int]]:
        """Where to go back to, since the last time."""
        return [self._seeks.popleft() for _ in range(len(self._seeks))]

    def close(self) -> None:
        """Finish what is in hand; what waits is left to be read again."""
        self._thread.shutdown(cancel_futures=True)

    def _take(self, partition: Partition, chunk: Sequence[Fetched], fetched_at: float, era: int) -> None:
        if era != self._eras.get(partition, 0):
            return
        back_to = self._ingestion.take(partition, chunk, fetched_at, chunk[-1].leader_epoch)
        if back_to is not None:
            self.ask_to_seek({partition: back_to})


def chunks_of(messages: Iterable[Message], most: int) -> Iterable[tuple[Partition, list[Fetched]]]:
    """Each partition's messages in order, cut into chunks of at most so many, and of about CHUNK_BYTES."""
    open_chunks: dict[Partition, list[Fetched]] = {}
    sizes: dict[Partition, int] = {}
    for message in messages:
        topic, number, value = message.topic(), message.partition(), message.value()
        assert topic is not None, "a message without an error has its place"
        assert number is not None, "a message without an error has its place"
        partition = Partition(topic, number)
        key, at, epoch = _bytes(message.key()), message.timestamp()[1], message.leader_epoch()
        fetched = Fetched(
            message.offset() or 0, key, _bytes(value), at, _headers(message), -1 if epoch is None else epoch
        )
        size = _size(fetched)
        chunk = open_chunks.setdefault(partition, [])
        if chunk and (len(chunk) >= most or sizes[partition] + size > CHUNK_BYTES):
            yield partition, chunk
            chunk = open_chunks[partition] = []
        sizes[partition] = size + (sizes[partition] if chunk else 0)
        chunk.append(fetched)
    yield from open_chunks.items()


def _size(message: Fetched) -> int:
    """Bytes that a message holds in memory, about: headers may be as large as values."""
    told = sum(len(name) + len(value or b"") for name, value in message.headers or ())
    return len(message.value or b"") + len(message.key or b"") + told


def _headers(message: Message) -> Sequence[tuple[str, bytes | None]] | None:
    try:
        headers = _told_headers(message)
    except (UnicodeDecodeError, SystemError):  # a name is not UTF-8: the client gives none of them
        return None
    if not headers:
        return ()
    pairs = headers.items() if isinstance(headers, dict) else headers
    return [(name, _bytes(value)) for name, value in pairs]


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
