"""Stronger and weaker sources, corrections and orphans, on a real database."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from serving_adapter.identity import Identity, event_id_of
from streams.database import connect
from streams.errors import NotReleased
from streams.ingest import passed_positions
from streams.ingest.apply import ChunkApplier
from streams.ingest.orphans import Orphans
from streams.ingest.release import Releaser
from streams.quotas import feed
from streams.quotas.definition_store import NOTHING
from streams.quotas.feed import Wanted
from streams.usage import quarantine, usage_store
from streams.usage.rebuild import rebuild
from tests.builders import EVENT, make_chunk, make_record
from tests.integration.streams.conftest import whole

YEAR = (datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
NEXT_DAY = "2026-10-31T10:00:00Z"


def send(applier: ChunkApplier, connection: psycopg.Connection, *events: dict[str, Any]) -> list[Any]:
    """Apply each event as a chunk of its own, from the position that is due."""
    done = []
    for event in events:
        row = connection.execute("select next_position from usage.sources where source like 'kafka:%'").fetchone()
        assert row is not None
        done.append(applier.apply(make_chunk(make_record(row[0], json.dumps(EVENT | event).encode()))))
    return done


def windows(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    """Hourly windows that are not empty: bucket, model, source, requests, input, cached, output."""
    return connection.execute(
        "select bucket, model, usage_source, requests, input_tokens, cache_hit_tokens, output_tokens"
        " from usage.windows_1h where events <> 0 order by 1, 2, 3"
    ).fetchall()


def assert_windows_are_their_events(connection: psycopg.Connection) -> None:
    assert not rebuild(connection, *YEAR, actor="test").differences
    raw = list(usage_store.raw_quantities(connection, *YEAR))
    assert [q for q in usage_store.rating_quantities(connection, *YEAR) if q.requests or q.input_tokens] == raw


def correction(number: int = 1, **deltas: int) -> dict[str, Any]:
    """A correction of the builder's event."""
    identity = Identity(EVENT["tenant_id"], EVENT["request_id"], 1, "usage", 0)
    zero = {"input_tokens": 0, "output_tokens": 0, "cache_hit_tokens": 0}
    named = {"kind": "correction", "correction_no": number, "corrects": str(event_id_of(identity))}
    return zero | named | {"timestamp": "2026-11-01T11:59:00Z"} | deltas


