"""Instants of the simulation: microseconds since 1970, and their text. A third calendar, so that none tests itself."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from random import Random

SECOND = 1_000_000
DAY = 86_400 * SECOND
Periods = tuple[dict[str, object], str, list[tuple[int, int]]]
"""(fields that give a case its periods, their length, the periods)."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def of(day: date) -> int:
    """The instant at which a day begins."""
    return (datetime(day.year, day.month, day.day, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


def written(moment: int) -> str:
    """A bare date at midnight, else down to the second, or the microsecond where it has one."""
    at = _EPOCH + timedelta(microseconds=moment)
    if moment % DAY == 0:
        return at.date().isoformat()
    return at.isoformat(timespec="microseconds" if moment % SECOND else "seconds").replace("+00:00", "Z")


def _add_months(day: date, months: int) -> date:
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    return date(year, month + 1, min(day.day, monthrange(year, month + 1)[1]))


def periods(random: Random) -> Periods:
    """Months, quarters, years, or anniversaries."""
    count = random.choice((1, 1, 2, 2, 2, 3))
    year = random.choice((2024, 2025, 2026, 2027, 2028))
    kind = random.choice(("month", "month", "month", "quarter", "year", "anniversary", "anniversary"))
    if kind == "anniversary":
        month = random.randint(1, 12)
        day = min(random.choice((1, 15, 28, 29, 30, 31, 31)), monthrange(year, month)[1])
        anchor, length, offset = date(year, month, day), 1, random.choice((0, 0, 1, 12))
        days = [_add_months(anchor, offset + i) for i in range(count + 1)]
        fields: dict[str, object] = {"anchor": anchor.isoformat(), "anchor_months": [offset + i for i in range(count)]}
    else:
        length = {"month": 1, "quarter": 3, "year": 12}[kind]
        first = date(year, random.choice(range(1, 13, length)), 1)
        days = [_add_months(first, length * i) for i in range(count + 1)]
        fields = {"periods": [f"{start}..{end}" for start, end in pairwise(days)]}
    edges = [of(day) for day in days]
    return fields, "month" if kind == "anniversary" else kind, list(pairwise(edges))


def longer(random: Random, fields: dict[str, object], length: str, spans: list[tuple[int, int]]) -> Periods:
    """The same periods; now and then anniversaries are by the quarter or year."""
    if "anchor" not in fields or random.random() < 0.7:
        return fields, length, spans
    length, size = random.choice((("quarter", 3), ("quarter", 3), ("year", 12)))
    anchor, first = date.fromisoformat(str(fields["anchor"])), random.choice((0, 0, size, 4 * size))
    offsets = [first + size * i for i in range(len(spans))]
    edges = [of(_add_months(anchor, offset)) for offset in [*offsets, first + size * len(spans)]]
    return {**fields, "anchor_months": offsets}, length, list(pairwise(edges))


def months(start: int, end: int) -> list[int]:
    """The instants at which months begin within [start, end), from a start that is the first day of one."""
    first = (_EPOCH + timedelta(microseconds=start)).date()
    found = (of(_add_months(first, count)) for count in range(1, 13))
    return [at for at in found if at < end]


def read(text: str) -> int:
    """The instant that `written` wrote."""
    at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return (at - _EPOCH) // timedelta(microseconds=1)
