"""Findings on a real database: found from what was applied, written once, healed when it is mended."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from console import findings_shown
from reconciliation.errors import FindingRefused
from reconciliation.findings import admissions, evidence, finding_store, taking_back
from reconciliation.findings.finding_store import StoredFinding, Written
from reconciliation.findings.look import AdmissionLog, Look, look
from reconciliation.numbers_received import numbers_received
from reconciliation.replay.material import Found
from streams import alerts, audit, tenants
from streams.completeness.completeness_check import CompletenessCheck
from streams.ingest.apply import ChunkApplier
from streams.ingest.replica_apply import ReplicaChunkApplier
from streams.rules.chunks import Record
from streams.settings import CompletenessSettings
from tests.builders import RECEIVED, REPLICA_SOURCE, event_json, make_chunk, make_report, numbered
from tests.integration.streams.conftest import applier, replica_applier

__all__ = ["applier", "replica_applier"]
NOW = datetime(2026, 11, 1, 12, 5, tzinfo=UTC)
SETTLED = timedelta(minutes=10)


def check(connection: psycopg.Connection) -> None:
    """What workers do each second; twice, since a number is looked at once it has settled."""
    checker = CompletenessCheck(connection, CompletenessSettings())
    now = connection.execute("select clock_timestamp()").fetchone()
    assert now is not None
    checker.run(now[0])
    checker.run(now[0] + SETTLED)


def looked(connection: psycopg.Connection, now: datetime = NOW) -> Look:
    return look(connection, RECEIVED - timedelta(days=2), RECEIVED + timedelta(days=1), now)


def kinds(connection: psycopg.Connection) -> list[str]:
    return sorted(stored.kind for stored in finding_store.listed(connection))


def heartbeat(position: int, last_seq: int, *totals: tuple[str, int, int, int], **more: object) -> Record:
    said = [
        {"tenant_id": tenant, "model": "llama", "events": events, "input_tokens": given, "output_tokens": made,
         "cache_hit_tokens": events * 4}
        for tenant, events, given, made in totals
    ]  # fmt: skip
    return make_report(position, "heartbeat", last_seq=last_seq, totals=said, **more)


def test_lost_events_are_found_once_sized_to_the_token_and_healed_when_they_come(
    connection: psycopg.Connection, applier: ChunkApplier, replica_applier: ReplicaChunkApplier
) -> None:
    replica_applier.apply(
        make_chunk(
            make_report(0, "boot", at=RECEIVED - timedelta(hours=3)),
            heartbeat(1, 2, ("tenant_1", 2, 20, 10), at=RECEIVED - timedelta(hours=2)),
            heartbeat(2, 5, ("tenant_1", 5, 50, 25)),
            source=REPLICA_SOURCE,
        )
    )
    applier.apply(make_chunk(numbered(0, 1), numbered(1, 2), numbered(2, 5)))
    check(connection)
    assert_a_killed_look_changes_nothing_and_the_next_writes_the_same(connection)
    (found,) = looked(connection).found
    assert (found.kind, found.events, found.tokens) == ("lost_events", (2, 2), (30, 30))
    assert found.begins == RECEIVED - timedelta(hours=2)
    assert found.tenants == ["tenant_1"]
    assert looked(connection, NOW + timedelta(hours=1)).written == Written((), (), ())
    (stored,) = finding_store.listed(connection)
    assert stored.state_no == 1, "written once, not again each hour"
    assert_a_boot_that_works_on_is_no_news(connection, applier, replica_applier)
    told = [alert for alert in alerts.undelivered(connection) if alert.kind == "finding.lost_events"]
    assert len(told) == 1
    (gate,) = numbers_received(connection, RECEIVED - timedelta(days=1), RECEIVED + timedelta(days=1))
    assert [each.key for each in gate.differences] == ["r1/b1/3-4"]
    # It lives on, and what it lost is of the time before the first heartbeat that knew of it
    (gate,) = numbers_received(connection, RECEIVED + timedelta(minutes=1), RECEIVED + timedelta(days=1))
    assert (gate.compared, gate.differences) == (1, ())

    applier.apply(make_chunk(numbered(5, 3), numbered(6, 4)))
    check(connection)
    healed = looked(connection).written.healed
    assert [each.finding_no for each in healed] == [stored.finding_no]
    assert finding_store.listed(connection) == []
    assert [state for _, state, _ in finding_store.history(connection, stored.finding_id)] == ["open", "healed"]
    (gate,) = numbers_received(connection, RECEIVED - timedelta(days=1), RECEIVED + timedelta(days=1))
    assert gate.agrees
    assert_what_is_settled_stays_while_the_boot_works_on(connection, applier, replica_applier)


def assert_a_boot_that_works_on_is_no_news(
    connection: psycopg.Connection, applier: ChunkApplier, replica_applier: ReplicaChunkApplier
) -> None:
    """Its heartbeats go on, and its events come before and after them; what was lost is lost, open or settled."""
    later = RECEIVED + timedelta(hours=1)
    replica_applier.apply(make_chunk(heartbeat(3, 6, ("tenant_1", 6, 60, 30), at=later), source=REPLICA_SOURCE))
    assert looked(connection).written == Written((), (), ()), "one is under way"
    applier.apply(make_chunk(numbered(3, 6), numbered(4, 7)))
    check(connection)
    assert looked(connection).written == Written((), (), ()), "one came before its heartbeat"


def assert_what_is_settled_stays_while_the_boot_works_on(
    connection: psycopg.Connection, applier: ChunkApplier, replica_applier: ReplicaChunkApplier
) -> None:
    def beat(position: int, made: int) -> None:
        at = RECEIVED + timedelta(hours=made)
        said = heartbeat(position, made, ("tenant_1", made, made * 10, made * 5), at=at)
        replica_applier.apply(make_chunk(said, source=REPLICA_SOURCE))

    applier.apply(make_chunk(numbered(7, 9)))
    beat(4, 9)
    check(connection)
    assert [(each.kind, each.events) for each in looked(connection).written.new] == [("lost_events", (1, 1))]
    (stored,) = finding_store.listed(connection)
    finding_store.settle(connection, stored, NOW, reason="credited", actor="ada")
    applier.apply(make_chunk(*(numbered(8 + at, 10 + at) for at in range(5))))
    check(connection)
    beat(5, 16)
    assert (looked(connection).written, finding_store.listed(connection)) == (Written((), (), ()), [])


class Killed(Exception):
    """What a kill does, as far as one process can do it to itself."""


def assert_a_killed_look_changes_nothing_and_the_next_writes_the_same(connection: psycopg.Connection) -> None:
    def written() -> list[object]:
        rows = connection.execute(
            "select to_jsonb(f) - 'finding_no', to_jsonb(s) from usage.findings as f join usage.finding_states as s"
            " using (finding_id) order by finding_id, state_no"
        ).fetchall()
        told = connection.execute("select to_jsonb(a) - 'alert_id' from usage.alerts as a order by detail").fetchall()
        return [*rows, *told]

    before = written()
    reached: dict[str, list[object]] = {}
    for step in ("looked", "written"):

        def kill(name: str, wanted: str = step) -> None:
            reached[name] = written()
            if name == wanted:
                raise Killed

        with pytest.raises(Killed):
            look(connection, RECEIVED - timedelta(days=2), RECEIVED + timedelta(days=1), NOW, checkpoint=kill)
        assert written() == before
    assert len(reached["written"]) > len(before)
    looked(connection)
    assert written() == reached["written"]


def test_numbers_that_were_left_out_are_told_from_lost_events(
    connection: psycopg.Connection, applier: ChunkApplier, replica_applier: ReplicaChunkApplier
) -> None:
    replica_applier.apply(make_chunk(heartbeat(0, 5, ("tenant_1", 3, 30, 15)), source=REPLICA_SOURCE))
    applier.apply(make_chunk(numbered(0, 1), numbered(1, 2), numbered(2, 5)))
    check(connection)
    looked(connection)
    assert kinds(connection) == ["gap_in_numbering"]


def test_a_second_shipper_with_ids_of_its_own_is_found(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    at = [f"2026-11-01T11:59:3{i}.123456Z" for i in range(6)]
    first = [numbered(i, i + 1, timestamp=at[i]) for i in range(6)]
    again = [
        Record(6 + i, b"tenant_1", event_json(request_id=f"again-{i}", timestamp=at[i]), RECEIVED) for i in range(6)
    ]
    applier.apply(make_chunk(*first, *again))
    found = {each.kind: each for each in looked(connection).found}
    assert found["duplicate_emitter"].events == (6, 6)
    assert found["duplicate_emitter"].subject == {"emitter": "unnumbered events", "of": "r1/b1"}
    assert "take back what it was counted for by corrections" in found["duplicate_emitter"].cause
    assert look(connection, NOW, NOW + timedelta(days=1), NOW).written.healed == (), "another time says nothing of it"
    stored = {each.kind: each for each in finding_store.listed(connection)}
    messages = taking_back.corrections(connection, stored["duplicate_emitter"])
    corrections = [Record(12 + i, b"tenant_1", each.message, RECEIVED) for i, each in enumerate(messages)]
    with pytest.raises(FindingRefused, match="is known of duplicate_emitter and overcounted alone"):
        taking_back.corrections(connection, replace(stored["duplicate_emitter"], kind="clock_skew"))
    applier.apply(make_chunk(*corrections[:3]))
    assert "duplicate_emitter" in kinds(connection)
    applier.apply(make_chunk(*corrections[3:]))
    assert [each.kind for each in looked(connection).written.healed] == ["duplicate_emitter"]
    (tokens,) = connection.execute("select sum(output_tokens)::int8 from usage.windows_1h").fetchall()
    assert tokens == (6 * 5,), "each request's tokens are counted once"


@pytest.mark.parametrize("digits", ["123", "123456"])
def test_a_second_shipper_that_stamps_milliseconds_is_found_where_it_doubles_most(
    connection: psycopg.Connection, applier: ChunkApplier, digits: str
) -> None:
    """Beside a shipper that stamps them, too, or finer. A few of many are chance, and so are equal requests."""
    sizes = [{"input_tokens": 10 + i, "output_tokens": 5 + i} for i in range(6)]
    first = [numbered(i, i + 1, timestamp=f"2026-11-01T11:59:3{i}.{digits}Z", **sizes[i]) for i in range(6)]
    again = [
        {"request_id": f"again-{i}", "timestamp": f"2026-11-01T11:59:3{i}.123Z"} | sizes[i] for i in range(6)
    ]  # fmt: skip
    equal = [event_json(request_id=f"e{i}", timestamp="2026-11-01T11:00:00.5Z", replica_id="r2") for i in range(9)]
    applier.apply(make_chunk(*first, *(Record(6 + i, b"k", each, RECEIVED) for i, each in enumerate(equal))))
    assert "duplicate_emitter" not in [each.kind for each in looked(connection).found]
    applier.apply(make_chunk(*(Record(15 + i, b"k", event_json(**each), RECEIVED) for i, each in enumerate(again))))
    found = {each.kind: each for each in looked(connection).found}["duplicate_emitter"]
    assert (found.subject, found.events) == ({"emitter": "unnumbered events", "of": "r1/b1"}, (6, 6))
    others = [
        numbered(21 + i, 7 + i, timestamp=f"2026-11-01T11:59:32.{600 + i}Z", request_id=f"o{i}") for i in range(8)
    ]  # fmt: skip
    applier.apply(make_chunk(*others))
    assert [each.kind for each in looked(connection).written.healed] == ["duplicate_emitter"], "not half of them"


def test_more_than_a_replica_reports_is_found(
    connection: psycopg.Connection, applier: ChunkApplier, replica_applier: ReplicaChunkApplier
) -> None:
    replica_applier.apply(make_chunk(heartbeat(0, 2, ("tenant_1", 2, 20, 10)), source=REPLICA_SOURCE))
    applier.apply(make_chunk(numbered(0, 1), numbered(1, 2), numbered(2, 2, request_id="again")))
    check(connection)
    (found,) = looked(connection).found
    assert (found.kind, found.events, found.tokens) == ("overcounted", (1, 1), (15, 15))
    assert looked(connection).written == Written((), (), ())
    (stored,) = finding_store.listed(connection)
    (back,) = taking_back.corrections(connection, stored)
    with pytest.raises(FindingRefused, match="are not as much"):
        taking_back.corrections(connection, replace(stored, size=replace(found, shares=()).size()))
    applier.apply(make_chunk(Record(3, b"tenant_1", back.message, RECEIVED)))
    assert [each.kind for each in looked(connection).written.healed] == ["overcounted"], "taken back"
    assert looked(connection).found == ()


def test_a_clock_two_hours_behind_is_found_and_a_backlog_is_not(
    connection: psycopg.Connection, applier: ChunkApplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    skewed = [numbered(i, i + 1, timestamp=f"2026-11-01T09:59:4{i}Z", boot="skewed") for i in range(6)]
    backlog = [numbered(6 + i, i + 1, timestamp=f"2026-11-01T1{i // 3}:0{i % 3}:00Z", boot="late") for i in range(6)]
    in_time = [numbered(12, 7, timestamp="2026-11-01T11:59:59Z", boot="late")]
    applier.apply(make_chunk(*skewed, *backlog, *in_time))
    found = [each for each in looked(connection).found if each.kind == "clock_skew"]
    assert [(each.subject["boot_id"], each.events) for each in found] == [("skewed", (6, 6))]
    assert_what_is_settled_is_told_again_only_where_it_is_more(connection, applier, monkeypatch)


def assert_what_is_settled_is_told_again_only_where_it_is_more(
    connection: psycopg.Connection, applier: ChunkApplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def skew() -> StoredFinding:
        (stored,) = finding_store.listed(connection, healed=True, kind="clock_skew")
        return stored

    with pytest.raises(FindingRefused, match="say why"):
        finding_store.settle(connection, skew(), NOW, reason=" ", actor="ada")
    finding_store.settle(connection, skew(), NOW, reason="billed in their hours as they are", actor="ada")
    with pytest.raises(FindingRefused, match="nothing is left to settle"):
        finding_store.settle(connection, skew(), NOW, reason="again", actor="ada")
    assert looked(connection).written == Written((), (), ())
    assert (skew().state, skew().occurrence, finding_store.listed(connection, kind="clock_skew")) == ("settled", 1, [])
    (told,) = audit.entries(connection, subject=str(skew().finding_no))
    assert (told.actor, told.action, told.detail["reason"]) == (
        "ada", "finding.settle", "billed in their hours as they are",
    )  # fmt: skip
    applier.apply(make_chunk(numbered(13, 7, timestamp="2026-11-01T09:59:50Z", boot="skewed")))
    assert [each.kind for each in looked(connection).written.changed] == ["clock_skew"]
    assert (skew().state, skew().size["events"]) == ("open", [7, 7])
    alerts_of_it = [each for each in alerts.undelivered(connection) if each.kind == "finding.clock_skew"]
    assert len(alerts_of_it) == 2
    assert_a_look_at_a_part_of_its_time_is_no_news(connection, monkeypatch)
    finding_store.settle(connection, skew(), NOW, reason="billed in their hours as they are", actor="ada")
    assert_a_look_at_a_part_of_its_time_is_no_news(connection, monkeypatch)
    applier.apply(make_chunk(numbered(14, 8, timestamp="2026-11-01T09:59:51Z", boot="skewed")))
    later = datetime(2026, 11, 1, 9, 59, 41, tzinfo=UTC)
    assert [each.kind for each in look(connection, later, NOW, NOW).written.changed] == ["clock_skew"]
    assert skew().size["events"] == [8, 8], "what goes on is told whole"


def assert_a_look_at_a_part_of_its_time_is_no_news(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that an hourly look covers moves on; whoever gives one himself may give less."""
    later, end = datetime(2026, 11, 1, 9, 59, 41, tzinfo=UTC), RECEIVED + timedelta(days=1)
    assert look(connection, later, end, NOW).written == Written((), (), ()), "it reaches back"
    with monkeypatch.context() as patched:
        patched.setattr("reconciliation.findings.look.FURTHEST", timedelta(0))
        assert look(connection, later, end, NOW).written == Written((), (), ()), "so far back no look reaches"
    assert look(connection, RECEIVED - timedelta(days=2), later + timedelta(seconds=8), NOW).written.changed == ()


