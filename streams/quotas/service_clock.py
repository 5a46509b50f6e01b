"""The service's time: the database's clock, carried on by the machine's monotonic one. Pure; microseconds since 1970.

It never stands still or goes back, as entries are told apart by it. Where the database's clock has stepped back, or an
owner before was ahead of it, time goes on at half speed until the database is there again; periods begin by the
database's clock all the while (`ahead`). A step forward is followed at once.
"""

from __future__ import annotations

from typing import Final

STEP_US: Final = 1_000_000
"""What is more is no drift and no slow answer, but a step."""


class ServiceClock:
    """Time in a process; `monotonic` is always in seconds."""

    __slots__ = ("_ahead", "_base", "_base_at", "_last")

    def __init__(self, database: int, monotonic: float, newest: int = 0) -> None:
        self._base = max(database, newest)
        self._base_at = monotonic
        self._ahead = self._base - database
        self._last = newest

    def now(self, monotonic: float) -> int:
        """The time; never the same twice."""
        now = self._at(monotonic)
        self._last = now if now > self._last else self._last + 1
        return self._last

    def ahead(self, monotonic: float) -> int:
        """How far this time is before the database's."""
        return max(self._ahead - (int((monotonic - self._base_at) * 1_000_000) >> 1), 0)

    def hear(self, database: int, monotonic: float) -> int:
        """The database's clock was looked at; by how much it has stepped forward, or 0."""
        here = self._at(monotonic)
        self._base, self._base_at = max(database, here), monotonic
        self._ahead = self._base - database
        return database - here if database - here > STEP_US else 0

    def _at(self, monotonic: float) -> int:
        gone = int((monotonic - self._base_at) * 1_000_000)
        return self._base + (gone if not self._ahead else max(gone >> 1, gone - self._ahead))
