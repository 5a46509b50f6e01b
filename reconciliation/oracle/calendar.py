"""Instants, billing periods and anniversaries (money.md 1, 13.13).

An instant is an int: microseconds since 1970-01-01T00:00:00Z. Periods are half-open.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import lru_cache

MONTHS = {"month": 1, "quarter": 3, "year": 12}
"""Months by the name of a length."""
SECOND = 1_000_000
DAY = 86_400 * SECOND
_EPOCH = date(1970, 1, 1).toordinal()
_INSTANT = re.compile(r"(\d{4}-\d\d-\d\d)(?:T(\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:Z|\+00:00))?")
_NAMED = re.compile(r"(\d{4})(?:-(?:(\d\d)|Q([1-4])))?")


@lru_cache(maxsize=65536)
def instant(text: str) -> int:
    """Microseconds of an ISO 8601 instant in UTC; a bare date is 00:00; digits after the sixth are cut off.

    Raises:
        ValueError: for any other text.
    """
    match = _INSTANT.fullmatch(text)
    if not match:
        raise ValueError(f"not an instant in UTC: {text!r}")
    day, hour, minute, second, fraction = match.groups()
    result = start_of(date.fromisoformat(day))
    if hour is None:
        return result
    if int(hour) > 23 or int(minute) > 59 or int(second) > 59:
        raise ValueError(f"no such time of day: {text!r}")
    seconds = int(hour) * 3600 + int(minute) * 60 + int(second)
    return result + seconds * SECOND + int((fraction or "")[:6].ljust(6, "0"))


def start_of(day: date) -> int:
    """The instant at which a UTC day begins."""
    return (day.toordinal() - _EPOCH) * DAY


def day_of(moment: int) -> date:
    """The UTC day that contains an instant."""
    return date.fromordinal(moment // DAY + _EPOCH)


@dataclass(frozen=True, slots=True, order=True)
class Period:
    """[start, end), instants."""

    start: int
    end: int

    @property
    def name(self) -> str:
        """Its UTC dates, `2026-10-17..2026-11-17` (1)."""
        return f"{day_of(self.start)}..{day_of(self.end)}"

    def __contains__(self, moment: object) -> bool:
        return isinstance(moment, int) and self.start <= moment < self.end


def days_in_month(year: int, month: int) -> int:
    """28 to 31."""
    first_of_next = date(year + month // 12, month % 12 + 1, 1)
    return (first_of_next - date(year, month, 1)).days


def months_after(anchor: date, months: int) -> date:
    """The anchor's day, `months` later; a month without that day uses its last one (13.13).

    Always counted from the anchor, so that a short month does not move the ones after it.
    """
    years, month = divmod(anchor.month - 1 + months, 12)
    year, month = anchor.year + years, month + 1
    return date(year, month, min(anchor.day, days_in_month(year, month)))


def anchored(anchor: date, offset: int, length: int = 1) -> Period:
    """The period of `length` months that begins `offset` months after the anchor."""
    return Period(start_of(months_after(anchor, offset)), start_of(months_after(anchor, offset + length)))


@dataclass(frozen=True, slots=True)
class Schedule:
    """Periods of so many months, one after another, of which one begins at the anchor."""

    months: int = 1
    anchor: date = date(2000, 1, 1)

    def period_at(self, moment: int) -> Period:
        """The period that an instant lies in."""
        day = day_of(moment)
        since = (day.year - self.anchor.year) * 12 + day.month - self.anchor.month
        offset = since // self.months * self.months
        period = anchored(self.anchor, offset, self.months)
        return period if period.start <= moment else anchored(self.anchor, offset - self.months, self.months)

    def periods(self, start: int, end: int) -> Iterator[Period]:
        """Those that hold an instant of [start, end), in order."""
        while start < end:
            period = self.period_at(start)
            yield period
            start = period.end


def named(text: str) -> Period:
    """The period that `2026-10`, `2026-Q4`, `2026` or `2026-10-17..2026-11-17` names (1).

    Raises:
        ValueError: for any other text, or a period that does not end after its start.
    """
    if ".." in text:
        first, last = (start_of(date.fromisoformat(part)) for part in text.split("..", 1))
        if first >= last:
            raise ValueError(f"a period that does not end after its start: {text!r}")
        return Period(first, last)
    match = _NAMED.fullmatch(text)
    if not match:
        raise ValueError(f"not a period: {text!r}")
    year, month, quarter = match.groups()
    if month:
        return anchored(date(int(year), int(month), 1), 0)
    if quarter:
        return anchored(date(int(year), 3 * int(quarter) - 2, 1), 0, 3)
    return anchored(date(int(year), 1, 1), 0, 12)
