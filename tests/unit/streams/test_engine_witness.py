"""When an engine's counters and events can be compared, and what they are found to be."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from streams.completeness.complete_to import Boot
from streams.completeness.engine_witness import (
    EngineComparison,
    EngineRun,
    EngineTokens,
    Standing,
    compare,
    named_witnesses,
)
from tests.builders import RECEIVED

EVENTS, ITEMISED = EngineTokens(90, 45, 10), EngineTokens(10, 5, 0)
ALL = EngineTokens(100, 50, 10)
MORE = EngineTokens(100, 57, 10)


def at(second: float) -> datetime:
    return RECEIVED + timedelta(seconds=second)


QUIET = Boot("r1", "b1", heartbeat_at=at(60), last_seq=3, highest=3, received_through=3, quiet_since=at(10))


def run(counters: EngineTokens, scraped: float, **changed: Any) -> EngineRun:
    whole = EngineRun(EngineTokens(), counters, True, True, at(0), at(scraped), {})
    return replace(whole, **changed)


def found(boot: Boot, *runs: EngineRun, over: bool = False, shared: bool = False) -> EngineComparison:
    return compare(boot, over, "m", runs, [shared] * len(runs), EVENTS, ITEMISED)


def test_counters_equal_events_and_itemised_rows_to_the_token() -> None:
    equal = found(QUIET, run(ALL, 15))
    assert (equal.standing, equal.difference) == (Standing.EQUAL, EngineTokens())
    differs = found(QUIET, run(MORE, 15))
    assert (differs.standing, differs.difference) == (Standing.DIFFERS, EngineTokens(0, 7, 0))
    assert found(QUIET, run(EngineTokens(100, 50, 9), 15)).standing is Standing.DIFFERS


@pytest.mark.parametrize(
    ("changed", "scraped"),
    [
        ({"quiet_since": None}, 15),
        ({}, 10.9),
        ({}, 61),
        ({"received_through": 2}, 15),
        ({"highest": 4, "received_through": 4}, 15),
    ],
)
def test_while_a_replica_works_or_numbers_are_missing_nothing_is_said(changed: dict[str, Any], scraped: float) -> None:
    assert found(replace(QUIET, **changed), run(MORE, scraped)).standing is Standing.NOT_YET


def test_missing_numbers_are_not_covered_by_sums_that_happen_to_be_equal() -> None:
    assert found(replace(QUIET, received_through=2), run(ALL, 15)).standing is Standing.NOT_YET


def test_a_boot_that_is_over_is_compared_only_if_it_was_scraped_after_its_last_work() -> None:
    farewell = replace(QUIET, farewell_at=at(60), quiet_since=at(60))
    assert found(farewell, run(MORE, 59), over=True).standing is Standing.CUT_OFF
    assert found(farewell, run(MORE, 61), over=True).standing is Standing.DIFFERS
    assert found(farewell, run(ALL, 61), over=True).standing is Standing.EQUAL
    killed = replace(QUIET, quiet_since=None)
    assert found(killed, run(MORE, 61), over=True).standing is Standing.CUT_OFF
    written_off = replace(QUIET, received_through=1, written_off=True)
    assert found(written_off, run(ALL, 61), over=True).standing is Standing.CUT_OFF


def test_an_engine_that_began_again_within_a_boot_counts_on_and_is_no_finding() -> None:
    first, second = run(EngineTokens(60, 20, 4), 5), run(EngineTokens(40, 30, 6), 15)
    assert found(QUIET, first, second).standing is Standing.EQUAL
    lost_some = found(QUIET, first, run(EngineTokens(39, 30, 6), 15), over=True)
    assert (lost_some.standing, lost_some.difference) == (Standing.CUT_OFF, EngineTokens(-1, 0, 0))


@pytest.mark.parametrize(("from_zero", "shared"), [(False, False), (True, True)])
def test_a_run_that_began_before_counts_from_its_first_scrape(from_zero: bool, shared: bool) -> None:
    joined = run(EngineTokens(105, 52, 10), 15, first=EngineTokens(5, 2, 0), from_zero=from_zero)
    assert found(QUIET, joined, shared=shared).standing is Standing.EQUAL
    none = replace(joined, first=EngineTokens())
    assert found(QUIET, none, shared=shared, over=True).standing is Standing.CUT_OFF


def test_cached_tokens_that_an_engine_does_not_tell_are_not_compared() -> None:
    assert found(QUIET, run(EngineTokens(100, 50, 0), 15, cached_known=False)).standing is Standing.EQUAL


def test_without_a_scrape_there_is_no_such_witness() -> None:
    assert found(QUIET).standing is Standing.UNSCRAPED


@pytest.mark.parametrize(
    ("scraped", "admission", "told"),
    [(True, True, "three"), (True, False, "two witnesses: events, engine"), (False, True, "two witnesses: events, adm"),
     (False, False, "two witnesses, not independent")],
)  # fmt: skip
def test_which_witnesses_there_are_is_said(scraped: bool, admission: bool, told: str) -> None:
    assert named_witnesses(scraped, admission).startswith(told)
