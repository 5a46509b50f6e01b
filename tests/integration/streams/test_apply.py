"""The chunk transaction on a real database."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from streams.database import connect
from streams.errors import PositionGap, SourceChanged
from streams.ingest.apply import ChunkApplier
from streams.ingest.isolation import HOURS_AT_ONCE
from streams.ingest.positions import Applied
from streams.usage import quarantine, usage_store
from streams.usage.rebuild import rebuild
from tests.builders import SOURCE, event_json, make_chunk, make_record
from tests.integration.streams.conftest import register_source, whole

NOVEMBER = (datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))


def requests_counted(connection: psycopg.Connection) -> int:
    return usage_store.usage_of(connection, "tenant_1", *NOVEMBER, ())[0].totals.requests


def test_events_windows_and_position_move_together(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    done = applier.apply(make_chunk(make_record(0), make_record(1)))
    assert done == Applied(next_position=2, applied=2)
    totals = usage_store.usage_of(connection, "tenant_1", *NOVEMBER, ())[0].totals
    assert (totals.requests, totals.input_tokens, totals.output_tokens, totals.cache_hit_tokens) == (2, 20, 10, 8)
    for table in ("windows_1m", "windows_1h"):
        row = connection.execute(f"select bucket, events, requests, input_tokens from usage.{table}").fetchone()
        assert row == (datetime(2026, 11, 1, 10, tzinfo=UTC), 2, 2, 20)
    assert list(usage_store.rating_quantities(connection, *NOVEMBER)) == list(
        usage_store.raw_quantities(connection, *NOVEMBER)
    )


def test_the_same_chunk_again_changes_nothing(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    chunk = make_chunk(make_record(0), make_record(1))
    applier.apply(chunk)
    assert applier.apply(chunk) == Applied(next_position=2, skipped=2)
    assert requests_counted(connection) == 2


def test_the_part_of_a_chunk_that_is_applied_already_is_left_out(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    applier.apply(make_chunk(make_record(0), make_record(1)))
    done = applier.apply(make_chunk(make_record(1), make_record(2)))
    assert done == Applied(next_position=3, skipped=1, applied=1)
    assert requests_counted(connection) == 3


def test_a_chunk_whose_events_are_spread_over_many_hours_is_applied_in_parts(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    """Each part is a transaction: the tables' chunks for them are made a few at a time, and what is done stays done."""
    applier.apply(make_chunk(make_record(0)))
    committed = 0

    def count(step: str) -> None:
        nonlocal committed
        committed += step == "committed"

    begin = datetime(2026, 1, 1, tzinfo=UTC)
    hours = [begin + timedelta(hours=n) for n in range(2 * HOURS_AT_ONCE)]
    records = [make_record(n, timestamp=hour.isoformat()) for n, hour in enumerate(hours, 1)]
    done = ChunkApplier(connection, count).apply(make_chunk(*records))
    assert (done.next_position, done.applied, committed) == (201, 200, 2)
    assert connection.execute("select count(*), sum(events) from usage.windows_1h").fetchone() == (201, 201)
    near = [make_record(201 + n) for n in range(2 * HOURS_AT_ONCE)]
    ChunkApplier(connection, count).apply(make_chunk(*near))
    assert committed == 3


