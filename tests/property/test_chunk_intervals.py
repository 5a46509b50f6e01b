"""Intervals of chunks: the longest that fits, always a part of a day."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from streams.retention.chunk_intervals import ALLOWED, DAY, loads, plan

rates = st.integers(0, 10**11)
memory = st.integers(2**24, 2**40)
shares = st.integers(1, 100)


@given(rates, st.integers(0, 10**6), memory, shares)
def test_the_indexes_being_written_fit_and_no_longer_interval_would(
    events: int, keys: int, memory_bytes: int, share: int
) -> None:
    expected = loads(events, keys)
    planned = plan(expected, memory_bytes, share)
    assert all(DAY % found.interval == timedelta(0) for found in planned)
    if all(found.fits for found in planned):
        assert sum(found.index_bytes for found in planned) * 100 <= memory_bytes * share or not events
    for load, found in zip(expected, planned, strict=True):
        if found.fits and found.interval != ALLOWED[-1] and load.rows_a_day:
            longer = ALLOWED[ALLOWED.index(found.interval) + 1]
            whole = sum(each.index_bytes(DAY) for each in expected)
            assert load.index_bytes(longer) > memory_bytes * share * load.index_bytes(DAY) // (100 * whole)
        if not found.fits:
            assert found.interval == ALLOWED[0]


def test_ten_million_events_a_day_make_a_chunk_of_a_day_in_8_gib() -> None:
    events, windows = plan(loads(10_000_000, 2_000), 8 * 2**30, 25)
    assert (events.interval, windows.interval) == (DAY, DAY)
    events, windows = plan(loads(25_000 * 86_400, 20_000), 8 * 2**30, 25)
    assert events.interval == timedelta(minutes=15), "20,000 to 25,000 a second fit as well, in shorter chunks"
    assert events.fits
    assert windows.fits
    events, _ = plan(loads(25_000 * 86_400, 20_000), 2 * 2**30, 25)
    assert (events.interval, events.fits) == (ALLOWED[0], False)
