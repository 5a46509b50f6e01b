"""Billing periods: half-open intervals of UTC time, and how they are written (docs/spec/money.md 1)."""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from typing import Final

from billing.errors import PeriodInvalid

INSTANT: Final = timedelta(microseconds=1)
"""The finest step of time. The tax point of a period is its last instant."""
_FORMS: Final = "write 2026-10, 2026-Q4, 2026 or 2026-10-17..2026-11-17"
_YEAR: Final = re.compile(r"(\d{4})")
_QUARTER: Final = re.compile(r"(\d{4})-Q([1-4])")
_MONTH: Final = re.compile(r"(\d{4})-(\d{2})")
_RANGE: Final = re.compile(r"(\d{4}-\d{2}-\d{2})\.\.(\d{4}-\d{2}-\d{2})")


@dataclass(frozen=True, slots=True, order=True)
class BillingPeriod:
    """What an invoice, or a part of one, covers: start ≤ t < end, UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        for bound in (self.start, self.end):
            if bound.utcoffset() != timedelta(0):
                raise PeriodInvalid(f"{bound} is not UTC")
        if not self.start < self.end:
            raise PeriodInvalid(f"a period that ends ({self.end}) before it starts ({self.start})")

    @property
    def months(self) -> int | None:
        """How many whole calendar months, or None for anything else."""
        if not (_begins_month(self.start) and _begins_month(self.end)):
            return None
        return (self.end.year - self.start.year) * 12 + self.end.month - self.start.month

    @property
    def name(self) -> str:
        """The shortest way to write it, e.g. `2026-10`."""
        months, start = self.months, self.start
        if months == 1:
            return f"{start:%Y-%m}"
        if months == 3 and start.month % 3 == 1:
            return f"{start:%Y}-Q{start.month // 3 + 1}"
        if months == 12 and start.month == 1:
            return f"{start:%Y}"
        return f"{written(start)}..{written(self.end)}"

    @property
    def seconds(self) -> Fraction:
        """How long it is."""
        return seconds_between(self.start, self.end)

    def elapsed(self, at: datetime) -> Fraction:
        """The share of it that is over at a moment within it: c of docs/spec/money.md 4 and 13.9."""
        return seconds_between(self.start, at) / self.seconds

    def contains(self, at: datetime) -> bool:
        """Whether the moment lies within [start, end)."""
        return self.start <= at < self.end


def seconds_between(start: datetime, end: datetime) -> Fraction:
    """Seconds from one moment to another, to the microsecond."""
    return Fraction((end - start) // timedelta(microseconds=1), 1_000_000)


def parse_period(text: str) -> BillingPeriod:
    """The period that a text names. Raises PeriodInvalid."""
    try:
        if match := _YEAR.fullmatch(text):
            return _months(int(match[1]), 1, 12)
        if match := _QUARTER.fullmatch(text):
            return _months(int(match[1]), int(match[2]) * 3 - 2, 3)
        if match := _MONTH.fullmatch(text):
            return _months(int(match[1]), int(match[2]), 1)
        if match := _RANGE.fullmatch(text):
            return BillingPeriod(_midnight(match[1]), _midnight(match[2]))
    except ValueError as error:
        raise PeriodInvalid(f"{text!r} is no period ({error}): {_FORMS}") from None
    raise PeriodInvalid(f"{text!r} is no period: {_FORMS}")


def add_months(anchor: datetime, months: int) -> datetime:
    """The anchor's day and time so many months later; a month without that day uses its last (13.13)."""
    month = anchor.year * 12 + anchor.month - 1 + months
    year, month = month // 12, month % 12 + 1
    return anchor.replace(year=year, month=month, day=min(anchor.day, monthrange(year, month)[1]))


def anchored_period(anchor: datetime, months: int, number: int) -> BillingPeriod:
    """The period of so many months that is the number-th from the anchor on (0 begins at it; may be negative).

    Each bound is counted from the anchor, so that a short month does not move those after it.
    """
    return BillingPeriod(add_months(anchor, number * months), add_months(anchor, (number + 1) * months))


def period_of(at: datetime, anchor: datetime, months: int) -> BillingPeriod:
    """The anchored period that a moment lies in."""
    number = ((at.year - anchor.year) * 12 + at.month - anchor.month) // months
    found = anchored_period(anchor, months, number)
    if at < found.start:
        return anchored_period(anchor, months, number - 1)
    if at >= found.end:
        return anchored_period(anchor, months, number + 1)
    return found


def accounting_month(at: datetime) -> str:
    """The accounting period of a moment: its UTC calendar month, `2026-10` (docs/spec/money.md 1)."""
    return f"{at.astimezone(UTC):%Y-%m}"


def closed_before(books: Mapping[str, Mapping[str, bool]]) -> datetime | None:
    """Up to when the accounting periods of all books are closed, without a gap; None if not of all books any is.

    `books`: per legal entity its months and whether each is closed. A book without months holds all back.
    """
    bounds = []
    for months in books.values():
        closed = None
        for name in sorted(months):
            period = parse_period(name)
            if not months[name] or closed not in (None, period.start):
                break
            closed = period.end
        bounds.append(closed)
    known = [bound for bound in bounds if bound is not None]
    return min(known) if known and len(known) == len(bounds) else None


def _months(year: int, month: int, count: int) -> BillingPeriod:
    start = datetime(year, month, 1, tzinfo=UTC)
    last = month - 1 + count
    return BillingPeriod(start, datetime(year + last // 12, last % 12 + 1, 1, tzinfo=UTC))


def _midnight(text: str) -> datetime:
    day = date.fromisoformat(text)
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def written(at: datetime) -> str:
    """A UTC moment for people: `2026-10-17` where it is a midnight, else `2026-10-17T08:30:00Z`."""
    return f"{at:%Y-%m-%d}" if at.time() == time() else rfc3339(at, timespec="seconds")


def rfc3339(at: datetime, *, timespec: str = "auto") -> str:
    """A moment in UTC, `2026-10-17T08:30:00Z`; `timespec` as `datetime.isoformat` takes it."""
    return at.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def _begins_month(at: datetime) -> bool:
    return (at.day, at.hour, at.minute, at.second, at.microsecond) == (1, 0, 0, 0, 0)
