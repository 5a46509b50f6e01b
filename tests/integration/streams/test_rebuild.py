"""Rebuilding windows beside the running ingestion: who is stopped, and for how much."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from serving_adapter.identity import Identity, event_id_of
from streams.database import connect
from streams.ingest.apply import ChunkApplier
from streams.rules import ingest_rules, stale_bands
from streams.rules.rating_bands import BandKind, BandRule
from streams.usage import rebanding
from streams.usage import rebuild as rebuilding
from streams.usage.rebuild import rebuild
from tests.builders import make_chunk, make_record
from tests.waiting import wait_for

YEAR = (datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
LATE_RULE = BandRule("tenant_1", "", BandKind.CONTEXT, YEAR[0], steps=(3,))
ANOTHER = BandRule("tenant_1", "", BandKind.CONTEXT, YEAR[0], steps=(1000,))


def test_a_rebuild_that_finds_nothing_stops_nobody(
    connection: psycopg.Connection, applier: ChunkApplier, own_database_url: str
) -> None:
    applier.apply(make_chunk(make_record(0)))
    connection.execute("set lock_timeout = '1s'")
    with connect(own_database_url, autocommit=False) as chunk_in_flight:
        chunk_in_flight.execute("select from usage.sources for update")
        assert rebuild(connection, *YEAR, actor="ada", apply=True).replaced == 0


def test_a_rebuild_puts_right_what_differs_and_writes_it_down(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    applier.apply(make_chunk(*(make_record(hour, timestamp=f"2026-11-01T0{hour}:30:00Z") for hour in range(3))))
    connection.execute("update usage.windows_1h set output_tokens = 0 where bucket <> '2026-11-01T01:00Z'")
    assert rebuild(connection, *YEAR, actor="ada", apply=True).replaced == 2
    acts = connection.execute(
        "select detail ->> 'from', detail ->> 'windows' from usage.audit_log where action = 'windows.rebuild'"
    ).fetchall()
    assert sorted(acts) == [("2026-11-01T00:00:00+00:00", "1"), ("2026-11-01T02:00:00+00:00", "1")]
    assert rebuild(connection, *YEAR, actor="ada").differences == ()


def test_windows_are_put_right_beside_a_chunk_in_flight_which_waits_for_nobody(
    connection: psycopg.Connection, applier: ChunkApplier, own_database_url: str
) -> None:
    """The rebuild has read what the window lacks; then the chunk that has the window's row commits."""
    at = "2026-11-01T00:03:30Z"
    applier.apply(make_chunk(make_record(0, timestamp=at)))
    connection.execute("update usage.windows_1m set output_tokens = output_tokens - 7")
    connection.execute("update usage.windows_1h set requests = 9")
    waiting = "select exists (select from pg_locks where pid = %s and not granted)"

    with ThreadPoolExecutor(1) as beside, connect(own_database_url) as other, connect(own_database_url) as looking:
        begun: list[Future[rebuilding.Rebuilt]] = []

        other.execute("set idle_in_transaction_session_timeout = 0")

        def before_it_commits(step: str) -> None:
            if step == "advanced":
                begun.append(beside.submit(rebuild, connection, *YEAR, actor="ada", apply=True))
                of_rebuild = (connection.info.backend_pid,)
                wait_for(lambda: looking.execute(waiting, of_rebuild).fetchone() == (True,), "it comes to the row")

        ChunkApplier(other, before_it_commits).apply(make_chunk(make_record(1, timestamp=at)))
        assert begun[0].result(60).replaced == 2
    assert rebuild(connection, *YEAR, actor="ada").differences == ()
    assert connection.execute("select requests from usage.windows_1h").fetchone() == (2,)