def test_a_gap_is_refused_and_writes_nothing(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    with pytest.raises(PositionGap):
        applier.apply(make_chunk(make_record(1)))
    assert connection.execute("select count(*) from usage.events").fetchone() == (0,)


@pytest.mark.parametrize("changed", [{"cluster_id": "other"}, {"topic_id": "other"}, {"name": "kafka:unknown/0"}])
def test_another_log_under_the_same_name_is_refused(applier: ChunkApplier, changed: dict[str, str]) -> None:
    with pytest.raises(SourceChanged):
        applier.apply(make_chunk(make_record(0), source=replace(SOURCE, **changed)))


@pytest.mark.parametrize("later_chunk", [False, True])
def test_a_resend_counts_once_whatever_its_timestamp(
    connection: psycopg.Connection, applier: ChunkApplier, later_chunk: bool
) -> None:
    first, again = make_record(0, request_id="r"), make_record(1, request_id="r", timestamp="2026-11-01T11:59:00Z")
    if later_chunk:
        applier.apply(make_chunk(first))
        done = applier.apply(make_chunk(again))
    else:
        done = applier.apply(make_chunk(first, again))
    assert (done.duplicates, done.retimed, done.quarantined) == (1, 1, 0)
    assert connection.execute("select bucket, requests from usage.windows_1h").fetchall() == [
        (datetime(2026, 11, 1, 10, tzinfo=UTC), 1)
    ]


@pytest.mark.parametrize("later_chunk", [False, True])
def test_other_content_under_the_same_identity_goes_to_quarantine_whole(
    connection: psycopg.Connection, applier: ChunkApplier, later_chunk: bool
) -> None:
    first, other = make_record(0, request_id="r"), make_record(1, request_id="r", output_tokens=1005)
    for chunk in (make_chunk(first), make_chunk(other)) if later_chunk else (make_chunk(first, other),):
        applier.apply(chunk)
    (held,) = quarantine.listing(connection)
    assert (held.reason, held.tenant_id, held.position) == ("conflict", "tenant_1", 1)
    assert whole(connection, held) == other.value
    assert requests_counted(connection) == 1


def test_bad_messages_are_kept_whole_and_do_not_stop_the_others(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    bad = [b"{torn", event_json(output_tokens=-1), event_json(tenant_id="stranger"), event_json(schema_version=2),
           event_json(timestamp="2026-11-01T12:05:00.000001Z"), event_json(timestamp=0)]  # fmt: skip
    records = [make_record(position, value) for position, value in enumerate(bad)]
    done = applier.apply(make_chunk(*records, make_record(len(bad))))
    assert (done.applied, done.quarantined) == (1, len(bad))
    held = sorted(quarantine.listing(connection), key=lambda row: row.position)
    assert [row.reason for row in held] == ["torn", "invalid", "unknown_tenant", "unsupported", "future", "bad_time"]
    assert [whole(connection, row) for row in held] == bad


def test_a_late_event_changes_its_own_window(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    applier.apply(make_chunk(make_record(0, timestamp="2026-11-01T10:59:59.999999Z")))
    applier.apply(make_chunk(make_record(1, timestamp="2026-11-01T11:00:00Z")))
    applier.apply(make_chunk(make_record(2, timestamp="2026-11-01T10:00:00Z")))
    rows = connection.execute("select bucket, requests from usage.windows_1h order by bucket").fetchall()
    assert rows == [(datetime(2026, 11, 1, 10, tzinfo=UTC), 2), (datetime(2026, 11, 1, 11, tzinfo=UTC), 1)]


def test_traffic_that_is_not_the_tenants_is_kept_but_not_rated(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    applier.apply(make_chunk(make_record(0, purpose="probe"), make_record(1, tenant_id="_platform"), make_record(2)))
    assert requests_counted(connection) == 1
    assert [q.tenant_id for q in usage_store.rating_quantities(connection, *NOVEMBER)] == ["tenant_1"]


def test_a_crash_before_the_commit_leaves_nothing(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    chunk = make_chunk(make_record(0), make_record(1, b"{torn"))
    with connection.transaction(force_rollback=True):
        applier.apply(chunk)
    for table in ("events", "event_identities", "windows_1m", "windows_1h", "quarantine", "applied_chunks"):
        assert connection.execute(f"select count(*) from usage.{table}").fetchone() == (0,)
    assert applier.apply(chunk) == Applied(next_position=2, applied=1, quarantined=1)


def test_a_second_worker_finds_the_position_and_skips(
    connection: psycopg.Connection, applier: ChunkApplier, own_database_url: str
) -> None:
    chunk = make_chunk(*(make_record(position) for position in range(10)))
    applier.apply(chunk)
    with psycopg.connect(own_database_url, autocommit=True) as other:
        assert ChunkApplier(other).apply(chunk) == Applied(next_position=10, skipped=10)


def test_two_workers_with_the_same_chunk_at_the_same_time_apply_it_once(
    connection: psycopg.Connection, applier: ChunkApplier, own_database_url: str
) -> None:
    """The second waits for the source's row, then finds the position moved; it never looks at the messages."""
    chunk = make_chunk(*(make_record(position) for position in range(10)), make_record(10, b"{torn"))
    steps: list[str] = []
    with (
        connect(own_database_url, as_login=True) as watching,
        connect(own_database_url) as other,
        ThreadPoolExecutor(1) as thread,
    ):
        second = ChunkApplier(other, steps.append)
        results: list[Future[Applied]] = []

        def meanwhile(step: str) -> None:
            if step == "counted":
                results.append(thread.submit(second.apply, chunk))
                wait_until_blocked(watching, other)

        assert ChunkApplier(connection, meanwhile).apply(chunk) == Applied(next_position=11, applied=10, quarantined=1)
        assert results[0].result() == Applied(next_position=11, skipped=11)
    assert steps == ["begun", "locked"]


def wait_until_blocked(watching: psycopg.Connection, blocked: psycopg.Connection) -> None:
    waiting = "select 1 from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
    deadline = time.monotonic() + 60
    while not watching.execute(waiting, (blocked.info.backend_pid,)).fetchone():
        assert time.monotonic() < deadline, "the second does not wait"


SECOND = replace(SOURCE, name="kafka:test.usage.v1/1")
AGAIN = pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ({}, {"duplicates": 1}),
        ({"timestamp": "2026-11-01T11:00:00Z"}, {"duplicates": 1, "retimed": 1}),
        ({"output_tokens": 6}, {"quarantined": 1}),
        ({"replica_id": "another", "boot_id": "b1", "seq": 1}, {"quarantined": 1}),
        ({"usage_source": "estimate", "output_tokens": 6}, {"applied": 1}),
    ],
    ids=["equal", "retimed", "conflict", "numbered by another", "weaker"],
)
"""What the same identity is, the second time, in whatever partition."""


@AGAIN
def test_an_identity_counts_once_whichever_partitions_it_comes_through(
    connection: psycopg.Connection, applier: ChunkApplier, changed: dict[str, Any], outcome: dict[str, int]
) -> None:
    """As after the topic has got more partitions: a resend goes into another one than its first did."""
    register_source(connection, SECOND, "usage")
    first = {"request_id": "r", "replica_id": "one", "boot_id": "b1", "seq": 1}
    applier.apply(make_chunk(make_record(0, **first)))
    done = applier.apply(make_chunk(make_record(0, **(first | changed)), source=SECOND))
    assert done == Applied(**({"next_position": 1} | outcome))
    assert requests_counted(connection) == 1
    assert not rebuild(connection, *NOVEMBER, actor="test").differences


@AGAIN
def test_an_identity_that_comes_through_two_partitions_at_the_same_time_counts_once(
    connection: psycopg.Connection,
    applier: ChunkApplier,
    own_database_url: str,
    changed: dict[str, Any],
    outcome: dict[str, int],
) -> None:
    """Nothing but the identity's key is common to both: the second waits there until the first has committed."""
    register_source(connection, SECOND, "usage")
    first = {"request_id": "r", "replica_id": "one", "boot_id": "b1", "seq": 1}
    steps: list[str] = []
    with (
        connect(own_database_url, as_login=True) as watching,
        connect(own_database_url) as other,
        ThreadPoolExecutor(1) as thread,
    ):
        second = ChunkApplier(other, steps.append)
        results: list[Future[Applied]] = []

        def meanwhile(step: str) -> None:
            if step == "counted":
                chunk = make_chunk(make_record(0, **(first | changed)), make_record(1), source=SECOND)
                results.append(thread.submit(second.apply, chunk))
                wait_until_blocked(watching, other)
                assert steps[-1] == "staged"

        assert ChunkApplier(connection, meanwhile).apply(make_chunk(make_record(0, **first))).applied == 1
        expected = {"next_position": 2} | outcome | {"applied": 1 + outcome.get("applied", 0)}
        assert results[0].result() == Applied(**expected)
    assert requests_counted(connection) == 2
    assert not rebuild(connection, *NOVEMBER, actor="test").differences


@pytest.mark.parametrize("table", ["applied_chunks", "audit_log", "event_identities", "quarantine"])
@pytest.mark.parametrize("change", ["update {0} set {1} = {1}", "delete from {0}", "truncate {0} cascade"])
def test_facts_cannot_be_edited(
    connection: psycopg.Connection, owner: psycopg.Connection, applier: ChunkApplier, table: str, change: str
) -> None:
    applier.apply(make_chunk(make_record(0), make_record(1, b"{torn")))
    column = {
        "applied_chunks": "applied",
        "audit_log": "actor",
        "event_identities": "position",
        "quarantine": "reason",
    }
    statement = change.format(f"usage.{table}", column[table])
    with pytest.raises(psycopg.errors.DatabaseError, match=r"permission denied|append-only"):
        connection.execute(statement)
    with pytest.raises(psycopg.errors.DatabaseError, match="append-only"):
        owner.execute(statement)


def test_what_came_late_and_what_was_refused_is_told(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    """Received at 12:00: late is what was completed before 11:00 and counts; a resend of it does not count again."""
    late = {"request_id": "late", "timestamp": "2026-11-01T10:59:59.999999Z"}
    done = applier.apply(
        make_chunk(
            make_record(0, **late), make_record(1, timestamp="2026-11-01T11:00:00Z"), make_record(2, **late),
            make_record(3, b"{torn"),
        )
    )  # fmt: skip
    assert (done.late, dict(done.refused), dict(done.tenants)) == (1, {"torn": 1}, {"tenant_1": 3})
    assert connection.execute("select late from usage.applied_chunks").fetchall() == [(1,)]
