"""When a worker is alive, and when it is ready."""

from __future__ import annotations

import pytest

from streams.sources import Partition
from streams.worker_health import (
    SILENT_AT_MOST_S,
    STUCK_AFTER_S,
    LifeSigns,
    Surroundings,
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
    ready, body = readiness(LifeSigns(0.0, in_group=True), {}, ALL_THERE)
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
    ready, body = readiness(signs, {}, around)
    assert not ready
    assert [name for name, value in body.items() if value is False] == ["ready", part]


def test_a_stopped_partition_is_named_by_the_worker_that_has_it() -> None:
    signs = LifeSigns(0.0, in_group=True, assigned=frozenset({ONE}))
    ready, body = readiness(signs, {ONE: "truncated", TWO: "another's"}, ALL_THERE)
    assert not ready
    assert body["stopped"] == {"usage.v1/1": "truncated"}
    assert readiness(signs, {TWO: "another's"}, ALL_THERE)[0]