def test_a_look_that_cannot_take_in_all_heals_nothing_of_that_kind(
    connection: psycopg.Connection, applier: ChunkApplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    skewed = [numbered(i, i + 1, timestamp=f"2026-11-01T09:59:4{i}Z", boot="skewed") for i in range(6)]
    applier.apply(make_chunk(*skewed))
    assert "clock_skew" in [each.kind for each in looked(connection).found]
    monkeypatch.setattr(evidence, "MOST_ROWS", 0)
    assert "clock_skew" not in [each.kind for each in looked(connection).found]
    assert "clock_skew" in kinds(connection)


def test_a_clock_ahead_is_found_by_what_was_refused(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    applier.apply(make_chunk(numbered(0, 1, timestamp="2026-11-01T14:00:00Z", boot="ahead")))
    found = [each for each in looked(connection).found if each.kind == "clock_skew"]
    assert [each.subject["boot_id"] for each in found] == ["ahead"]


def test_a_tenants_events_under_anothers_name_are_found(
    connection: psycopg.Connection, applier: ChunkApplier, replica_applier: ReplicaChunkApplier
) -> None:
    tenants.register(connection, [("tenant_2", "Two")], actor="test")
    replica_applier.apply(make_chunk(heartbeat(0, 2, ("tenant_1", 2, 20, 10)), source=REPLICA_SOURCE))
    applier.apply(make_chunk(numbered(0, 1), numbered(1, 2, tenant_id="tenant_2")))
    check(connection)
    (found,) = looked(connection).found
    assert (found.kind, found.subject["counted_as"], found.events) == ("wrong_tenant", "tenant_2", (1, 1))
    assert [each.kind for each in looked(connection).written.new] == []
    applier.apply(make_chunk(numbered(2, 3, timestamp="2026-11-01T12:00:01Z")))
    assert looked(connection).written == Written((), (), ()), "it works on, and that heals nothing"
    assert_found_of_boots_that_are_never_idle(connection, applier, replica_applier)


def assert_found_of_boots_that_are_never_idle(
    connection: psycopg.Connection, applier: ChunkApplier, replica_applier: ReplicaChunkApplier
) -> None:
    """At their last heartbeat, whatever has come of them since; as long as all of that can be told apart from it."""
    boots = ("swapped", "doubled", "right", "old", "silent")
    stated = [heartbeat(at, 2, ("tenant_1", 2, 20, 10), boot=boot) for at, boot in enumerate(boots, start=1)]
    told_less = heartbeat(6, 3, ("tenant_1", 2, 20, 10), boot="left out")
    replica_applier.apply(make_chunk(*stated, told_less, source=REPLICA_SOURCE))
    events = [numbered(10 + at, 1, boot=boot) for at, boot in enumerate((*boots[:4], "left out"))]
    events += [numbered(20 + at, 2, boot=boot) for at, boot in enumerate(boots[1:4])]
    later = {"timestamp": "2026-11-01T12:00:01Z"}
    # Another tenant's 2, and a 3 that makes up for it; a 2 that came twice; a 3 of before the heartbeat; none at all
    events += [
        numbered(30, 2, boot="swapped", tenant_id="tenant_2"),
        numbered(31, 2, boot="doubled", request_id="more"),
    ]
    events += [numbered(40 + at, 3, boot=boot, **later) for at, boot in enumerate(boots[:3])]
    events += [numbered(50, 3, boot="old"), numbered(51, 2, boot="old", request_id="old")]
    events += [numbered(52, at, boot="left out", request_id=f"left-{at}", **later) for at in (2, 3, 4)]
    applier.apply(make_chunk(*(event._replace(position=3 + at) for at, event in enumerate(events))))
    check(connection)
    found = {each.subject["boot_id"]: each for each in looked(connection).written.new if each.kind != "lost_events"}
    assert {boot: (each.kind, each.events, each.tenants) for boot, each in found.items()} == {
        "swapped": ("wrong_tenant", (1, 1), ["tenant_1"]), "doubled": ("overcounted", (1, 1), ["tenant_1"]),
    }  # fmt: skip
    assert looked(connection).written == Written((), (), ())


def test_one_attempt_number_for_two_dispatches_is_found_and_told_from_a_copy(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    """Two engines end apart, and mostly answer differently; whoever copies a spool changes neither."""
    first = [numbered(at, at + 1, request_id=f"q{at}") for at in range(4)]
    elsewhere = {"replica": "r2", "boot": "b9"}
    later = "2026-11-01T10:00:31Z"
    again = [
        numbered(4, 1, request_id="q0", timestamp=later, output_tokens=6, **elsewhere),
        numbered(5, 2, request_id="q1", timestamp=later, **elsewhere),
        numbered(6, 3, request_id="q2", **elsewhere),
        numbered(7, 5, request_id="q3", output_tokens=9),
    ]
    applier.apply(make_chunk(*first, *again))
    found = {each.kind: each for each in looked(connection).found}
    assert found.keys() == {"double_attempt", "duplicate_emitter"}
    assert (found["double_attempt"].subject, found["double_attempt"].events) == ({"replica_id": "r2"}, (2, 2))
    copied = found["duplicate_emitter"]
    assert (copied.subject["emitter"], copied.subject["of"], copied.events) == ("r2/b9", "r1/b1", (1, 1))
    later_look = look(connection, NOW, NOW + timedelta(days=1), NOW).written
    assert later_look == Written((), (), ()), "the quarantine is looked at whole"


def test_a_replica_that_never_reported_is_found(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    applier.apply(make_chunk(numbered(0, 1)))
    check(connection)
    (found,) = looked(connection).found
    assert (found.kind, found.subject["replica_id"]) == ("unregistered_replica", "r1")


@pytest.mark.parametrize("table", ["findings", "finding_states"])
def test_findings_are_facts(
    connection: psycopg.Connection, owner: psycopg.Connection, applier: ChunkApplier, table: str
) -> None:
    applier.apply(make_chunk(numbered(0, 1)))
    check(connection)
    looked(connection)
    for statement in (f"update usage.{table} set finding_id = finding_id", f"truncate usage.{table} cascade"):
        with pytest.raises(psycopg.Error, match="append-only"):
            owner.execute(statement)  # type: ignore[call-overload]


def test_a_gateways_log_is_a_witness_from_outside(
    connection: psycopg.Connection, applier: ChunkApplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants.register(connection, [("tenant_2", "Two")], actor="test")
    held = event_json(request_id="q7", timestamp="2026-11-01T14:00:00Z")
    counted = [*(event_json(request_id=f"q{at}") for at in range(3)), held]
    applier.apply(make_chunk(*(Record(at, b"k", event, RECEIVED) for at, event in enumerate(counted))))
    seen = [event_json(request_id="q0"), event_json(request_id="q1", tenant_id="tenant_2"), event_json(request_id="q9")]
    monkeypatch.setattr(admissions, "BATCH", 1)

    def by_the_log(name: str, lines: list[bytes], now: datetime = NOW) -> Look:
        log = AdmissionLog(name, iter([Found(f"line {at}", line) for at, line in enumerate(lines)]))
        begin, end = RECEIVED - timedelta(days=2), RECEIVED + timedelta(days=1)
        return look(connection, begin, end, now, admitted=log)

    assert by_the_log("gateway", seen, NOW - timedelta(hours=2)).found == (), "their events may be on the way"
    found = by_the_log("gateway", [*seen, seen[2], event_json(request_id="q7")])
    assert "admission log" in found.witnesses
    assert {each.kind: (each.tenants, each.events) for each in found.found} == {
        "wrong_tenant": (["tenant_2"], (1, 1)), "unmetered_requests": (["tenant_1"], (1, 1))
    }, "a line that is there twice is one request, and the quarantine says where q7 is"  # fmt: skip
    assert_they_are_told_by_hour(connection, found)
    rotated = [event_json(request_id="q0", timestamp="2026-11-01T11:00:30Z")]
    assert by_the_log("gateway", rotated).written.healed == (), "it does not reach back to them any more"
    assert looked(connection).written.healed == by_the_log("another", []).written.healed == ()
    agreeing = by_the_log("gateway", [*counted[:3], seen[0]])
    assert len(agreeing.written.healed) == 2
    assert agreeing.by_hour is not None
    assert [hour.agrees for hour in agreeing.by_hour.hours] == [True]


def assert_they_are_told_by_hour(connection: psycopg.Connection, found: Look) -> None:
    """By tenant, model and hour: what the log has, what is counted, what only one of them has."""
    at = datetime(2026, 11, 1, 10, tzinfo=UTC)
    assert found.by_hour is not None
    assert (found.by_hour.begin, found.by_hour.end) == (at, at + timedelta(hours=1))
    assert [(hour[:5], hour.missing, hour.beyond) for hour in found.by_hour.hours] == [
        (("tenant_1", "llama", at, (3, 30, 15), (3, 30, 15)), 2, 2),
        (("tenant_2", "llama", at, (1, 10, 5), (0, 0, 0)), 1, 0),
    ]
    assert found.by_hour.differing == list(found.by_hour.hours), "as many, and not the same ones"
    stored = {each.kind: each for each in finding_store.listed(connection)}["unmetered_requests"]
    assert stored.size["hours"] == [
        {"tenant_id": "tenant_1", "model": "llama", "hour": at.isoformat(), "events": 1, "tokens": 15}
    ]
    findings_shown.whole(stored, [], as_json=False)
    findings_shown.hours(found.by_hour)
