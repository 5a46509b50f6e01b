"""GCRA: a rate without windows, charged at admission and corrected at settle. Pure; times in microseconds.

A rate of N per period is a bucket of N that drains N a period; what fits into it is admitted. This is the generic cell
rate algorithm (ITU-T I.371) in its leaky-bucket form, with the level kept in units × microseconds, so that it is exact
in whole numbers.

A charge is an upper bound, and what was too much of it is told when the request ends, perhaps long after the bucket has
drained it. Giving it back from the level would admit what was never saved. So the charges of the last two periods are
kept in slots, corrected where they were charged, and the level is worked out anew from them; that costs time, and is
done only where the uncorrected level would refuse.
"""

from __future__ import annotations

from collections import deque
from typing import Final

SLOTS: Final = 32
"""To a period: corrections lie up to 1/32 of it too late, never too early."""
KEPT: Final = 2 * SLOTS


class Rate:
    """The state of one rate: `limit` units a period of `period_us`."""

    __slots__ = ("_base", "_base_at", "_corrected", "_exact_at", "_level", "_level_at", "_slots", "limit", "period_us",
                 "width_us")  # fmt: skip

    def __init__(self, limit: int, period_us: int, since: int = 0) -> None:
        """`since`: nothing was charged before."""
        self.limit = limit
        self.period_us = period_us
        self.width_us = period_us // SLOTS
        self._level = 0
        """In units × period_us, not below what it would be with all corrections made."""
        self._level_at = 0
        self._corrected = False
        """Whether corrections are not in the level yet."""
        self._slots: deque[list[int]] = deque()
        """[slot number, units charged in it], oldest first."""
        self._base = 0
        """The level where the slots begin, at `_base_at`."""
        self._base_at = since
        self._exact_at = 0
        """When all corrections were made last."""

    def room(self, now: int, wanted: int) -> int:
        """How many units fit now; all corrections are looked at if `wanted` would not fit without."""
        self._drain(now)
        room = (self.limit * self.period_us - self._level) // self.period_us
        if room < wanted and self._corrected:
            self._level = self._exact(now)
            self._corrected, self._exact_at = False, now
            room = (self.limit * self.period_us - self._level) // self.period_us
        return room if room > 0 else 0

    def remaining(self, now: int) -> int:
        """How many units fit now, for people: corrections are looked at once in a while, a slot's width."""
        return self.room(now, self.limit if now - self._exact_at >= self.width_us else 0)

    def charge(self, now: int, units: int) -> None:
        """Count units at admission; more than there is room for if the caller says so. Nothing of before it held."""
        if now < self._base_at:
            return
        self._drain(now)
        self._level += units * self.period_us
        number = self._level_at // self.width_us
        if self._slots and self._slots[-1][0] >= number:
            self._slots[-1][1] += units
        else:
            self._slots.append([number, units])
            self._forget(number)

    def correct(self, charged_at: int, units: int) -> None:
        """Add units (usually fewer than none) to what was charged at a time. Of charges that are forgotten, or were not
        made here, nothing is given back, and what is to be added counts as charged in the oldest slot that is kept."""
        if units < 0 and charged_at < self._base_at:
            return
        number = charged_at // self.width_us
        found = next((slot for slot in reversed(self._slots) if slot[0] == number), None)
        if found is None:
            if units > 0:
                self._level += units * self.period_us
                if self._slots:
                    self._slots[0][1] += units
                else:
                    self._base += units * self.period_us
            return
        found[1] += units
        if units > 0:
            self._level += units * self.period_us
        else:
            self._corrected = True

    def wait_us(self, now: int, units: int) -> int | None:
        """In how many microseconds so many units fit, if nothing else comes; None if they never do."""
        if units > self.limit or self.limit == 0:
            return None
        self.room(now, units)
        missing = self._level + units * self.period_us - self.limit * self.period_us
        return max(-(-missing // self.limit), 0)

    def resume(self, now: int) -> None:
        """It did not hold for a while, and does again: what is left in the bucket stays, and nothing of what was
        charged before is corrected any more, as what was admitted meanwhile was not charged here."""
        self._level = self._base = self._exact(now)
        self._level_at = self._base_at = now
        self._corrected = False
        self._slots.clear()

    def drained_in_us(self, now: int) -> int:
        """In how many microseconds nothing is in the bucket, if nothing else comes."""
        self._drain(now)
        return -(-self._level // self.limit) if self.limit else 0

    def state(self) -> list[int]:
        """What it takes to go on elsewhere, for `restored`."""
        flat = [number for slot in self._slots for number in slot]
        return [self._level, self._level_at, int(self._corrected), self._base, self._base_at, *flat]

    @staticmethod
    def restored(limit: int, period_us: int, state: list[int]) -> Rate:
        """The same rate from its `state`; the limit may be another one now."""
        rate = Rate(limit, period_us)
        rate._level, rate._level_at, corrected, rate._base, rate._base_at = state[:5]
        rate._corrected = bool(corrected)
        rate._slots = deque([state[at], state[at + 1]] for at in range(5, len(state), 2))
        return rate

    def _drain(self, now: int) -> None:
        if now > self._level_at:
            level = self._level - self.limit * (now - self._level_at)
            self._level = level if level > 0 else 0
            self._level_at = now

    def _exact(self, now: int) -> int:
        """The level as if each charge had been what it is known to be by now, at the end of its slot."""
        level, at = self._base, self._base_at
        for number, units in self._slots:
            end = min((number + 1) * self.width_us, now)
            if end > at:
                level, at = max(0, level - self.limit * (end - at)), end
            level = max(0, level + units * self.period_us)
        return max(0, level - self.limit * max(now - at, 0))

    def _forget(self, newest: int) -> None:
        """What is older than KEPT slots becomes the level where the rest begins."""
        while self._slots[0][0] < newest - KEPT:
            number, units = self._slots.popleft()
            end = (number + 1) * self.width_us
            if end > self._base_at:
                self._base = max(0, self._base - self.limit * (end - self._base_at))
                self._base_at = end
            self._base = max(0, self._base + units * self.period_us)