ESTIMATE = {"usage_source": "estimate", "status": "lost", "output_tokens": 1, "timestamp": NEXT_DAY}
STREAM = {"usage_source": "stream", "output_tokens": 3}
ENGINE = {"usage_source": "engine", "output_tokens": 5}
TENTH = datetime(2026, 11, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_the_strongest_source_counts_whichever_came_first(
    connection: psycopg.Connection, applier: ChunkApplier, order: Sequence[int]
) -> None:
    versions = [ESTIMATE, STREAM, ENGINE]
    done = send(applier, connection, *(versions[i] for i in order), *versions)
    assert [d.applied for d in done] == [1, 1, 1, 0, 0, 0]
    assert [d.duplicates for d in done] == [0, 0, 0, 1, 1, 1]
    assert windows(connection) == [(TENTH, "llama", "engine", 1, 10, 4, 5)]
    assert connection.execute("select count(*) from usage.events").fetchone() == (3,)
    assert connection.execute("select count(*) from usage.superseded_events").fetchone() == (2,)
    assert_windows_are_their_events(connection)


def test_versions_in_one_chunk_give_the_same(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    records = [make_record(i, json.dumps(EVENT | v).encode()) for i, v in enumerate((ESTIMATE, ENGINE, STREAM, ENGINE))]
    done = applier.apply(make_chunk(*records))
    assert (done.applied, done.duplicates) == (3, 1)
    assert windows(connection) == [(TENTH, "llama", "engine", 1, 10, 4, 5)]
    assert_windows_are_their_events(connection)


def test_other_content_of_equal_source_is_a_conflict_beside_a_stronger_one(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    send(applier, connection, STREAM, ENGINE, STREAM | {"output_tokens": 4})
    assert quarantine.counts(connection) == {"conflict": 1}
    assert_windows_are_their_events(connection)


def test_only_events_that_two_boots_numbered_are_in_conflict_over_it(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    boots = [{"replica_id": "r1", "boot_id": boot} for boot in ("b1", "b2")]
    assert sum(done.duplicates for done in send(applier, connection, *boots)) == 1
    send(applier, connection, *({"request_id": "r2", "seq": 1} | boot for boot in boots))
    (held,) = quarantine.listing(connection)
    assert held.reason == "conflict"
    assert held.detail == "same identity as kafka:test.usage.v1/0@2, numbered by another replica or boot"
    send(applier, connection, ESTIMATE, ESTIMATE | {"output_tokens": 2})
    assert quarantine.listing(connection)[0].detail == "same identity as kafka:test.usage.v1/0@4, other content"


def test_a_correction_counts_where_its_event_counts(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    send(applier, connection, ENGINE, correction(1, output_tokens=-2), correction(2, gpu_us=7))
    assert windows(connection) == [(TENTH, "llama", "engine", 1, 10, 4, 3)]
    assert connection.execute("select events, gpu_us from usage.windows_1h").fetchone() == (3, 7)
    assert_windows_are_their_events(connection)


def test_a_correction_counts_once(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    once = correction(1, output_tokens=-2)
    done = send(applier, connection, ENGINE, once, once, once | {"output_tokens": -3})
    assert (done[2].duplicates, done[3].quarantined) == (1, 1)
    assert quarantine.counts(connection) == {"conflict": 1}
    assert windows(connection)[0][-1] == 3


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_one_correction_by_two_sources_the_stronger_counts(
    connection: psycopg.Connection, applier: ChunkApplier, order: Sequence[int]
) -> None:
    told = [correction(1, output_tokens=-1) | {"usage_source": "stream"}, correction(1, output_tokens=-2)]
    done = send(applier, connection, ENGINE, *(told[i] for i in order), *told, correction(2, output_tokens=-1))
    assert [(d.applied, d.duplicates) for d in done] == [(1, 0), (1, 0), (1, 0), (0, 1), (0, 1), (1, 0)]
    assert windows(connection) == [(TENTH, "llama", "engine", 1, 10, 4, 2)]
    assert_windows_are_their_events(connection)
    send(applier, connection, told[1] | {"output_tokens": -3})
    assert quarantine.counts(connection) == {"conflict": 1}


@pytest.mark.parametrize("deltas", [{"output_tokens": -6}, {"input_tokens": -7}, {"cache_hit_tokens": 7}])
def test_a_correction_that_leaves_impossible_sums_is_refused(
    connection: psycopg.Connection, applier: ChunkApplier, deltas: dict[str, int]
) -> None:
    send(applier, connection, ENGINE, correction(1, **deltas))
    assert quarantine.counts(connection) == {"invalid": 1}
    assert windows(connection) == [(TENTH, "llama", "engine", 1, 10, 4, 5)]


def test_a_correction_of_another_event_is_refused(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    other = str(event_id_of(Identity("tenant_1", "someone-else", 1, "usage", 0)))
    send(applier, connection, ENGINE, correction(1) | {"corrects": other})
    assert quarantine.counts(connection) == {"invalid": 1}


def test_an_orphan_waits_and_is_released_when_its_event_arrives(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    send(applier, connection, correction(1, output_tokens=-2))
    assert (quarantine.counts(connection), Orphans(connection).release_all()) == ({"orphan": 1}, 0)
    send(applier, connection, ENGINE)
    assert (Orphans(connection).release_all(), Orphans(connection).release_all()) == (1, 0)
    assert quarantine.counts(connection) == {}
    assert windows(connection) == [(TENTH, "llama", "engine", 1, 10, 4, 3)]
    assert_windows_are_their_events(connection)


def test_two_workers_release_an_orphan_once(
    connection: psycopg.Connection, applier: ChunkApplier, own_database_url: str
) -> None:
    send(applier, connection, correction(1, output_tokens=-2), ENGINE)
    (held,) = quarantine.listing(connection)
    with (
        connect(own_database_url, as_login=True) as watching,
        connect(own_database_url) as other,
        ThreadPoolExecutor(1) as thread,
    ):
        with connection.transaction():
            Releaser(connection).release(held.quarantine_id, actor="ada")
            slower = thread.submit(Orphans(other).release_all)
            waiting = "select 1 from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
            deadline = time.monotonic() + 60
            while not watching.execute(waiting, (other.info.backend_pid,)).fetchone():
                assert time.monotonic() < deadline, "the slower one does not wait"
        assert slower.result() == 0
    assert_windows_are_their_events(connection)


def test_an_orphan_that_does_not_fit_stays_visible_for_a_person(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    send(applier, connection, correction(1, output_tokens=-20), ENGINE)
    assert Orphans(connection).release_all() == 0
    assert quarantine.counts(connection) == {"invalid": 1}


def test_a_superseded_event_takes_its_corrections_with_it(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    of_stream = correction(1, output_tokens=-1) | {"usage_source": "stream"}
    send(applier, connection, STREAM, of_stream, ENGINE | {"timestamp": NEXT_DAY})
    assert windows(connection) == [(datetime(2026, 10, 31, 10, tzinfo=UTC), "llama", "engine", 1, 10, 4, 5)]
    send(applier, connection, correction(2, output_tokens=-4))
    assert windows(connection) == [(datetime(2026, 10, 31, 10, tzinfo=UTC), "llama", "engine", 1, 10, 4, 1)]
    assert_windows_are_their_events(connection)


def test_what_counts_does_not_depend_on_the_order_in_which_it_came(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    """Two sources' events and three corrections in each of 120 orders: no weaker one counts."""
    position = 0
    for number, order in enumerate(itertools.permutations(range(5))):
        request = {"request_id": f"req-{number}"}
        corrects = {"corrects": str(event_id_of(Identity("tenant_1", f"req-{number}", 1, "usage", 0)))}
        messages = [
            {"usage_source": "gateway", "model": "alias", "output_tokens": 10, "timestamp": NEXT_DAY},
            correction(1, output_tokens=5) | {"usage_source": "gateway"} | corrects,
            {"usage_source": "engine", "output_tokens": 15},
            correction(2, output_tokens=-2) | {"usage_source": "engine"} | corrects,
            correction(1, output_tokens=-1) | {"usage_source": "stream"} | corrects,
        ]
        records = [
            make_record(position + i, json.dumps(EVENT | request | messages[which]).encode())
            for i, which in enumerate(order)
        ]
        position += len(records)
        cut = number % (len(records) + 1)
        for part in (records[:cut], records[cut:]):
            if part:
                applier.apply(make_chunk(*part))
                while Orphans(connection).release_all():
                    pass
    counted = connection.execute(
        "select request_id, array_agg(distinct (usage_source, model, completed_at)::text), sum(output_tokens)::int"
        " from usage.counting_events group by request_id"
    ).fetchall()
    assert len(counted) == 120
    assert {(len(keys), total) for _, keys, total in counted} == {(1, 13)}
    assert windows(connection) == [(TENTH, "llama", "engine", 120, 1200, 480, 13 * 120)]
    assert quarantine.counts(connection) == {}
    assert_windows_are_their_events(connection)


def test_a_correction_that_was_here_before_its_event_counts_with_it_or_is_refused(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    fits, too_much = correction(1, output_tokens=-2), correction(2, output_tokens=-4)
    send(applier, connection, STREAM | {"output_tokens": 9}, fits, too_much, ENGINE)
    assert windows(connection) == [(TENTH, "llama", "engine", 1, 10, 4, 3)]
    (held,) = quarantine.listing(connection)
    assert (held.reason, json.loads(whole(connection, held))["correction_no"]) == ("invalid", 2)
    moved = "moved:kafka:test.usage.v1/0@3"
    assert passed_positions.stored_counts(connection)[moved] == (1, 1)
    assert (moved, 0, 2, 2) in passed_positions.runs(connection)
    send(applier, connection, fits, too_much, correction(1, output_tokens=-3))
    assert windows(connection) == [(TENTH, "llama", "engine", 1, 10, 4, 3)]
    assert_windows_are_their_events(connection)


def test_the_feed_has_no_position_for_each_release_or_moved_correction(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    """Its readers keep them for ever. What is released or moved is read all the same, once."""
    look = feed.look(connection, {}, NOTHING, Wanted(), 0, 1)
    of_stream = correction(1, output_tokens=-2)
    originals = [Identity("tenant_1", f"r{n}", 1, "usage", 0) for n in range(3)]
    orphans = [
        correction(1, output_tokens=-1) | {"request_id": each.request_id, "corrects": str(event_id_of(each))}
        for each in originals
    ]
    send(applier, connection, STREAM | {"output_tokens": 9}, of_stream, ENGINE, *orphans)
    send(applier, connection, *({"request_id": f"r{n}"} for n in range(3)))
    while Orphans(connection).release_all():
        pass
    found = feed.look(connection, look.positions, NOTHING, Wanted(), 0, 1)
    assert connection.execute("select count(*) from usage.sources where source ~ '^(release|moved):'").fetchone() == (
        4,
    )
    assert {source.split(":")[0].split("/")[0] for source in found.positions} == {"", "kafka", "releases"}
    columns = ("requests", "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us")
    sums = ", ".join(f"sum({name})::int8" for name in columns)
    used = connection.execute(f"select {sums} from usage.windows_1h").fetchone()
    assert used == tuple(map(sum, zip(*(row.counts for row in found.rows), strict=True)))
    assert len(found.rows) == 3 + 3 + 6
    assert feed.look(connection, found.positions, NOTHING, Wanted(), 0, 1).rows == []


def test_the_feed_adds_up_to_the_windows_in_order(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    of_stream = correction(1, output_tokens=-1) | {"usage_source": "stream"}
    send(applier, connection, STREAM, of_stream, ENGINE, {"request_id": "r2", "purpose": "probe"})
    rows = connection.execute(
        "select ingest_no, requests, output_tokens from usage.quota_feed order by ingest_no, output_tokens"
    ).fetchall()
    assert rows == [(1, 1, 3), (2, 0, -1), (3, -1, -3), (3, 0, 1), (3, 1, 5)]


def test_random_arrivals_leave_windows_that_are_their_events(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    dice = random.Random(20261121)
    sources = ("engine", "stream", "gateway", "settled", "estimate")
    events = []
    for request in range(12):
        events += [
            {"request_id": f"req-{request}", "usage_source": source, "output_tokens": dice.randint(0, 9),
             "timestamp": f"2026-11-01T{dice.randint(8, 11):02d}:30:00Z"}
            for source in dice.sample(sources, dice.randint(1, 3))
        ]  # fmt: skip
        for number in range(1, dice.randint(1, 3)):
            identity = Identity("tenant_1", f"req-{request}", 1, "usage", 0)
            events += [
                correction(number, output_tokens=dice.randint(-2, 2))
                | {"request_id": f"req-{request}", "corrects": str(event_id_of(identity)), "usage_source": source}
                for source in dice.sample(sources, dice.randint(1, 2))
            ]
    events += dice.sample(events, 10)
    dice.shuffle(events)
    send(applier, connection, *events)
    Orphans(connection).release_all()
    assert_windows_are_their_events(connection)
    requests = connection.execute("select sum(requests)::int8 from usage.windows_1h").fetchone()
    assert requests == (12,)


def test_a_stranger_is_released_once_it_is_registered(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    from streams import tenants

    send(applier, connection, {"tenant_id": "tenant_2"})
    (held,) = quarantine.listing(connection)
    releaser = Releaser(connection)
    with pytest.raises(NotReleased, match="unknown_tenant"):
        releaser.release(held.quarantine_id, actor="ada")
    tenants.register(connection, [("tenant_2", "Two")], actor="ada")
    assert not releaser.release(held.quarantine_id, actor="ada").duplicate
    with pytest.raises(NotReleased, match="released already, by ada"):
        releaser.release(held.quarantine_id, actor="bob")
    assert quarantine.counts(connection) == {}
    assert [q.tenant_id for q in usage_store.rating_quantities(connection, *YEAR)] == ["tenant_2"]
    acts = connection.execute("select actor, subject from usage.audit_log where action = 'quarantine.released'")
    assert acts.fetchall() == [("ada", str(held.quarantine_id))]


def test_discarding_needs_a_reason_and_is_final(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    send(applier, connection, {"output_tokens": -1})
    (held,) = quarantine.listing(connection)
    releaser = Releaser(connection)
    with pytest.raises(NotReleased, match="reason"):
        releaser.discard(held.quarantine_id, actor="ada", reason=" ")
    releaser.discard(held.quarantine_id, actor="ada", reason="a test emitter")
    with pytest.raises(NotReleased, match="discarded already"):
        releaser.release(held.quarantine_id, actor="ada")
    (kept,) = quarantine.listing(connection, resolved=True)
    assert (kept.outcome, json.loads(whole(connection, kept))["output_tokens"]) == ("discarded", -1)


def test_a_rebuild_finds_and_mends_a_window_that_was_tampered_with(
    connection: psycopg.Connection, owner: psycopg.Connection, applier: ChunkApplier
) -> None:
    send(applier, connection, ENGINE, {"request_id": "r2"})
    connection.execute("update usage.windows_1h set output_tokens = output_tokens + 1")
    owner.execute("delete from usage.windows_1m")
    found = rebuild(connection, *YEAR, actor="ada")
    assert [(d.table, d.stored is None, d.events is None) for d in found.differences] == [
        ("windows_1m", True, False),
        ("windows_1h", False, False),
    ]
    rebuild(connection, *YEAR, actor="ada", apply=True)
    assert_windows_are_their_events(connection)
