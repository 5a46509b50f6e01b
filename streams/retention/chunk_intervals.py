"""How much time a chunk of a hypertable should hold, from the rate that is expected: values in, values out.

What must stay in memory is the index of the chunk that is written to now: its pages are touched at random by tenant.
The longest interval whose index fits the memory set aside is best: each chunk costs a query planning and locks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

ALLOWED: Final = tuple(timedelta(minutes=minutes) for minutes in (15, 30, 60, 120, 180, 240, 360, 480, 720, 1440))
"""Parts of a day: a chunk then always ends where a day does, and a day is what is archived and dropped."""
DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Load:
    """What one hypertable is expected to take. `bytes_a_row` is of its indexes, `rows_a_day` what is new in them."""

    table: str
    rows_a_day: int
    bytes_a_row: int

    def index_bytes(self, interval: timedelta) -> int:
        """Size of the indexes of a chunk of `interval`."""
        return self.rows_a_day * self.bytes_a_row // (DAY // interval)


@dataclass(frozen=True, slots=True)
class Planned:
    """An interval, and whether the index of such a chunk fits: if not even the shortest does, memory is too small."""

    table: str
    interval: timedelta
    index_bytes: int
    fits: bool


EVENT_INDEX_BYTES: Final = 70
"""Of an event, in its index by tenant and completion: measured 48 to 66, by tenant ids' lengths and order."""
WINDOW_INDEX_BYTES: Final = 250
"""Of a window, in its key of twelve columns and its index by time."""


def loads(events_a_day: int, keys_a_minute: int) -> tuple[Load, Load]:
    """The two hypertables that grow with traffic: events, and a window for each combination of keys in a minute."""
    windows = min(events_a_day, keys_a_minute * 24 * 60)
    return Load("events", events_a_day, EVENT_INDEX_BYTES), Load("windows_1m", windows, WINDOW_INDEX_BYTES)


def plan(expected: Sequence[Load], memory_bytes: int, share_percent: int) -> list[Planned]:
    """The interval of each table, so that the chunks being written share `share_percent` of the memory.

    Each gets a part of it by its rate, so that no table's index crowds out another's.
    """
    whole = sum(load.index_bytes(DAY) for load in expected)
    planned = []
    for load in expected:
        part = memory_bytes * share_percent * load.index_bytes(DAY) // (100 * whole) if whole else memory_bytes
        fitting = [interval for interval in ALLOWED if load.index_bytes(interval) <= part]
        interval = fitting[-1] if fitting else ALLOWED[0]
        planned.append(Planned(load.table, interval, load.index_bytes(interval), bool(fitting)))
    return planned
