"""What a reader of Kafka has done since it started: outcomes, what stands still, time at work; and who is told."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from streams.ingest.positions import Applied
from streams.ingest.sources import Feed, Partition


@dataclass(slots=True)
class Tally:
    """What this process has done since it started."""

    applied: int = 0
    duplicates: int = 0
    quarantined: int = 0
    skipped: int = 0
    chunks: int = 0
    reports: int = 0
    """Messages of replicas about themselves; the other counts are usage."""
    stopped: dict[Partition, str] = field(default_factory=dict)

    @property
    def seen(self) -> int:
        """Usage messages with an outcome."""
        return self.applied + self.duplicates + self.quarantined

    def add(self, done: Applied) -> None:
        """Count a chunk."""
        self.applied += done.applied
        self.duplicates += done.duplicates
        self.quarantined += done.quarantined
        self.skipped += done.skipped
        self.chunks += 1


class WorkTime:
    """Seconds that one thread was at work; read by any."""

    def __init__(self) -> None:
        self._past_and_since: tuple[float, float | None] = (0.0, None)
        """In one place, so that whoever reads it in between sees no work uncounted."""

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count the time in the block."""
        past, _ = self._past_and_since
        began = time.monotonic()
        self._past_and_since = past, began
        try:
            yield
        finally:
            self._past_and_since = past + time.monotonic() - began, None

    @property
    def seconds(self) -> float:
        """Until now, also of what is under way."""
        past, since = self._past_and_since
        return past if since is None else past + time.monotonic() - since


class Observer(Protocol):
    """Who is told what happens, once a chunk; in the thread that calls `take`."""

    def chunk(self, feed: Feed, done: Applied, seconds: float) -> None:
        """A chunk was applied, by a transaction that took so long."""

    def database_wait(self) -> None:
        """A chunk could not be applied: the database is away, and the chunk will be tried again."""


class Unobserved:
    """Nobody is told."""

    def chunk(self, feed: Feed, done: Applied, seconds: float) -> None:
        """Nothing."""

    def database_wait(self) -> None:
        """Nothing."""
