"""Reports of engines and boots: the order in which they come, and how often, makes no difference."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from streams.completeness.engine_witness import EngineRun, EngineTokens, counted
from streams.ingest.replica_chunks import NEVER_QUIET, Quiet

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


@st.composite
def scrapes(draw: st.DrawFn) -> list[EngineRun]:
    """One run's scrapes: counters that only grow, in the order in which they were made."""
    counts = [0, 0, 0]
    found = []
    for number in range(draw(st.integers(1, 6))):
        counts = [count + draw(st.integers(0, 5)) for count in counts]
        tokens, when = EngineTokens(*counts), NOON + timedelta(seconds=15 * number)
        found.append(EngineRun(tokens, tokens, True, True, when, when, {"stop": number}))
    return found


def joined(runs: list[EngineRun]) -> EngineRun:
    return reduce(EngineRun.joined, runs)


@given(made=scrapes(), data=st.data())
def test_scrapes_in_any_order_and_repeated_come_to_first_and_latest(made: list[EngineRun], data: st.DataObject) -> None:
    again = data.draw(st.lists(st.sampled_from(made)))
    arrived = data.draw(st.permutations([*made, *again]))
    found = joined(arrived)
    assert (found.first, found.latest) == (made[0].first, made[-1].latest)
    assert (found.first_scraped_at, found.scraped_at) == (made[0].scraped_at, made[-1].scraped_at)
    assert found.finished == made[-1].finished
    assert counted([found], [False]) == made[-1].latest


@given(made=scrapes(), data=st.data())
def test_how_scrapes_are_cut_into_chunks_makes_no_difference(made: list[EngineRun], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(made)))
    parts = [joined(part) for part in (made[:cut], made[cut:]) if part]
    assert joined(parts) == joined(made)


@given(steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=6), data=st.data())
def test_a_boot_is_quiet_since_the_earliest_report_of_its_last_state(
    steps: list[tuple[int, int, bool]], data: st.DataObject
) -> None:
    reports, last_seq, started = [], 0, 0
    for number, (ended, begun, idle) in enumerate(steps):
        last_seq, started = last_seq + ended, started + begun
        reports.append(Quiet(last_seq, started, NOON + timedelta(seconds=number) if idle else None))
    found = reduce(Quiet.joined, data.draw(st.permutations(reports)), NEVER_QUIET)
    last = [report.since for report in reports if report[:2] == (last_seq, started) and report.since]
    assert found.since == (min(last) if last else None)
