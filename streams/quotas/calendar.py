"""Which period a moment belongs to. Pure; times are microseconds since 1970, UTC; periods are [start, end)."""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from streams.quotas.definitions import Period

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Anchor:
    """When a subscription's billing periods begin: at `at`, then every `months` months on the same day of the month.

    A day that a month does not have is its last; the next month has it again.
    """

    at: datetime
    months: int = 1


CALENDAR_MONTHS: Final = Anchor(_EPOCH)
"""Where no subscription says otherwise."""


def microseconds(at: datetime) -> int:
    """A moment as microseconds since 1970."""
    return (at - _EPOCH) // _US


def moment(us: int) -> datetime:
    """The moment of so many microseconds since 1970."""
    return _EPOCH + us * _US


def bounds(period: Period, at_us: int, anchor: Anchor = CALENDAR_MONTHS) -> tuple[int, int]:
    """[start, end) of the day, month or billing period that holds a moment. Raises ValueError for others."""
    at = moment(at_us)
    if period == "day":
        start = at.replace(hour=0, minute=0, second=0, microsecond=0)
        return microseconds(start), microseconds(start + timedelta(days=1))
    if period == "month":
        return _anchored(at, CALENDAR_MONTHS)
    if period == "billing_period":
        return _anchored(at, anchor)
    raise ValueError(f"{period} is no period of a budget")


def _anchored(at: datetime, anchor: Anchor) -> tuple[int, int]:
    passed = (at.year - anchor.at.year) * 12 + at.month - anchor.at.month
    number = passed // anchor.months
    if _months_after(anchor.at, number * anchor.months) > at:
        number -= 1
    elif _months_after(anchor.at, (number + 1) * anchor.months) <= at:
        number += 1
    start = _months_after(anchor.at, number * anchor.months)
    return microseconds(start), microseconds(_months_after(anchor.at, (number + 1) * anchor.months))


def _months_after(at: datetime, months: int) -> datetime:
    years, month = divmod(at.month - 1 + months, 12)
    year = at.year + years
    day = min(at.day, calendar.monthrange(year, month + 1)[1])
    return at.replace(year=year, month=month + 1, day=day)
