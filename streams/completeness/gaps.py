"""Naming gaps: which numbers of a boot are missing, and since when (docs/spec/metering.md 6.1). Values in, values out.

A number is missing when a higher one is known, from an event or from a heartbeat. It is looked at for a gap only after
it has been known for a settling time, because heartbeats overtake events and partitions overtake each other: a healthy
line names nothing. A gap keeps its first number for ever; that is its name. While it is open it may grow at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from streams.completeness.number_sets import Ranges, Segments, count, within

MOST_OPEN: Final = 100
"""Open gaps a boot may have. A partition that stands still takes every eighth number out of each boot: beyond this
many, the last gap grows over what is missing, and `missing` says how much of it really is."""


@dataclass(frozen=True, slots=True)
class Gap:
    """An open gap: `missing` of the numbers first…last have not arrived; known since `since`."""

    first: int
    last: int
    missing: int
    since: datetime
    grown_at: datetime | None = None
    """Since when it is known that further numbers are missing of it, if they are new."""


@dataclass(frozen=True, slots=True)
class Looked:
    """How far a boot's numbers were looked at for gaps, and which are next: those known at `due_at`."""

    named_through: int = 0
    due_through: int | None = None
    due_at: datetime | None = None


def look(
    looked: Looked, known: int, now: datetime, settle: timedelta
) -> tuple[Looked, tuple[int, int, datetime] | None]:
    """One step: whether the numbers known before have settled, and what is to be looked at next.

    Returns the new state and, if it is time, (first, last, known since) of the numbers in which to name gaps.
    """
    if looked.due_at is None and known > looked.named_through:
        looked = replace(looked, due_through=known, due_at=now)
    if looked.due_at is None or looked.due_through is None or now - looked.due_at < settle:
        return looked, None
    due = (looked.named_through + 1, looked.due_through, looked.due_at)
    after = Looked(looked.due_through)
    if known > after.named_through:
        after = replace(after, due_through=known, due_at=now)
    return after, due


def named(open_gaps: Sequence[Gap], absent: Ranges, since: datetime, most: int = MOST_OPEN) -> list[Gap]:
    """The gaps to store for newly `absent` numbers, all above the open gaps: new ones, and the last one if it grew.

    What adjoins the last open gap is the same loss going on, and makes it longer instead of making another.
    """
    gaps = sorted(open_gaps, key=lambda gap: gap.first)
    stored: dict[int, Gap] = {}
    for first, last in absent:
        size = last - first + 1
        if gaps and (gaps[-1].last + 1 == first or len(gaps) >= most):
            gaps[-1] = replace(gaps[-1], last=last, missing=gaps[-1].missing + size, grown_at=since)
        else:
            gaps.append(Gap(first, last, size, since))
        stored[gaps[-1].first] = gaps[-1]
    return list(stored.values())


def filled(open_gaps: Sequence[Gap], fresh: Segments) -> list[Gap]:
    """The gaps that newly received numbers change; one of which nothing is missing any more is closed."""
    changed = []
    for gap in open_gaps:
        arrived = count(within(fresh, gap.first, gap.last))
        if arrived:
            changed.append(replace(gap, missing=gap.missing - arrived))
    return changed
