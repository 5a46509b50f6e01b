"""What expires: too late, forgotten, and still counted once."""

from __future__ import annotations

import hashlib
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from streams.completeness import number_store
from streams.completeness.completeness_check import CompletenessCheck
from streams.database import connect
from streams.errors import NotReleased, UnknownBoot
from streams.ingest import log_proof, passed_positions, positions
from streams.ingest.apply import ChunkApplier
from streams.ingest.positions import register as register_source
from streams.ingest.release import Releaser
from streams.ingest.replica_apply import ReplicaChunkApplier
from streams.retention import hypertables, retention_store
from streams.retention.expiry import Forgotten, Retention
from streams.rules import ingest_rules
from streams.rules.chunks import Chunk, Record
from streams.rules.horizon import identified_at
from streams.settings import CompletenessSettings, RetentionSettings
from streams.usage import quarantine
from tests.builders import REPLICA_SOURCE, SOURCE, event_json, make_report, numbered, uuid_v7

OCTOBER = datetime(2026, 10, 1, tzinfo=UTC)
NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def at(position: int, completed: datetime, appended: datetime, **changed: Any) -> Record:
    """An event with its completion, and when the broker got it."""
    named = {"request_id": f"req-{position}", "timestamp": completed.isoformat()} | changed
    return Record(position, b"tenant_1", event_json(**named), appended)


def apply(applier: ChunkApplier, *records: Record) -> tuple[int, int, int]:
    """Applied, duplicates, quarantined."""
    done = applier.apply(Chunk(SOURCE, records))
    return done.applied, done.duplicates, done.quarantined


def retain(connection: psycopg.Connection, now: datetime) -> Forgotten:
    """Steps until nothing is left."""
    retention, total = Retention(connection, RetentionSettings()), Forgotten(more=True)
    while total.more:
        step = retention.step(now, at_once=True)
        assert step is not None
        total += step
    return total


def known(connection: psycopg.Connection, *request_ids: str) -> list[str]:
    """Those of some request ids whose identity is not forgotten."""
    rows = connection.execute(
        "select id from unnest(%s::text[]) with ordinality as given (id, at) join usage.event_identities"
        " on key = usage.identity_key('tenant_1', id, 1, 'usage', 0) order by at",
        (list(request_ids),),
    )
    return [row[0] for row in rows]


