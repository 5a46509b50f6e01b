"""However a time is split, each moment of it is summed once: in a whole hour, or in an hour that a bound cuts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from streams.usage.usage_ranges import HOUR, UsageRange

SINCE = datetime(2026, 10, 1, tzinfo=UTC)
HOURS = st.integers(0, 72).map(lambda hours: SINCE + hours * HOUR)
MOMENTS = HOURS | st.datetimes(datetime(2026, 10, 1), datetime(2026, 10, 4)).map(lambda at: at.replace(tzinfo=UTC))  # noqa: DTZ001


def parts(of: UsageRange) -> list[tuple[datetime, datetime]]:
    since, until = of.whole_hours
    return sorted([*of.cut_hours, *([(since, until)] if since < until else [])])


@given(moments=st.lists(MOMENTS, min_size=2, max_size=8, unique=True))
def test_the_parts_of_a_split_touch_without_gap_or_overlap(moments: list[datetime]) -> None:
    moments.sort()
    split = [part for start, end in pairwise(moments) for part in parts(UsageRange("t", start, end))]
    assert [start for start, _ in split] == [moments[0], *(end for _, end in split[:-1])]
    assert split[-1][1] == moments[-1]
    assert all(start < end for start, end in split)


@given(start=MOMENTS, end=MOMENTS)
def test_only_whole_hours_are_read_from_windows_and_at_most_two_hours_from_events(
    start: datetime, end: datetime
) -> None:
    if start >= end:
        return
    of = UsageRange("t", start, end)
    assert all((bound - SINCE) % HOUR == timedelta(0) for bound in of.whole_hours)
    assert len(of.cut_hours) <= 2
    for since, until in of.cut_hours:
        assert (since - SINCE) // HOUR == (until - SINCE - timedelta(microseconds=1)) // HOUR
