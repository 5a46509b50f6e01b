"""How much a tenant usually asks for, and whether it floods: many times as much as that. Pure.

Requests are counted by the minute. What is normal is the mean of the minutes before, the newer ones counting more; a
minute of a flood counts as no more than what went through, so that a flood becomes normal in hours at the earliest. A
tenant that floods is let through at `SHED_TO` times its normal volume until it has asked for no more than that for some
minutes.
"""

from __future__ import annotations

from typing import Final, Literal

MINUTE_US: Final = 60_000_000
FLOOD_FROM: Final = 10
"""So many times its normal volume is a flood."""
SHED_TO: Final = 2
"""So many times its normal volume goes through meanwhile."""
LEAST: Final = 60
"""Requests a minute that are normal for anybody: a small tenant's busy minute is no flood."""
KNOWN_FROM: Final = 10
"""Minutes after which a tenant's normal volume is known."""
MEMORY: Final = 240
"""Minutes: how far back what is normal reaches, by its mean age."""
CALM: Final = 3
"""Minutes without a flood after which it is over."""

Change = Literal["flood", "calm"]


class Volume:
    """One tenant's."""

    __slots__ = ("_calm", "_count", "_minute", "_minutes", "_passed", "normal", "since")

    def __init__(self, stored: list[int] | None = None) -> None:
        self.normal, self._minutes, self.since = stored or (0, 0, 0)
        """Requests a minute, in thousandths."""
        self._minute = 0
        self._count = 0
        """Requests in this minute, and how many of them went through while it was shed."""
        self._passed = 0
        self._calm = 0

    @property
    def is_shed(self) -> bool:
        """Whether it floods."""
        return bool(self.since)

    @property
    def limit(self) -> int:
        """Requests a minute that go through while it floods."""
        return SHED_TO * max(self.normal // 1000, LEAST)

    def stored(self) -> list[int]:
        """What it takes to go on elsewhere."""
        return [self.normal, self._minutes, self.since]

    def turn(self, now: int) -> Change | None:
        """Go to the minute that holds `now`; "calm" if a flood is over with that."""
        minute = now // MINUTE_US
        passed = minute - self._minute
        if passed <= 0:
            return None
        is_first = not self._minute
        count, self._minute, self._count, self._passed = self._count, minute, 0, 0
        if is_first:
            return None
        self._calm = self._calm + passed if count <= self.limit else passed - 1
        self._learn(count)
        if self.since and self._calm >= CALM:
            self.since = 0
            return "calm"
        return None

    def ask(self, now: int, requests: int = 1) -> Change | None:
        """Count requests that were asked for, after `turn`; "flood" if one begins with them."""
        self._count += requests
        if self.since or self._minutes < KNOWN_FROM or self._count <= FLOOD_FROM * max(self.normal // 1000, LEAST):
            return None
        self.since, self._calm, self._passed = now, 0, self.limit
        return "flood"

    def lets_through(self) -> bool:
        """Whether a request goes through; it is counted then."""
        if self.since and self._passed >= self.limit:
            return False
        self._passed += 1
        return True

    def wait_us(self, now: int) -> int:
        """When the next may go through."""
        return MINUTE_US - now % MINUTE_US

    def _learn(self, count: int) -> None:
        """A minute is over. Minutes without any request are no part of what is normal for who is seldom here."""
        if self.since:
            self.normal += (min(count, self.limit) * 1000 - self.normal) // MEMORY
        elif count:
            self._minutes = min(self._minutes + 1, MEMORY)
            self.normal += (count * 1000 - self.normal) // self._minutes
