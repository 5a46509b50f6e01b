"""Out of quarantine: by the feed that brought it, by the clock of the release; corrections that wait, in turn."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from serving_adapter import events, replica_reports
from serving_adapter.identity import Identity, event_id_of
from streams import tenants
from streams.database import connect
from streams.errors import NotReleased
from streams.ingest import orphans
from streams.ingest.apply import ChunkApplier
from streams.ingest.orphans import Orphans
from streams.ingest.release import Releaser
from streams.ingest.replica_apply import ReplicaChunkApplier
from streams.rules.chunks import Chunk, Record
from streams.usage import quarantine
from tests.builders import EVENT, RECEIVED, REPLICA_SOURCE, SOURCE, event_json, make_chunk, make_record, make_report

LONG_AGO = datetime(2021, 1, 1, tzinfo=UTC)


def test_a_report_that_was_refused_is_released_as_a_report(
    connection: psycopg.Connection, replica_applier: ReplicaChunkApplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = {"since": "2026-11-01T11:00:00Z", "models": [{"model": "m", "prompt_tokens": 7, "generation_tokens": 3}]}
    newer = make_report(0, "engine_counters", **counters, schema_version=2)
    ahead = make_report(1, "heartbeat", at=RECEIVED + timedelta(hours=1))._replace(appended_at=RECEIVED)
    replica_applier.apply(make_chunk(newer, ahead, source=REPLICA_SOURCE))
    held = {row.reason: row.quarantine_id for row in quarantine.listing(connection)}
    releaser = Releaser(connection)
    with pytest.raises(NotReleased, match="unsupported: schema_version"):
        releaser.release(held["unsupported"], actor="ada")
    monkeypatch.setattr(replica_reports, "ENGINE_COUNTERS_VERSION", 2)  # as after an upgrade
    assert not releaser.release(held["unsupported"], actor="ada").duplicate
    assert connection.execute("select prompt_tokens from usage.engine_counters").fetchall() == [(7,)]
    # What a clock that was ahead promised of the time to come stays untrue
    with pytest.raises(NotReleased, match="future: at"):
        releaser.release(held["future"], actor="ada")


def test_an_event_of_a_later_version_counts_once_this_one_reads_it(
    connection: psycopg.Connection, applier: ChunkApplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    applier.apply(make_chunk(make_record(0, schema_version=2, request_id="new", output_tokens=77)))
    (held,) = quarantine.listing(connection)
    releaser = Releaser(connection)
    with pytest.raises(NotReleased, match="unsupported: schema_version"):
        releaser.release(held.quarantine_id, actor="ada")
    counted = "select request_id, output_tokens from usage.events"
    assert connection.execute(counted).fetchall() == []
    monkeypatch.setattr(events, "SCHEMA_VERSION", 2)  # as after an upgrade
    assert not releaser.release(held.quarantine_id, actor="ada").duplicate
    assert connection.execute(counted).fetchall() == [("new", 77)]
    assert connection.execute("select sum(output_tokens)::int8 from usage.windows_1h").fetchall() == [(77,)]
    assert quarantine.counts(connection) == {}


def test_a_report_that_comes_after_a_later_one_takes_nothing_back(
    connection: psycopg.Connection, replica_applier: ReplicaChunkApplier
) -> None:
    """As one that waited in quarantine does."""
    said = "select started, ended, open, clock_offset_ms, last_seq from usage.boots"

    def report(position: int, kind: str, second: int, **more: object) -> tuple[object, ...] | None:
        record = make_report(position, kind, at=RECEIVED + timedelta(seconds=second), **more)
        replica_applier.apply(make_chunk(record, source=REPLICA_SOURCE))
        return connection.execute(said).fetchone()

    later = report(0, "heartbeat", 10, last_seq=5, started=7, ended=5, open=2, clock_offset_ms=3)
    assert later == (7, 5, 2, 3, 5)
    assert report(1, "heartbeat", 4, last_seq=2, started=3, ended=2, open=1, clock_offset_ms=900) == later
    ended = report(2, "farewell", 20, last_seq=7, started=7, ended=7)
    assert ended == (7, 7, 0, 3, 7)
    assert report(3, "heartbeat", 12, last_seq=6, started=7, ended=6, open=1) == ended
    assert report(4, "heartbeat", 30, last_seq=8, started=9, ended=8, open=1) == (9, 8, 1, 0, 8)


def test_an_event_from_the_future_can_be_released_once_its_time_has_come(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    come, to_come = LONG_AGO + timedelta(days=1), datetime.now(UTC) + timedelta(days=1)
    records = [
        Record(n, b"tenant_1", event_json(request_id=f"r{n}", timestamp=at.isoformat()), LONG_AGO)
        for n, at in enumerate((come, to_come))
    ]
    applier.apply(Chunk(SOURCE, records))
    assert quarantine.counts(connection) == {"future": 2}
    later, first = quarantine.listing(connection)
    releaser = Releaser(connection)
    releaser.release(first.quarantine_id, actor="ada")
    with pytest.raises(NotReleased, match="future"):
        releaser.release(later.quarantine_id, actor="ada")
    stored = connection.execute("select request_id, completed_at, ingested_at from usage.events").fetchall()
    assert stored == [("r0", come, LONG_AGO)]


def test_what_is_refused_again_at_its_release_is_kept_with_its_headers_and_without_a_value(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    headers = [("ce_emitter", b"gateway-1"), ("ce_emitter", b"\xff\x00"), ("none", None)]
    excess = orphan(0, output_tokens=-9)._replace(headers=headers)
    applier.apply(make_chunk(excess))
    (held,) = quarantine.listing(connection)
    applier.apply(make_chunk(make_record(1, event_json(request_id="r0"))))
    assert not Releaser(connection).release_orphan(held.quarantine_id)
    again = [quarantine.get(connection, row.quarantine_id) for row in quarantine.listing(connection)]
    assert [(one[0].reason, one[1].headers) for one in again if one] == [("invalid", headers)]


def test_after_a_release_that_was_refused_or_tried_alone_the_next_one_goes_on(
    connection: psycopg.Connection, applier: ChunkApplier, own_database_url: str
) -> None:
    applier.apply(make_chunk(make_record(0, tenant_id="tenant_2"), make_record(1, tenant_id="tenant_3")))
    stays, goes = sorted(row.quarantine_id for row in quarantine.listing(connection))
    tenants.register(connection, [("tenant_3", "Three")], actor="test")
    with connect(own_database_url) as fresh:  # a session that has made nothing yet
        releaser = Releaser(fresh)
        with pytest.raises(NotReleased, match="tenant_2 is not registered"):
            releaser.release(stays, actor="ada")
        for dry_run in (True, True, False):
            with fresh.transaction(force_rollback=dry_run):
                assert not releaser.release(goes, actor="ada").duplicate
    assert connection.execute("select tenant_id from usage.events").fetchall() == [("tenant_3",)]


@pytest.fixture
def looks(connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> Orphans:
    """Three of those that wait at a time, without rests."""
    monkeypatch.setattr(orphans, "NEWEST_LOOKED_AT", 1)
    monkeypatch.setattr(orphans, "LOOKED_AT", 2)
    monkeypatch.setattr(orphans, "RESTS_AT_MOST_S", 0.0)
    return Orphans(connection)


def orphan(position: int, output_tokens: int = -1) -> Record:
    request_id = f"r{position}"
    corrects = str(event_id_of(Identity("tenant_1", request_id, 1, "usage", 0)))
    deltas = {"input_tokens": 0, "output_tokens": output_tokens, "cache_hit_tokens": 0}
    named = {"request_id": request_id, "kind": "correction", "correction_no": 1, "corrects": corrects}
    return make_record(position, json.dumps(EVENT | named | deltas).encode())


def waiting(connection: psycopg.Connection) -> int:
    row = connection.execute("select count(*) from usage.waiting_orphans").fetchone()
    assert row is not None
    return int(row[0])


def test_corrections_that_wait_are_looked_up_a_part_at_a_time_the_newest_each_time(
    connection: psycopg.Connection, applier: ChunkApplier, looks: Orphans
) -> None:
    applier.apply(make_chunk(*map(orphan, range(7))))
    assert [looks.release_some() for _ in range(4)] == [0] * 4
    originals = [make_record(7 + n, event_json(request_id=f"r{n}")) for n in (2, 6)]
    applier.apply(make_chunk(*[r._replace(position=7 + n) for n, r in enumerate(originals)]))
    assert looks.release_some() == 1  # the newest; r0 and r1 had their turn
    assert [looks.release_some() for _ in range(2)] == [1, 0]
    assert (waiting(connection), quarantine.counts(connection)) == (5, {"orphan": 5})
    Releaser(connection).discard(quarantine.listing(connection)[0].quarantine_id, actor="ada", reason="a test")
    assert waiting(connection) == 4


def test_what_is_released_in_one_sweep_is_bounded_and_the_rest_has_its_turn_next(
    connection: psycopg.Connection, applier: ChunkApplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "RELEASED_AT_MOST", 2)
    monkeypatch.setattr(orphans, "NEWEST_LOOKED_AT", 1)
    monkeypatch.setattr(orphans, "RESTS_AT_MOST_S", 0.0)
    looks = Orphans(connection)
    applier.apply(make_chunk(*map(orphan, range(5))))
    applier.apply(make_chunk(*(make_record(5 + n, event_json(request_id=f"r{n}")) for n in range(5))))
    assert [looks.release_some() for _ in range(4)] == [2, 2, 1, 0]


def test_one_worker_at_a_time_looks_up_what_waits_and_rests_afterwards(
    connection: psycopg.Connection, applier: ChunkApplier, own_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "SHARE_OF_TIME", 1e-9)
    applier.apply(make_chunk(orphan(0), orphan(1)))
    looks = Orphans(connection)
    assert looks.release_some() == 0
    applier.apply(make_chunk(make_record(2, event_json(request_id="r0"))))
    assert looks.release_some() == 0  # rests
    with connect(own_database_url) as busy, connect(own_database_url) as other:
        busy.execute("select pg_advisory_lock(%s)", (orphans.ORPHANS_LOCK,))
        assert Orphans(other).release_some() == 0
        busy.execute("select pg_advisory_unlock(%s)", (orphans.ORPHANS_LOCK,))
        assert Orphans(other).release_some() == 1
