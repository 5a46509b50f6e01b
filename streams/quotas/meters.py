"""One quota's counters for one tenant. Pure; times in microseconds since 1970, amounts in smallest units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from streams.quotas.calendar import Anchor, bounds
from streams.quotas.definitions import RATE_US, Quota
from streams.quotas.rates import Rate

ENDLESS: Final = 2**62
"""The room of a quota that refuses nothing."""
SKEW_US: Final = 2_000_000
"""How far a replica's clock may be from the database's (docs/spec/metering.md 3): what was settled so shortly before a
period's end may have completed in the next."""
SMALL_PARTS: Final = 10
"""A request is small where so many of it fit under a limit."""


@dataclass(slots=True)
class UsedIn:
    """A period: [start, end), what is confirmed in it, and the highest threshold that was told."""

    start: int
    end: int
    confirmed: int
    alerted: int


class Crossed(NamedTuple):
    """A threshold that was reached: percent, its period's start, what is confirmed in it."""

    percent: int
    start: int
    confirmed: int


class BudgetMeter:
    """A budget: what is used, what may still come of what was promised, in the current period."""

    __slots__ = (
        "_ahead",
        "alerted",
        "anchor",
        "before",
        "confirmed",
        "end",
        "expected",
        "is_spent",
        "leased",
        "loaded",
        "quota",
        "reserved",
        "reserves_the_usual",
        "start",
        "unconfirmed",
        "unreserved_in",
    )  # fmt: skip

    def __init__(self, quota: Quota, anchor: Anchor, now: int) -> None:
        self.quota = quota
        self.anchor = anchor
        self.start, self.end = bounds(quota.period, now, anchor)
        self.loaded = False
        """Whether `confirmed` is the windows' sum; until then nothing can be decided."""
        self.confirmed = 0
        self.unconfirmed = 0
        """Settled, its usage event not here yet."""
        self.reserves_the_usual = not quota.hard
        """Whether what a request will probably use is reserved; else the most that may come of it."""
        self.reserved = 0
        """Of what is in flight."""
        self.expected = 0
        """What probably will."""
        self.leased = 0
        self.unreserved_in: dict[int, int] = {}
        """Of the confirmed, what nobody had reserved, by its period's start: of this one, and of those to come."""
        self.alerted = 0
        """The highest threshold that was told in this period, in percent."""
        self.is_spent = False
        """Whether a request was refused because what is left of the period is as good as nothing."""
        self.before: UsedIn | None = None
        """The period before, whose last events come after its end."""
        self._ahead: dict[int, int] = {}
        """Confirmed usage of periods to come, by their start: a replica's clock is before ours."""

    @property
    def used(self) -> int:
        """Confirmed and settled usage of the period."""
        return self.confirmed + self.unconfirmed

    @property
    def unreserved(self) -> int:
        """Of the confirmed, what nobody had reserved."""
        return self.unreserved_in.get(self.start, 0)

    @property
    def remaining(self) -> int:
        """What is neither used nor promised; not below 0."""
        left = self.quota.limit - self.confirmed - self.unconfirmed - self.reserved - self.leased
        return left if left > 0 else 0

    @property
    def percent(self) -> int:
        """Used, in whole percent of the limit, cut off; of a limit of 0 any use is 100."""
        if self.quota.limit == 0:
            return 100 if self.used > 0 else 0
        return max(self.used, 0) * 100 // self.quota.limit

    def rolled_to(self, now: int) -> bool:
        """Go to the period that holds `now`; False if we are in it. What is in flight goes with us whole; of what is
        settled the caller adds again what may belong to the new period (`counts_settled`)."""
        if now < self.end:
            return False
        self.before = UsedIn(self.start, self.end, self.confirmed, self.alerted) if self.loaded else None
        self.start, self.end = bounds(self.quota.period, now, self.anchor)
        self.confirmed = self._ahead.pop(self.start, 0)
        self._ahead.clear()
        self.unconfirmed = self.alerted = 0
        self.unreserved_in = {start: units for start, units in self.unreserved_in.items() if start >= self.start}
        self.is_spent = False
        return True

    def counts_settled(self, settled_at: int) -> bool:
        """Whether what was settled then, and is not confirmed yet, counts in this period."""
        return settled_at >= self.start - SKEW_US

    def go_on_from(self, before: BudgetMeter) -> None:
        """Take what an older version of the same quota knows, if that is about the same period."""
        if (before.start, before.end) == (self.start, self.end):
            self.confirmed, self._ahead, self.loaded = before.confirmed, before._ahead, before.loaded
            if before.quota.version == self.quota.version:
                self.alerted, self.before = before.alerted, before.before

    def load(self, confirmed: int, ahead: dict[int, int]) -> None:
        """Take the windows' sum as what is confirmed."""
        self.confirmed, self._ahead, self.loaded = confirmed, dict(ahead), True

    def period_before(self) -> tuple[int, int]:
        """[start, end) of the period before this one."""
        return bounds(self.quota.period, self.start - 1, self.anchor)

    def load_before(self, confirmed: int) -> None:
        """Take the windows' sum of the period before: what was told of it is not known here, and told again."""
        self.before = UsedIn(*self.period_before(), confirmed, 0)

    def period_of(self, at: int) -> int | None:
        """The start of the period that holds a moment; None if that is over."""
        if at >= self.end:
            return bounds(self.quota.period, at, self.anchor)[0]
        return self.start if at >= self.start else None

    def confirm(self, completed_at: int, units: int) -> int | None:
        """Count confirmed usage in its period; returns that one's start, None if it is over."""
        start = self.period_of(completed_at)
        if start == self.start:
            self.confirmed += units
        elif start is not None:
            self._ahead[start] = self._ahead.get(start, 0) + units
        elif self.before is not None and self.before.start <= completed_at < self.before.end:
            self.before.confirmed += units
        return start

    def note_unreserved(self, start: int, units: int) -> None:
        """Count confirmed usage of a period as reserved by nobody."""
        if start >= self.start:
            self.unreserved_in[start] = self.unreserved_in.get(start, 0) + units

    def room(self, expected: int, share: int) -> int:
        """The most units that a request may reserve now, of which it will probably use `expected`.

        Used + what is in flight at most + this ≤ limit + allowance; and where there is an allowance, used + what is
        expected + this one's expectation ≤ limit as well. `share` = percent of what remains that may be promised: 100,
        or less where what was promised before is not known.
        """
        quota = self.quota
        if not quota.hard:
            return ENDLESS
        left = quota.limit - self.confirmed - self.unconfirmed
        if quota.metric == "gpu_seconds":
            return ENDLESS if left > self.leased else -1
        room = left + quota.overshoot_allowance
        if share != 100:
            left, room = left * share // 100, room * share // 100
        room -= self.leased + self.reserved
        if quota.overshoot_allowance:
            probable = left - self.leased - self.expected
            if probable < expected:
                room = min(room, probable)
        return room

    def room_alone(self, expected: int, used: int) -> int:
        """The same beside so much usage, if nothing else were in flight."""
        left = self.quota.limit - used
        return left + self.quota.overshoot_allowance if left >= expected else left

    def refused_as_spent(self, needed: int) -> None:
        """A request of so many units at least did not fit under what is left. Where it is a small one, a tenth of the
        limit or the shortest answer, the budget is as good as used: a hard one is seldom used to the last unit."""
        self.is_spent |= needed * SMALL_PARTS <= self.quota.limit or needed <= self.quota.min_tokens

    def crossed(self) -> list[Crossed]:
        """The thresholds that confirmed usage has reached, in this period or late in the one before, and that were not
        told; now they are. A budget that is spent has reached 100."""
        found = []
        if self.before is not None:
            found += self._crossed(self.before, 0)
        now = UsedIn(self.start, self.end, self.confirmed, self.alerted)
        found += self._crossed(now, 100 * self.is_spent)
        self.alerted = now.alerted
        return found

    def _crossed(self, period: UsedIn, least: int) -> list[Crossed]:
        limit = self.quota.limit
        percent = max(period.confirmed * 100 // limit if limit else 100 * (period.confirmed > 0), least)
        found = [each for each in self.quota.thresholds if period.alerted < each <= percent]
        if found:
            period.alerted = found[-1]
        return [Crossed(each, period.start, period.confirmed) for each in found]


class RateMeter:
    """A rate, charged at admission."""

    __slots__ = ("quota", "rate")

    def __init__(self, quota: Quota, since: int = 0) -> None:
        """`since`: nothing was charged before."""
        self.quota = quota
        self.rate = Rate(quota.limit, RATE_US[quota.period], since)

    def go_on_from(self, state: list[int]) -> None:
        """Take the state of an older version of the same quota, or of one from before a restart."""
        self.rate = Rate.restored(self.quota.limit, RATE_US[self.quota.period], state)


class SlotMeter:
    """Concurrent requests."""

    __slots__ = ("in_use", "leased", "quota")

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.in_use = 0
        self.leased = 0

    @property
    def free(self) -> int:
        """How many more there may be; not below 0."""
        return self.room(100)

    def room(self, share: int) -> int:
        """The same where only a share (percent, but one request at least) may be promised."""
        limit = self.quota.limit if share == 100 else max(self.quota.limit * share // 100, 1)
        return max(limit - self.in_use - self.leased, 0)


Meter = BudgetMeter | RateMeter | SlotMeter
