"""Positions that no reader is given anything of: applied as empty where the log itself proves that they hold nothing.

Otherwise the partition stops for a person (docs/spec/metering.md 4.1): nothing is ever skipped silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, NamedTuple

from serving_adapter.errors import KafkaUnavailable
from streams.database import connect
from streams.errors import PositionGap
from streams.ingest import positions
from streams.ingest.logs import Log
from streams.ingest.patience import Patience
from streams.ingest.sources import Partition, SourceState, disagreement
from streams.rules.chunks import Ranges
from streams.settings import DatabaseSettings

GO_BACK_TIMES: Final = 20
"""A chunk that was fetched before the seek may follow it; after so many there really is nothing at that position."""


class Nothing(NamedTuple):
    """Positions that hold no messages, and what they hold instead."""

    ranges: Ranges = ()
    markers: int = 0
    aborted: int = 0


Explain = Callable[[Partition, Ranges], Nothing]
"""Which positions of the given holes, and of what lies between, hold no messages; as far as all of the holes do.

Raises KafkaUnavailable.
"""


def unexplained(_partition: Partition, _holes: Ranges) -> Nothing:
    """Stands for a reader that cannot look: every gap is a person's."""
    return Nothing()


class LogGaps:
    """One reader's."""

    def __init__(
        self, database: DatabaseSettings, explain: Explain, patience: Patience, say: Callable[[str], None]
    ) -> None:
        self._database = database
        self._explain = explain
        self._patience = patience
        self._say = say
        self._went_back: dict[Partition, int] = {}
        self._said: dict[Partition, datetime] = {}
        """In which hour it was said last that a partition holds transactions."""

    def empty(self, partition: Partition, holes: Ranges) -> Ranges:
        """Positions that hold nothing for anybody, as the log proves; none if it cannot be asked. Waits for nobody."""
        try:
            found = self._explain(partition, holes)
        except KafkaUnavailable as error:
            self._say(f"Kafka: {error}")
            return ()
        hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        if found.ranges and self._said.get(partition) != hour:
            self._said[partition] = hour
            self._say(
                f"{partition.topic}/{partition.number}: from {found.ranges[0][0]} on {found.markers} transactions'"
                f" markers and {found.aborted} positions of aborted transactions are passed over"
            )
        return found.ranges

    def pass_over(self, state: SourceState, first: int, after: int) -> bool:
        """Go on behind [first, after), which are empty; False if the source is not there, or stands still."""

        def write() -> bool:
            with connect(self._database.url) as connection:
                return positions.pass_over_nothing(connection, state.as_source(), first, after)

        return bool(self._patience.wait(write))

    def stands(self, partition: Partition, state: SourceState, log: Log, gap: PositionGap) -> str | None:
        """Why a partition must not go back for what is missing in it; None if it may, once more."""
        why = disagreement(replace(state, next_position=gap.expected), log, partition.number)
        times = self._went_back.get(partition, 0)
        if why is None and times >= GO_BACK_TIMES:
            why = f"the log has nothing at position {gap.expected}, but at {gap.found}, and does not say why"
        if why is None:
            self._went_back[partition] = times + 1
        return why

    def closed(self, partition: Partition) -> None:
        """A partition goes on."""
        self._went_back.pop(partition, None)
