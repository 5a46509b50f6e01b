"""Rebuilding windows beside the running ingestion: who is stopped, and for how long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from streams.database import connect
from streams.ingest.apply import ChunkApplier
from streams.rules import ingest_rules, stale_bands
from streams.rules.rating_bands import BandKind, BandRule
from streams.usage import rebuild as rebuilding
from streams.usage.rebuild import rebuild
from tests.builders import make_chunk, make_record

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


def test_a_rebuild_stops_the_sources_for_a_minute_at_a_time_and_chunks_go_on_in_between(
    connection: psycopg.Connection, applier: ChunkApplier, own_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is applied in between, also into the hour that is being put right, is in it."""
    at_minute = [f"2026-11-01T00:{n:02}:30Z" for n in range(10)]
    applier.apply(make_chunk(*(make_record(n, timestamp=at) for n, at in enumerate(at_minute))))
    connection.execute("update usage.windows_1m set output_tokens = 0 where extract(minute from bucket) in (3, 5)")
    connection.execute("update usage.windows_1h set requests = 1")
    stopped: list[tuple[int, timedelta]] = []
    stop = rebuilding._stop_sources

    def meanwhile(given: psycopg.Connection, start: datetime, end: datetime) -> None:
        position = 10 + len(stopped)
        stopped.append((start.minute, end - start))
        with connect(own_database_url) as other:
            ChunkApplier(other).apply(make_chunk(make_record(position, timestamp=at_minute[start.minute])))
        stop(given, start, end)

    monkeypatch.setattr(rebuilding, "_stop_sources", meanwhile)
    assert rebuild(connection, *YEAR, actor="ada", apply=True).replaced == 3
    minute = timedelta(minutes=1)
    assert stopped == [(3, minute), (5, minute), (0, 60 * minute)]
    assert rebuild(connection, *YEAR, actor="ada").differences == ()
    assert connection.execute("select sum(requests) from usage.windows_1h").fetchone() == (13,)


def test_rules_that_change_while_windows_are_compared_leave_their_time_stale(
    connection: psycopg.Connection, applier: ChunkApplier, own_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    applier.apply(make_chunk(make_record(0)))
    ingest_rules.set_band_rules(connection, "tenant_1", [LATE_RULE])
    mend = rebuilding._mend_minute

    def meanwhile(*given: Any, **more: Any) -> tuple[int, int]:
        with connect(own_database_url) as other:
            ingest_rules.set_band_rules(other, "tenant_1", [ANOTHER])
        return mend(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(rebuilding, "_mend_minute", meanwhile)
        rebuild(connection, *YEAR, actor="ada", apply=True)
    assert stale_bands.stale_bands(connection, *YEAR)
    rebuild(connection, *YEAR, actor="ada", apply=True)
    assert stale_bands.stale_bands(connection, *YEAR) == []
    assert connection.execute("select rating_band from usage.events").fetchall() == [("context=0",)]
