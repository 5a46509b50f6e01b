"""What either reader of Kafka is made of, whichever client it reads with."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from serving_adapter.settings import KafkaSettings
from streams.ingest.apply import Checkpoint, no_checkpoint
from streams.ingest.ingestion import Ingestion
from streams.ingest.tally import Observer, Tally
from streams.settings import CHUNK_MESSAGES, CompletenessSettings, DatabaseSettings
from streams.workers import left_out
from streams.workers.sweeping import Sweeper
from streams.workers.upkeep import Upkeep
from streams.workers.worker_health import LifeSigns


class Reader(ABC):
    """Applies the partitions that the group gives it, until told to stop or, with `drain`, until all is applied."""

    def __init__(
        self,
        kafka: KafkaSettings,
        database: DatabaseSettings,
        *,
        drain: bool = False,
        chunk_messages: int = CHUNK_MESSAGES,
        instance: str | None = None,
        completeness: CompletenessSettings | None = None,
        say: Callable[[str], None] = print,
        checkpoint: Checkpoint = no_checkpoint,
        observer: Observer | None = None,
    ) -> None:
        """`instance` names a place in the group that a restarted worker takes again at once (static membership).

        Raises KafkaUnavailable, DatabaseUnavailable.
        """
        self._kafka = kafka
        self._drain = drain
        self._chunk_messages = chunk_messages
        self._instance = instance
        self._say = say
        self.ingestion = Ingestion(
            kafka, database, say=say, checkpoint=checkpoint, observer=observer,
            explain=lambda *positions: left_out.explain(kafka, *positions),
        )  # fmt: skip
        self._sweeper = Sweeper(self.ingestion, say)
        self._upkeep = Upkeep(kafka, database, completeness or CompletenessSettings.from_environment(), say)
        self.signs = LifeSigns(time.monotonic(), upkeep=self._upkeep.signs)
        self._set_up()

    @property
    def tally(self) -> Tally:
        """What this worker has done since it started."""
        return self.ingestion.tally

    @abstractmethod
    def _set_up(self) -> None:
        """Make what this client needs beside."""

    @abstractmethod
    def run(self) -> Tally:
        """Run until stopped by SIGTERM or SIGINT, or until drained. Raises WorkerCrashed and as `Ingestion` does."""
