"""When a worker is alive, and when it is ready."""

from __future__ import annotations

import pytest

from serving_adapter.settings import KafkaSettings
from streams.ingest.sources import Partition
from streams.settings import CompletenessSettings, DatabaseSettings
from streams.workers.upkeep import Upkeep
from streams.workers.worker_health import (
    SILENT_AT_MOST_S,
    STUCK_AFTER_S,
    UPKEEP_AT_LEAST_EVERY_S,
    LifeSigns,
    Surroundings,
    UpkeepSigns,
    readiness,
    unhealthy_because,
)

ONE, TWO = Partition("usage.v1", 1), Partition("usage.v1", 2)
ALL_THERE = Surroundings(database=None, kafka=None)
AWAY = Surroundings(database="refused", kafka=None)
LONG_AGO = 1000.0 - STUCK_AFTER_S - 1


def test_a_loop_that_gives_no_sign_is_unhealthy() -> None:
    assert unhealthy_because(1000.0, LifeSigns(1000.0 - SILENT_AT_MOST_S), None, AWAY) is None
    assert "no sign" in str(unhealthy_because(1000.0, LifeSigns(999.0 - SILENT_AT_MOST_S), None, ALL_THERE))


def test_a_chunk_that_hangs_is_unhealthy_only_while_the_database_answers() -> None:
    alive = LifeSigns(1000.0)
    assert "the database answers" in str(unhealthy_because(1000.0, alive, LONG_AGO, ALL_THERE))
    assert unhealthy_because(1000.0, alive, LONG_AGO, AWAY) is None
    assert unhealthy_because(1000.0, alive, 999.0, ALL_THERE) is None


def test_a_member_of_the_group_is_ready_also_without_partitions() -> None:
    ready, body = readiness(0.0, LifeSigns(0.0, in_group=True), {}, ALL_THERE)
    assert ready
    assert (body["assigned"], body["stopped"]) == ([], {})


@pytest.mark.parametrize(
    ("signs", "around", "part"),
    [
        (LifeSigns(0.0), ALL_THERE, "group"),
        (LifeSigns(0.0, in_group=True), AWAY, "database"),
        (LifeSigns(0.0, in_group=True), Surroundings(database=None), "kafka"),
    ],
)
def test_what_keeps_a_worker_from_being_ready_is_named(signs: LifeSigns, around: Surroundings, part: str) -> None:
    ready, body = readiness(0.0, signs, {}, around)
    assert not ready
    assert [name for name, value in body.items() if value is False] == ["ready", part]


def test_a_stopped_partition_is_named_by_the_worker_that_has_it() -> None:
    signs = LifeSigns(0.0, in_group=True, assigned=frozenset({ONE}))
    ready, body = readiness(0.0, signs, {ONE: "truncated", TWO: "another's"}, ALL_THERE)
    assert not ready
    assert body["stopped"] == {"usage.v1/1": "truncated"}
    assert readiness(0.0, signs, {TWO: "another's"}, ALL_THERE)[0]


@pytest.mark.parametrize("because", ["the disk is full", ""], ids=["it fails", "it hangs"])
def test_upkeep_that_does_not_go_well_for_a_minute_makes_a_worker_unready_and_is_told(because: str) -> None:
    upkeep = UpkeepSigns(1000.0, failures=7, because=because)
    signs = LifeSigns(0.0, in_group=True, upkeep=upkeep)
    assert readiness(1000.0 + UPKEEP_AT_LEAST_EVERY_S, signs, {}, ALL_THERE)[0]
    ready, body = readiness(1001.0 + UPKEEP_AT_LEAST_EVERY_S, signs, {}, ALL_THERE)
    assert not ready
    assert (body["upkeep"], because in body["upkeep_missing_because"]) == (False, True)
    upkeep.went_well_at = 1001.0
    assert readiness(1001.0 + UPKEEP_AT_LEAST_EVERY_S, signs, {}, ALL_THERE)[0]


def test_rounds_of_upkeep_that_fail_are_counted_and_said_once() -> None:
    nowhere, said = "127.0.0.1:1", []
    upkeep = Upkeep(
        KafkaSettings(nowhere), DatabaseSettings(f"postgresql://{nowhere}/none"), CompletenessSettings(), said.append
    )
    began = upkeep.signs.went_well_at
    assert [upkeep.round(), upkeep.round()] == [False, False]
    assert (upkeep.signs.failures, upkeep.signs.went_well_at) == (2, began)
    assert upkeep.signs.because
    assert len(said) == 1