def test_nothing_is_too_old_while_no_period_is_closed(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    assert apply(applier, at(0, OCTOBER, OCTOBER + 300 * DAY)) == (1, 0, 0)
    done = retain(connection, OCTOBER + 300 * DAY)
    assert (done.before, done.identities, done.boots) == (None, 0, 0)
    assert known(connection, "req-0") == ["req-0"]


def test_proofs_of_chunks_are_folded_once_their_period_is_closed(
    connection: psycopg.Connection, owner: psycopg.Connection, applier: ChunkApplier
) -> None:
    tomorrow = datetime.now(UTC) + DAY
    for position in range(0, 6, 2):
        apply(applier, at(position, NOVEMBER, NOVEMBER), Record(position + 1, b"", b"{torn", NOVEMBER))
    proofs = connection.execute(
        "select first_position, next_position, content_digest from usage.applied_chunks order by 1"
    ).fetchall()
    told = (passed_positions.runs(connection), passed_positions.counted_outcomes(connection))
    assert retain(connection, tomorrow).chunks == 0
    with pytest.raises(psycopg.errors.DatabaseError, match="append-only"):
        owner.execute("delete from usage.applied_chunks where first_position = 0")
    retention_store.set_closed_before(connection, tomorrow, actor="ada")
    with pytest.raises(psycopg.errors.DatabaseError, match="are not what its chunks come to"):
        connection.execute(
            "insert into usage.applied_ranges (source, first_position, next_position, chunks, applied, duplicates,"
            " retimed, quarantined, late, digest, first_applied_at, last_applied_at)"
            " select source, 0, 6, f.chunks, f.applied + 1, f.duplicates, f.retimed, f.quarantined - 1, f.late,"
            " f.digest, f.first_applied_at, f.last_applied_at from usage.sources, usage.fold_of(source, 0, 6) as f"
        )
    assert Retention(connection, RetentionSettings()).preview(tomorrow).chunks == 3
    assert retain(connection, tomorrow).chunks == 3
    assert connection.execute("select count(*) from usage.applied_chunks").fetchone() == (0,)
    assert (passed_positions.runs(connection), passed_positions.counted_outcomes(connection)) == told
    digests = b"".join(struct.pack(">qq", first, after) + digest for first, after, digest in proofs)
    (folded,) = connection.execute("select chunks, applied, quarantined, digest from usage.applied_ranges").fetchall()
    assert folded == (3, 3, 3, hashlib.sha256(digests).digest())
    apply(applier, at(6, NOVEMBER, NOVEMBER))
    assert retain(connection, tomorrow).chunks == 0
    apply(applier, at(7, NOVEMBER, NOVEMBER))
    assert retain(connection, tomorrow).chunks == 2
    assert passed_positions.runs(connection) == [(SOURCE.name, 0, 8, 8)]


def test_chunks_of_the_open_period_are_folded_with_their_proofs_once_they_are_hours_old_but_a_sources_last_one(
    connection: psycopg.Connection, owner: psycopg.Connection
) -> None:
    """What reads outcomes reads few rows; each chunk's digest is still there, until the period is closed."""
    register_source(owner, SOURCE, "usage")
    owner.execute("update usage.sources set ingest_no = 2, next_position = 300")
    owner.execute(
        "insert into usage.applied_chunks (source, first_position, next_position, applied, duplicates, retimed,"
        " quarantined, late, content_digest, applied_at) select %s, n, n + 1, 1, 0, 0, 0, 0, sha256(n::text::bytea),"
        " now() - case when n < 298 or n = 299 then interval '3 hours' else interval '59 minutes' end"
        " from generate_series(0, 299) as n",
        (SOURCE.name,),
    )
    told = (passed_positions.runs(connection), passed_positions.counted_outcomes(connection))
    for kept in ("first_position = 299", "first_position = 298", "first_position = 0"):
        with pytest.raises(psycopg.errors.DatabaseError, match="append-only"):
            owner.execute(f"delete from usage.applied_chunks where {kept}")
    assert Retention(connection, RetentionSettings()).preview(NOVEMBER).chunks == 298
    assert retain(connection, NOVEMBER).chunks == 298
    assert (passed_positions.runs(connection), passed_positions.counted_outcomes(connection)) == told
    left = connection.execute("select array_agg(first_position order by 1) from usage.applied_chunks").fetchone()
    assert left == ([298, 299],)
    ((first, after, proofs),) = connection.execute(
        "select first_position, next_position, proofs from usage.applied_ranges"
    )
    assert (first, after) == (0, 298)
    assert proofs == b"".join(struct.pack(">q", n + 1) + hashlib.sha256(b"%d" % n).digest() for n in range(298))
    proven = [log_proof.Proof(n, n + 1, hashlib.sha256(b"%d" % n).digest()) for n in reversed(range(300))]
    assert list(log_proof.backwards(connection, SOURCE.name)) == proven
    for change in ("proofs = null", "proofs = ''", "applied = 1"):
        with pytest.raises(psycopg.errors.DatabaseError, match="append-only"):
            owner.execute(f"update usage.applied_ranges set {change}")

    retention_store.set_closed_before(connection, datetime.now(UTC) + DAY, actor="ada")
    assert retain(connection, NOVEMBER).chunks == 2
    ranges = connection.execute("select first_position, next_position, proofs from usage.applied_ranges order by 1")
    assert ranges.fetchall() == [(0, 298, None), (298, 300, None)]
    assert list(log_proof.backwards(connection, SOURCE.name)) == []
    assert (passed_positions.runs(connection), passed_positions.counted_outcomes(connection)) == told


def test_chunks_on_two_sides_of_a_gap_are_not_folded_together(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    """Over positions that the log has proved empty they are; one that stands alone is left, and not looked at again."""
    for position in (0, 1, 2, 5, 6, 9, 12, 13):
        connection.execute("update usage.sources set next_position = %s", (position,))
        apply(applier, at(position, NOVEMBER, NOVEMBER))
    assert positions.pass_over_nothing(connection, SOURCE, 14, 16)
    assert not positions.pass_over_nothing(connection, SOURCE, 14, 16)
    assert applier.apply(Chunk(SOURCE, [at(17, NOVEMBER, NOVEMBER)], empty=[(16, 17)])).empty == 1
    retention_store.set_closed_before(connection, datetime.now(UTC) + DAY, actor="ada")
    assert retain(connection, datetime.now(UTC)).chunks == 9
    ranges = "select first_position, next_position, applied, empty from usage.applied_ranges order by 1"
    folded = [(0, 3, 3, 0), (5, 7, 2, 0), (12, 18, 3, 3)]
    assert connection.execute(ranges).fetchall() == folded
    for position in (18, 19):
        apply(applier, at(position, NOVEMBER, NOVEMBER))
    assert retention_store.fold_chunks(connection, 2) == 2, "the one that is left takes no part of what may be folded"
    assert connection.execute(ranges).fetchall() == [*folded, (18, 20, 2, 0)]


def test_an_event_from_before_the_horizon_waits_in_quarantine_and_cannot_be_released(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    retention_store.set_closed_before(connection, NOVEMBER, actor="ada")
    minted_early = uuid_v7(OCTOBER)
    assert apply(
        applier,
        at(0, OCTOBER, OCTOBER + 46 * DAY),
        at(1, OCTOBER, OCTOBER + 44 * DAY),
        at(2, OCTOBER + 20 * DAY, OCTOBER + 46 * DAY, request_id=minted_early),
        at(3, NOVEMBER, NOVEMBER + 300 * DAY),
    ) == (2, 0, 2)
    held = quarantine.listing(connection)
    assert [(h.position, h.reason) for h in held] == [(2, "too_old"), (0, "too_old")]
    with pytest.raises(NotReleased, match="too_old"):
        Releaser(connection).release(held[0].quarantine_id, actor="ada")
    Releaser(connection).discard(held[0].quarantine_id, actor="ada", reason="too late")


def test_identities_are_forgotten_by_age_and_what_was_forgotten_never_counts_again(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    connection.execute("select usage.add_identity_weeks('2026-10-01', '2026-10-01')")
    young = uuid_v7(NOVEMBER + 30 * DAY)
    old = uuid_v7(OCTOBER)
    sent = [
        at(0, OCTOBER, OCTOBER),
        at(1, OCTOBER, OCTOBER, request_id=old),
        at(2, OCTOBER, NOVEMBER, request_id=young),
        at(3, NOVEMBER + 20 * DAY, NOVEMBER + 20 * DAY),
    ]
    assert apply(applier, *sent) == (4, 0, 0)
    retention_store.set_closed_before(connection, NOVEMBER, actor="ada")
    now = NOVEMBER + 40 * DAY
    preview = Retention(connection, RetentionSettings()).preview(now)
    assert (preview.identities, preview.before) == (1, now - 45 * DAY - timedelta(minutes=5))
    ids = ("req-0", old, young, "req-3")
    assert known(connection, *ids) == list(ids)
    done = retain(connection, now)
    assert (done.identities, done.weeks) == (1, preview.weeks)
    assert done.weeks >= 1
    assert known(connection, *ids) == [young, "req-3"]
    # Read again, from a log that says it got them back then: refused or known, none counts a second time.
    again = [record._replace(position=record.position + 4) for record in sent]
    assert apply(applier, *again) == (0, 2, 2)
    assert quarantine.counts(connection) == {"too_old": 2}


@pytest.mark.parametrize("first", ["gateway", "engine"])
@pytest.mark.parametrize("retimed", [False, True])
def test_an_identity_is_as_young_as_the_latest_time_that_it_came_with(
    connection: psycopg.Connection, applier: ChunkApplier, first: str, retimed: bool
) -> None:
    """No UUIDv7: a stronger source, or a resend, told a later completion, and may be sent again with that."""
    other = "engine" if retimed or first == "gateway" else "gateway"
    later = {"request_id": "req-0", "usage_source": first if retimed else other, "timestamp": NOVEMBER.isoformat()}
    sent = [at(0, OCTOBER, OCTOBER, usage_source=first), at(1, NOVEMBER, NOVEMBER, **later)]
    assert sum(apply(applier, *sent)) == 2
    retention_store.set_closed_before(connection, NOVEMBER + 10 * DAY, actor="ada")
    done = retain(connection, NOVEMBER + 30 * DAY)  # 1 October is behind the horizon, 1 November is not
    assert done.before is not None
    assert OCTOBER < done.before < NOVEMBER
    assert (done.identities, known(connection, "req-0")) == (0, ["req-0"])
    rows = connection.execute("select sum(requests)::int8 from usage.windows_1h").fetchone()
    again = at(2, NOVEMBER, NOVEMBER + 30 * DAY, **later)
    assert apply(applier, again)[0] == 0
    assert connection.execute("select sum(requests)::int8 from usage.windows_1h").fetchone() == rows
    done = retain(connection, NOVEMBER + 60 * DAY)
    assert known(connection, "req-0") == []
    left = "select (select count(*) from usage.event_versions), (select count(*) from usage.identity_ages)"
    assert connection.execute(left).fetchone() == (0, 0)


def test_an_identity_cannot_be_deleted_before_its_time(
    connection: psycopg.Connection, applier: ChunkApplier, own_database_url: str
) -> None:
    apply(applier, at(0, OCTOBER, OCTOBER), at(1, NOVEMBER, NOVEMBER))
    with pytest.raises(psycopg.Error, match="not closed"):
        retention_store.move_forgotten(connection, OCTOBER + DAY)
    retention_store.set_closed_before(connection, OCTOBER + DAY, actor="ada")
    with pytest.raises(psycopg.Error, match="not closed"):
        retention_store.move_forgotten(connection, OCTOBER + 2 * DAY)
    retention_store.move_forgotten(connection, OCTOBER + DAY)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("delete from usage.event_identities")
    with pytest.raises(psycopg.Error, match="only moves forward"):
        connection.execute("update usage.ingest_rules set forgotten_before = null")
    with connect(own_database_url, as_login=True) as owner:
        for table in ("event_identities", "event_identities_other"):
            with pytest.raises(psycopg.Error, match="forgotten by its age"):
                owner.execute(f"delete from usage.{table}")
        owner.execute(
            "delete from usage.event_identities where key = usage.identity_key('tenant_1', 'req-0', 1, 'usage', 0)"
        )
    assert known(connection, "req-0", "req-1") == ["req-1"]


def test_the_database_and_the_program_agree_on_an_identitys_age(connection: psycopg.Connection) -> None:
    ids = [
        uuid_v7(OCTOBER), uuid_v7(OCTOBER).upper(), "req-1", "ffffffff-ffff-7fff-8fff-ffffffffffff",
        "f47ac10b-58cc-4372-a567-0e02b2c3d479", uuid_v7(OCTOBER).replace("-", ""), uuid_v7(NOVEMBER)[:-1] + "g",
        "00000000-0000-7000-8000-000000000000", uuid_v7(OCTOBER) + "0",
    ]  # fmt: skip
    for request_id in ids:
        row = connection.execute(
            "select usage.identified_at(usage.identity_key('t', %s, 1, 'usage', 0), %s)", (request_id, NOVEMBER)
        ).fetchone()
        assert row == (identified_at(request_id, NOVEMBER),), request_id


def test_a_sweep_goes_on_where_the_last_step_ended(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    apply(applier, *(at(i, OCTOBER, OCTOBER) for i in range(500)))
    retention_store.set_closed_before(connection, NOVEMBER, actor="ada")
    retention_store.move_forgotten(connection, NOVEMBER)
    blocks = retention_store.blocks_of(connection, "event_identities_other")
    assert blocks > 2
    assert retention_store.sweep_is_due(connection, "event_identities_other", NOVEMBER, DAY)
    steps = [retention_store.sweep(connection, "event_identities_other", 1) for _ in range(blocks)]
    assert [step.done for step in steps] == [False] * (blocks - 1) + [True]
    assert sum(step.forgotten for step in steps) == 500
    assert not retention_store.sweep_is_due(connection, "event_identities_other", NOVEMBER + DAY / 2, DAY)


def test_the_feed_for_quotas_is_dropped_by_age(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    """In chunks that are few while it is kept: its readers ask for its end by its number, of each of them."""
    apply(applier, at(0, OCTOBER, OCTOBER))
    now = datetime.now(UTC)
    assert RetentionSettings().feed_kept / hypertables.intervals(connection)["quota_feed"] <= 12
    assert retain(connection, now + 2 * DAY).feed_chunks == 0
    assert retain(connection, now + 4 * DAY).feed_chunks == 1
    assert connection.execute("select count(*) from usage.quota_feed").fetchone() == (0,)


def test_a_boot_that_ended_long_ago_leaves_one_row_and_its_stragglers_open_no_gap(
    connection: psycopg.Connection, applier: ChunkApplier, replica_applier: ReplicaChunkApplier
) -> None:
    said = {"appended_at": OCTOBER}
    applier.apply(Chunk(SOURCE, [numbered(i, i + 1, timestamp=OCTOBER.isoformat()) for i in range(3)]))
    replica_applier.apply(
        Chunk(REPLICA_SOURCE, [make_report(0, "farewell", at=OCTOBER, last_seq=3)._replace(**said),
                               make_report(1, "heartbeat", at=OCTOBER, boot="b2", last_seq=5)._replace(**said)])
    )  # fmt: skip
    check = CompletenessCheck(connection, CompletenessSettings(settle=timedelta(0)))
    check.run()
    retention_store.set_closed_before(connection, NOVEMBER + 30 * DAY, actor="ada")
    assert retain(connection, NOVEMBER + 60 * DAY).boots == 1  # b2 said no farewell: a person has to
    assert connection.execute("select boot_id, received_through, events from usage.ended_boots").fetchall() == [
        ("b1", 3, 3)
    ]
    for table in ("boots", "boot_numbers", "replica_usage", "received_numbers"):
        assert connection.execute(f"select count(*) from usage.{table} where boot_id = 'b1'").fetchone() == (0,)
    late = NOVEMBER + 60 * DAY
    applier.apply(Chunk(SOURCE, [numbered(3, 3, timestamp=OCTOBER.isoformat())._replace(appended_at=late)]))
    replica_applier.apply(Chunk(REPLICA_SOURCE, [make_report(2, "farewell", at=OCTOBER, last_seq=3)]))
    check.run()
    check.run()
    assert connection.execute("select count(*) from usage.gaps where boot_id = 'b1'").fetchone() == (0,)
    with pytest.raises(UnknownBoot, match="its numbers were let go of"):
        number_store.missing_numbers(connection, ("r1", "b1"))
    assert connection.execute("select count(*) from usage.boots where boot_id = 'b1'").fetchone() == (0,)


def test_the_horizons_length_is_the_same_for_all_workers(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    retention_store.set_closed_before(connection, NOVEMBER, actor="ada")
    Retention(connection, RetentionSettings(horizon=60 * DAY)).step(NOVEMBER)
    assert ingest_rules.horizon(connection).length == 60 * DAY
    Retention(connection, RetentionSettings()).step(NOVEMBER)  # a worker that was told nothing of it
    assert ingest_rules.horizon(connection).length == 60 * DAY
    assert apply(applier, at(0, OCTOBER, OCTOBER + 59 * DAY), at(1, OCTOBER, OCTOBER + 61 * DAY)) == (1, 0, 1)
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("update usage.ingest_rules set horizon = '44 days'")
