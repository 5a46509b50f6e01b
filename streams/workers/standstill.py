"""Does a consumer hang? Judged from where its partitions stand, while it is not at work: values only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from streams.ingest.sources import Partition

IDLE_S: Final = 60.0
"""A reader that had nothing to do for so long, though a partition has more: it hangs, and a restarted one does not."""
TAKEN_OF_OTHERS: Final = 5000
"""After so many chunks of others, and IDLE_S, a partition that has more had its turn, however slow the database is."""


class _Stood(NamedTuple):
    """Where a partition was first seen to stand with more in its log; the reader's clocks at that time."""

    position: int
    at: float
    idle_s: float
    taken: int


class Standstill:
    """What was seen of one reader's partitions that are behind their logs."""

    def __init__(self) -> None:
        self._stood: dict[Partition, _Stood] = {}

    def see(self, behind: Mapping[Partition, int], now: float, busy_s: float, taken: int) -> Partition | None:
        """A partition for which nothing comes, or None.

        `behind` has the position of each partition whose log has more; `now` in monotonic seconds. Since any beginning
        the reader was applying, or waiting to apply, for `busy_s` seconds, and took `taken` chunks in hand.
        """
        idle_s = now - busy_s
        stood, self._stood = self._stood, {}
        for partition, position in behind.items():
            seen = stood.get(partition)
            if seen is None or seen.position != position:
                seen = _Stood(position, now, idle_s, taken)
            self._stood[partition] = seen
            passed_over = taken - seen.taken > TAKEN_OF_OTHERS and now - seen.at > IDLE_S
            if idle_s - seen.idle_s > IDLE_S or passed_over:
                return partition
        return None
