"""Positions that no reader is given anything of: passed over where the log itself proves that they hold nothing.

Otherwise the partition stops for a person (docs/spec/metering.md 4.1): nothing is ever skipped silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from serving_adapter.errors import KafkaUnavailable
from streams.database import connect
from streams.errors import PositionGap
from streams.ingest import resolving
from streams.ingest.logs import Log
from streams.ingest.patience import Patience
from streams.ingest.sources import Partition, SourceState, disagreement
from streams.settings import DatabaseSettings

GO_BACK_TIMES: Final = 20
"""A chunk that was fetched before the seek may follow it; after so many there really is nothing at that position."""
Explain = Callable[[Partition, int, int], str | None]
"""What positions from one to before another hold instead of messages; None if messages may be there.

Raises KafkaUnavailable.
"""


def unexplained(_partition: Partition, _first: int, _after: int) -> None:
    """Stands for a reader that cannot look: every gap is a person's."""


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

    def hold_nothing(self, partition: Partition, first: int, after: int) -> str | None:
        """What the log has at [first, after), where that is nothing for anybody. Waits for nobody."""
        try:
            return self._explain(partition, first, after)
        except KafkaUnavailable as error:
            self._say(f"Kafka: {error}")
            return None

    def pass_over(self, partition: Partition, state: SourceState, first: int, after: int, why: str) -> bool:
        """Go on behind [first, after), for all readers; False if the source is not there, or stands still."""

        def write() -> bool:
            with connect(self._database.url) as connection:
                return resolving.pass_over_nothing(connection, state, first, after, why)

        passed = bool(self._patience.wait(write))
        if passed:
            self._say(f"{partition.topic}/{partition.number}: {first} to {after} hold {why}; passed over")
        return passed

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
