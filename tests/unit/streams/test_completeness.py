"""How a boot stands, which numbers a message fills, and what two witnesses differ on."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from streams.alerts import Alert
from streams.completeness.complete_to import Boot, BootState, state_of
from streams.completeness.witnesses import (
    Comparable,
    Counts,
    Requests,
    comparable,
    differences,
)
from streams.rules.chunks import Number, Record, Refused, number_in, read
from tests.builders import RECEIVED, event_json, make_record

SILENT = timedelta(seconds=30)
HEARD = Boot("r1", "b1", first_received_at=RECEIVED, last_received_at=RECEIVED)
KEY = ("tenant_1", "llama")


def later(seconds: float) -> Any:
    return RECEIVED + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("boot", "now", "watching_since", "state"),
    [
        (HEARD, 29, 0, BootState.RUNNING),
        (HEARD, 30, 0, BootState.SILENT),
        (HEARD, 30, 1, BootState.RUNNING),
        (HEARD, 31, 1, BootState.SILENT),
        (replace(HEARD, farewell_at=RECEIVED), 99, 0, BootState.FAREWELL),
        (replace(HEARD, written_off=True), 99, 0, BootState.WRITTEN_OFF),
        (Boot("r1", "b1", highest=3), 99, 0, BootState.UNREPORTED),
    ],
)
def test_a_boot_is_silent_when_nothing_was_heard_of_it_for_long_while_somebody_listened(
    boot: Boot, now: float, watching_since: float, state: BootState
) -> None:
    assert state_of(boot, [], later(now), later(watching_since), SILENT) is state


@pytest.mark.parametrize(
    ("other", "now", "state"),
    [
        (replace(HEARD, boot_id="b2", first_received_at=later(1)), 31, BootState.REPLACED),
        (replace(HEARD, boot_id="b2", first_received_at=later(1)), 30, BootState.RUNNING),
        (replace(HEARD, boot_id="b2", first_received_at=RECEIVED), 31, BootState.RUNNING),
        (replace(HEARD, replica_id="r2", boot_id="b2", first_received_at=later(1)), 31, BootState.RUNNING),
        (replace(HEARD, first_received_at=later(1)), 31, BootState.RUNNING),
    ],
)
def test_a_boot_is_replaced_by_another_of_its_replica_that_began_after_it_was_last_heard_of(
    other: Boot, now: float, state: BootState
) -> None:
    watching_since = later(5)
    assert state_of(HEARD, [other], later(now), watching_since, SILENT) is state


@pytest.mark.parametrize(
    ("changed", "number"),
    [
        ({"output_tokens": -1}, Number("r1", "b1", 7)),
        ({"schema_version": 9}, Number("r1", "b1", 7)),
        ({"output_tokens": -1, "seq": 0}, None),
        ({"output_tokens": -1, "seq": 2**53}, None),
        ({"output_tokens": -1, "seq": None}, None),
        ({"output_tokens": -1, "replica_id": ""}, None),
        ({"output_tokens": -1, "boot_id": "a\0"}, None),
        ({"timestamp": "2026-11-01T13:00:00Z"}, Number("r1", "b1", 7)),
        ({"timestamp": "2026-11-01T13:00:00Z", "boot_id": ""}, None),
    ],
)
def test_a_refused_message_fills_its_number_where_all_three_can_be_read(
    changed: dict[str, Any], number: Number | None
) -> None:
    message = read(make_record(0, event_json(**({"replica_id": "r1", "boot_id": "b1", "seq": 7} | changed))))
    assert isinstance(message, Refused)
    assert number_in(message) == number


def test_a_torn_message_fills_nothing() -> None:
    message = read(Record(0, None, event_json(replica_id="r1", boot_id="b1", seq=7)[:-1], RECEIVED))
    assert isinstance(message, Refused)
    assert number_in(message) is None


def test_an_alert_is_the_same_by_what_it_is_about() -> None:
    alert = Alert("gap", "r1", {"boot_id": "b1", "first_number": 3}, "3 to 4", RECEIVED)
    again = Alert("gap", "r1", {"first_number": 3, "boot_id": "b1"}, "3 to 9", later(5))
    assert alert.alert_id == again.alert_id
    assert replace(alert, key="r2").alert_id != alert.alert_id
    assert replace(alert, subject={"boot_id": "b1", "first_number": 4}).alert_id != alert.alert_id


@pytest.mark.parametrize(
    ("last_seq", "received_through", "highest", "how"),
    [(5, 5, 5, Comparable.EXACT), (5, 6, 6, Comparable.AT_LEAST), (5, 5, 7, Comparable.AT_LEAST),
     (5, 4, 7, Comparable.NOT_YET), (0, 0, 0, Comparable.EXACT)],
)  # fmt: skip
def test_what_may_be_compared_depends_on_which_numbers_are_here(
    last_seq: int, received_through: int, highest: int, how: Comparable
) -> None:
    assert comparable(last_seq, received_through, highest) is how


@pytest.mark.parametrize(
    ("reported", "counted", "how", "differs"),
    [
        ({KEY: Counts(2, 20, 10)}, {KEY: Counts(2, 20, 10)}, Comparable.EXACT, False),
        ({KEY: Counts(2, 20, 10)}, {KEY: Counts(2, 20, 11)}, Comparable.EXACT, True),
        ({KEY: Counts(2, 20, 10)}, {}, Comparable.EXACT, True),
        ({}, {KEY: Counts(2, 20, 10)}, Comparable.EXACT, True),
        ({KEY: Counts(2, 20, 10)}, {KEY: Counts(3, 30, 15)}, Comparable.AT_LEAST, False),
        ({KEY: Counts(2, 20, 10)}, {KEY: Counts(3, 30, 9)}, Comparable.AT_LEAST, True),
        ({KEY: Counts(2, 20, 10)}, {}, Comparable.AT_LEAST, True),
        ({KEY: Counts(2, 20, 10)}, {}, Comparable.NOT_YET, False),
    ],
)
def test_heartbeats_and_counted_events_differ_without_tolerance(
    reported: dict[tuple[str, str], Counts], counted: dict[tuple[str, str], Counts], how: Comparable, differs: bool
) -> None:
    assert [found.key for found in differences(reported, counted, how)] == ([KEY] if differs else [])


def test_requests_are_explained_when_started_is_ended_and_open_and_lost() -> None:
    assert Requests(started=9, ended=5, open=1, lost=3).unexplained == 0
    assert Requests(started=9, ended=5, open=1).unexplained == 3