def test_a_deadlock_with_a_chunk_that_counts_in_several_statements_is_gone_about_again(
    connection: psycopg.Connection, applier: ChunkApplier, own_database_url: str
) -> None:
    """The chunk has the later of two rows and wants the earlier; the rebuild, which looks first, is given up."""
    models = ("a", "b")
    applier.apply(make_chunk(*(make_record(n, model=model) for n, model in enumerate(models))))
    count = "update usage.windows_1h set gpu_us = gpu_us + 0 where model = %s"
    waiting = "select exists (select from pg_locks where pid = %s and not granted)"
    with ThreadPoolExecutor(1) as beside, connect(own_database_url) as chunk, connect(own_database_url) as looking:
        chunk.execute("set idle_in_transaction_session_timeout = 0")

        def the_rebuild_is_given_up() -> bool:
            connection.execute("update usage.windows_1h set requests = 9")
            try:
                with chunk.transaction():
                    chunk.execute(count, (models[1],))
                    begun = beside.submit(rebuild, connection, *YEAR, actor="ada", apply=True)
                    of_rebuild = (connection.info.backend_pid,)
                    wait_for(lambda: looking.execute(waiting, of_rebuild).fetchone() == (True,), "it comes to the row")
                    time.sleep(0.5)  # each looks for a deadlock once, a second after it began to wait
                    chunk.execute(count, (models[0],))
            except psycopg.errors.DeadlockDetected:  # this machine slept for longer
                return False
            finally:
                assert begun.result(60).replaced == 2
            return True

        assert any(the_rebuild_is_given_up() for _ in range(5))
    assert rebuild(connection, *YEAR, actor="ada").differences == ()


def test_events_change_their_band_a_few_at_a_time_and_chunks_go_on_in_between(
    connection: psycopg.Connection, applier: ChunkApplier, own_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A correction that comes in between moves with what it corrects, a stronger source's event has the right band."""
    weak = [
        make_record(n, request_id=f"r{n}", usage_source="estimate", input_tokens=n, cache_hit_tokens=0)
        for n in range(5)
    ]
    applier.apply(make_chunk(*weak))
    ingest_rules.set_band_rules(connection, "tenant_1", [LATE_RULE])
    corrects = str(event_id_of(Identity("tenant_1", "r4", 1, "usage", 0)))
    less = {"request_id": "r4", "kind": "correction", "correction_no": 1, "corrects": corrects, "input_tokens": -1}
    further = [
        make_record(5, request_id="r3", input_tokens=2, cache_hit_tokens=0),
        make_record(6, **less, output_tokens=0, cache_hit_tokens=0),
    ]
    move_some, sizes = rebanding._move_some, list[int]()

    def meanwhile(given: psycopg.Connection) -> tuple[int, int]:
        moved = move_some(given)
        sizes.append(moved[1])
        return moved

    monkeypatch.setattr(rebanding, "MOVED_AT_ONCE", 2)
    monkeypatch.setattr(rebanding, "_move_some", meanwhile)
    hold = rebanding.hold_archive

    def before_the_sources_stop(given: psycopg.Connection) -> None:
        if sizes and further:
            with connect(own_database_url) as other:
                ChunkApplier(other).apply(make_chunk(further.pop(0)))
        hold(given)

    monkeypatch.setattr(rebanding, "hold_archive", before_the_sources_stop)
    assert rebuild(connection, *YEAR, actor="ada", apply=True).rebanded == 6
    assert sizes == [2, 2, 2]
    assert rebuild(connection, *YEAR, actor="ada").differences == ()
    bands = connection.execute(
        "select rating_band, sum(requests)::int8, sum(input_tokens)::int8 from usage.windows_1h group by 1 order by 1"
    ).fetchall()
    assert bands == [("", 0, 0), ("context=0", 4, 0 + 1 + 2 + 2), ("context=3", 1, 4 - 1)]


def test_rules_that_change_while_windows_are_compared_leave_their_time_stale(
    connection: psycopg.Connection, applier: ChunkApplier, own_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    applier.apply(make_chunk(make_record(0)))
    ingest_rules.set_band_rules(connection, "tenant_1", [LATE_RULE])
    move = rebanding.move

    def meanwhile(*given: Any) -> tuple[int, int]:
        with connect(own_database_url) as other:
            ingest_rules.set_band_rules(other, "tenant_1", [ANOTHER])
        return move(*given)

    with monkeypatch.context() as patched:
        patched.setattr(rebanding, "move", meanwhile)
        rebuild(connection, *YEAR, actor="ada", apply=True)
    assert stale_bands.stale_bands(connection, *YEAR)
    rebuild(connection, *YEAR, actor="ada", apply=True)
    assert stale_bands.stale_bands(connection, *YEAR) == []
    assert connection.execute("select rating_band from usage.events").fetchall() == [("context=0",)]
