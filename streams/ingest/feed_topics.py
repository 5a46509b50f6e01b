"""The topics that are read: what each brings, which log it is, how far its partitions are; and a message as fetched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

import psycopg

from serving_adapter.settings import KafkaSettings
from streams.ingest.logs import Log, LogReader
from streams.ingest.positions import Applied
from streams.ingest.sources import Feed, Partition, SourceState
from streams.rules.chunks import Chunk, Record

_LAST_MS: Final = 221_845_392_000_000
"""The beginning of the year 9000, in milliseconds since 1970: days can still be added to it."""
BAD_HEADER: Final = "headers: a name is not UTF-8"


class Message(Protocol):
    """A message as a Kafka client gives it."""

    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]] | None:
        """In order. None, or surrogates in a name (PEP 383), where a name is not UTF-8."""

    @property
    def timestamp(self) -> int:
        """When the broker appended it, in milliseconds since 1970."""


def record_of(message: Message) -> Record:
    """A message as a source's."""
    at = appended_at(message.timestamp)
    headers, why = message.headers, ""
    if headers is None or (headers and not all(map(_is_text, headers))):
        headers, why = headers or (), BAD_HEADER
    return Record(message.offset, message.key, message.value or b"", at, headers, message.value is None, why)


def _is_text(header: tuple[str, bytes | None]) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in header[0])


def appended_at(timestamp_ms: int) -> datetime:
    """When the broker appended a message, from a client's milliseconds since 1970.

    What no broker says, only a producer that may set the time (a topic not fit for production), is held within bounds.
    """
    return datetime.fromtimestamp(min(max(timestamp_ms, 0), _LAST_MS) / 1000, UTC)


class Applier(Protocol):
    """What applies the chunks of one feed."""

    def apply(self, chunk: Chunk) -> Applied:
        """Apply what is new in the chunk, all or nothing."""


class FeedTopic:
    """A topic that is read: what it brings, which log it is, and how far its partitions are."""

    def __init__(
        self, kafka: KafkaSettings, topic: str, feed: Feed, applier: Callable[[psycopg.Connection], Applier]
    ) -> None:
        """Raises KafkaUnavailable."""
        self.kafka = kafka
        self.topic = topic
        self.feed: Feed = feed
        self.applier = applier
        self.states: dict[int, SourceState] = {}
        self._log_reader = LogReader(kafka, topic)
        self._asking = threading.Lock()
        self._asked_at = 0.0
        self.log = self._log_reader.read()

    def read_log(self) -> Log:
        """Ask what the log is and how far it reaches. Raises KafkaUnavailable."""
        with self._asking:
            return self._read_log()

    def log_after(self, fetched_at: float) -> Log:
        """The log as it is known to have been after a fetch (monotonic seconds). Raises KafkaUnavailable.

        Its topic's id is asked for if it was not since then; the rest only if that is another one.
        """
        with self._asking:
            if self._asked_at <= fetched_at:
                asked_at = time.monotonic()
                if self._log_reader.topic_id() != self.log.topic_id:
                    return self._read_log()
                self._asked_at = asked_at
            return self.log

    def _read_log(self) -> Log:
        asked_at = time.monotonic()
        self.log = self._log_reader.read()
        self._asked_at = asked_at
        return self.log

    @property
    def ends(self) -> dict[Partition, int]:
        """How far each partition reached when the log was last read."""
        return {Partition(self.topic, number): end for number, end in self.log.ends.items()}
