"""Where quotas stand, for programs: as values, and as the JSON of an admission. Pure.

Each admission lists its tenant's quotas. All of that text but a few numbers is the same from one request to the next:
it is made once (`StandingsText`), which takes a tenth of the time of encoding it anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final

import msgspec

from streams.quotas.calendar import moment
from streams.quotas.decisions import Standing
from streams.quotas.definitions import UNITS, shown
from streams.quotas.meters import BudgetMeter, Meter, RateMeter, SlotMeter


class StandingView(msgspec.Struct, frozen=True, gc=False):
    """Where a quota stands, as it is answered. Spend and GPU time as decimals in text."""

    quota_id: str
    metric: str
    period: str
    limit: int | str
    remaining: int | str
    resets_at: datetime


def standing(meter: Meter, now: int) -> Standing:
    """Where a quota stands."""
    quota = meter.quota
    if isinstance(meter, BudgetMeter):
        return Standing(quota, meter.remaining, meter.end, meter.end - meter.start)
    if isinstance(meter, RateMeter):
        return Standing(quota, meter.rate.room(now, quota.limit), now + meter.rate.drained_in_us(now))
    return Standing(quota, meter.free, now)


def standing_view(standing: Standing) -> StandingView:
    """A standing for people and programs."""
    quota, remaining, resets_at, _ = standing
    metric = quota.metric
    at = _period_end(resets_at) if quota.is_budget else moment(resets_at)
    if metric in UNITS:
        limit, left = shown(quota.limit, metric), shown(remaining, metric)
        return StandingView(quota.quota_id, metric, quota.period, limit, left, at)
    return StandingView(quota.quota_id, metric, quota.period, quota.limit, remaining, at)


_period_end: Final = lru_cache(maxsize=1024)(moment)
_REMAINING: Final = b'"remaining":'
_RESETS: Final = b',"resets_at":"'


class StandingsText:
    """The list of `StandingView`s of some meters as JSON; good until a period ends or a definition changes.

    Times within a period are rounded up to whole seconds.
    """

    __slots__ = ("_budgets", "_exact", "_rates", "_slots", "_template")

    def __init__(
        self, budgets: Sequence[BudgetMeter], rates: Sequence[RateMeter], slots: Sequence[SlotMeter], now: int
    ) -> None:
        self._exact = [meter for meter in budgets if meter.quota.metric in UNITS]
        self._budgets = [meter for meter in budgets if meter.quota.metric not in UNITS]
        self._rates, self._slots = rates, slots
        lines = []
        meters: Sequence[Meter] = (*self._exact, *self._budgets, *rates, *slots)
        for meter in meters:
            view = msgspec.json.encode(standing_view(standing(meter, now))).replace(b"%", b"%%")
            head = view[: view.rindex(_REMAINING)] + _REMAINING + (b'"%s"' if meter in self._exact else b"%d")
            tail = view[view.rindex(_RESETS) :] if isinstance(meter, BudgetMeter) else _RESETS + b'%s"}'
            lines.append(head + tail)
        self._template = b"[" + b",".join(lines) + b"]"

    def at(self, now: int) -> bytes:
        """The text as of now."""
        values: list[int | bytes] = [shown(each.remaining, each.quota.metric).encode() for each in self._exact]
        values += [each.remaining for each in self._budgets]
        for meter in self._rates:
            rate = meter.rate
            values += (rate.remaining(now), second_text(-(-(now + rate.drained_in_us(now)) // 1_000_000)))
        for slot in self._slots:
            values += (slot.free, second_text(-(-now // 1_000_000)))
        return self._template % tuple(values)


@lru_cache(maxsize=4096)
def second_text(second: int) -> bytes:
    """A second since 1970 as RFC 3339, UTC."""
    return moment(second * 1_000_000).replace(tzinfo=None).isoformat().encode() + b"Z"
