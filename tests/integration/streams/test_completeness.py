"""Numbers, gaps, boots, alerts and "complete to" on a real database: what chunks bring, and what the check finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import psycopg
import pytest

from serving_adapter.identity import Identity, event_id_of
from streams import tenants
from streams.alerts import Alert
from streams.completeness import completeness_store, engine_store, number_sets, number_store
from streams.completeness.complete_to import Boot
from streams.completeness.completeness_check import PORTIONS_A_RUN, CompletenessCheck, deliver_alerts
from streams.database import connect
from streams.errors import PositionGap, SourceChanged, UnknownBoot
from streams.http import access_keys
from streams.ingest import passed_positions
from streams.ingest.apply import ChunkApplier
from streams.ingest.replica_apply import ReplicaChunkApplier
from streams.rules.chunks import Record
from streams.settings import CompletenessSettings
from streams.usage import quarantine
from tests.builders import RECEIVED, REPLICA_SOURCE, make_chunk, make_record, make_report, numbered, report_json
from tests.integration.streams.conftest import whole

AT_ONCE = CompletenessSettings(timedelta(0), timedelta(seconds=60), timedelta(seconds=30))
R1 = ("r1", "b1")


def total_of(events: int) -> dict[str, object]:
    """A heartbeat's total for so many of the builders' events."""
    counts = {"input_tokens": 10 * events, "output_tokens": 5 * events, "cache_hit_tokens": 4 * events}
    return {"tenant_id": "tenant_1", "model": "llama", "events": events} | counts


def after(seconds: float) -> datetime:
    return RECEIVED + timedelta(seconds=seconds)


class Line:
    """Usage and reports sent one after the other, and checks in between, at times the test says."""

    def __init__(
        self,
        connection: psycopg.Connection,
        usage: ChunkApplier,
        reports: ReplicaChunkApplier,
        check: CompletenessCheck,
    ) -> None:
        self.connection = connection
        self.usage = usage
        self.reports = reports
        self.checker = check
        self._usage_at = self._reports_at = 0

    def events(self, *seqs: int, replica: str = "r1", boot: str = "b1", **changed: object) -> None:
        """Apply events with these numbers as one chunk."""
        records = [
            numbered(self._usage_at + i, seq, replica=replica, boot=boot, **changed) for i, seq in enumerate(seqs)
        ]
        self.records(*records)

    def records(self, *records: Record) -> None:
        self.usage.apply(make_chunk(*records))
        self._usage_at += len(records)

    def report(self, kind: str, at: float, **more: object) -> None:
        """Apply one report, sent at this second."""
        record = make_report(self._reports_at, kind, at=after(at), **more)
        self.reports.apply(make_chunk(record, source=REPLICA_SOURCE))
        self._reports_at += 1

    def check(self, at: float) -> None:
        assert self.checker.run(after(at))

    @property
    def gaps(self) -> list[tuple[int, int, int]]:
        """The open gaps of r1's first boot: first, last, missing."""
        return [(g.first_number, g.last_number, g.missing) for g in completeness_store.open_gaps(self.connection)]

    @property
    def alerts(self) -> list[tuple[str, str]]:
        """Kind and key of what was raised."""
        return self.connection.execute("select kind, key from usage.alerts order by raised_at, kind, key").fetchall()

    @property
    def complete_to(self) -> datetime | None:
        return completeness_store.complete_to_overall(self.connection).complete_to


@pytest.fixture
def line(connection: psycopg.Connection, applier: ChunkApplier, replica_applier: ReplicaChunkApplier) -> Line:
    return Line(connection, applier, replica_applier, CompletenessCheck(connection, AT_ONCE))


@pytest.fixture
def second_check(own_database_url: str) -> Iterator[CompletenessCheck]:
    """Another worker's check."""
    with connect(own_database_url) as other:
        yield CompletenessCheck(other, AT_ONCE)


def test_a_missing_number_is_a_gap_and_a_late_event_closes_it(line: Line) -> None:
    line.events(1, 2, 5)
    line.check(0)
    assert line.gaps == [(3, 4, 2)]
    line.events(4)
    line.check(1)
    assert line.gaps == [(3, 4, 1)]
    line.events(3)
    line.check(2)
    assert line.gaps == []
    closed = line.connection.execute("select first_number, since, closed_at from usage.gaps").fetchall()
    assert closed == [(3, after(0), after(2))]


def test_numbers_that_are_all_here_are_kept_as_one_number(line: Line) -> None:
    line.events(3, 1)
    line.events(2, 5, 4, 4)
    line.check(0)
    assert line.connection.execute("select received_through, highest from usage.boot_numbers").fetchall() == [(5, 5)]
    for table in ("received_numbers", "number_fills", "replica_usage_fills", "gaps"):
        assert line.connection.execute(f"select count(*) from usage.{table}").fetchone() == (0,)


def test_a_backlog_is_folded_in_bounded_portions_and_gaps_are_named_at_its_end(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halfway through, numbers that are only not folded yet are no gap."""
    fold, portions = number_store.fold, []

    def small(connection: psycopg.Connection, now: datetime) -> bool:
        done = fold(connection, now, most=10)
        left = connection.execute("select coalesce(sum(cardinality(numbers)), 0)::int8 from usage.number_fills")
        portions.append((left.fetchone() or (None,))[0])
        return done

    monkeypatch.setattr(number_store, "fold", small)
    with line.connection.cursor() as cursor:
        fills = [("r1", "b1", list(range(n, n + 5))) for n in (36, 21, 11, 6, 1, 31, 26)]  # 16…20 never came
        cursor.executemany("insert into usage.number_fills values (%s, %s, %s)", fills)
    line.check(0)
    assert portions == [25, 15, 5, 0]
    assert line.gaps == [(16, 20, 5)]


def test_what_one_run_does_not_fold_is_left_for_the_next(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    fold = number_store.fold
    monkeypatch.setattr(number_store, "fold", lambda connection, now: fold(connection, now, most=1))
    with line.connection.cursor() as cursor:
        fills = [("r1", "b1", [n]) for n in range(1, PORTIONS_A_RUN + 5)]
        cursor.executemany("insert into usage.number_fills values (%s, %s, %s)", fills)
    line.check(0)
    assert line.connection.execute("select count(*) from usage.number_fills").fetchone() == (4,)
    line.check(1)
    assert line.connection.execute("select received_through from usage.boot_numbers").fetchall() == [
        (PORTIONS_A_RUN + 4,)
    ]


def test_numbers_far_beyond_a_gap_join_over_segments_once_it_closes(line: Line) -> None:
    sent = 40_000
    assert sent > 2 * number_sets.SEGMENT
    fills = [("r1", "b1", list(range(2, sent + 1)))]
    with line.connection.cursor() as cursor:
        cursor.executemany("insert into usage.number_fills values (%s, %s, %s)", fills)
    line.check(0)
    assert line.gaps == [(1, 1, 1)]
    rows = line.connection.execute("select bit_count(numbers) from usage.received_numbers order by segment").fetchall()
    assert rows == [(8191,), (8192,), (8192,), (8192,), (sent - 4 * 8192,)]
    line.events(1)
    line.check(1)
    assert line.connection.execute("select received_through from usage.boot_numbers").fetchone() == (sent,)
    assert line.connection.execute("select count(*) from usage.received_numbers").fetchone() == (0,)


def test_a_heartbeat_names_what_no_later_event_shows(line: Line) -> None:
    line.events(1)
    line.report("heartbeat", 1, last_seq=3)
    line.check(1)
    assert line.gaps == [(2, 3, 2)]


def test_numbers_settle_before_they_are_named(line: Line) -> None:
    line.checker.settings = CompletenessSettings(settle=timedelta(seconds=5))
    line.events(2)
    line.check(0)
    line.check(4)
    assert line.gaps == []
    line.check(5)
    assert line.gaps == [(1, 1, 1)]


def test_a_loss_that_goes_on_is_one_gap_with_one_alert(line: Line) -> None:
    for second in range(0, 100, 10):
        line.report("heartbeat", second, last_seq=second + 10)
        line.check(second)
    assert line.gaps == [(1, 100, 100)]
    assert line.alerts == [("gap", "r1")]


def test_a_gap_that_grew_is_alerted_again_once_twice_as_much_is_missing_and_otherwise_each_hour(line: Line) -> None:
    """What is lost on Thursday is not covered by the alert of Monday. Which numbers they are is asked for."""
    line.events(1)
    alerts = "select count(*), max(detail) filter (where subject ? 'grown_at') from usage.alerts where kind = 'gap'"
    for at, last_seq, expected in (
        (0, 2, 0), (60, 2, 1), (100, 1002, 1), (159, 1002, 1), (160, 1002, 2),
        (200, 1003, 2), (260, 1003, 2), (3759, 1003, 2), (3760, 1003, 3), (9000, 1003, 3),
    ):  # fmt: skip
        line.report("heartbeat", at, last_seq=last_seq)
        line.check(at)
        count, detail = line.connection.execute(alerts).fetchone() or (None, None)
        assert count == expected, at
    assert detail == (
        f"1002 of the numbers 2 to 1003 of boot b1 have not arrived since {after(0).isoformat()},"
        f" some of them since {after(200).isoformat()}; it was alerted with 1001"
    )
    assert line.gaps == [(2, 1003, 1002)]
    line.events(500)
    line.check(9001)
    assert number_store.missing_numbers(line.connection, ("r1", "b1")) == ((2, 499), (501, 1003))


def test_duplicates_conflicts_and_refused_events_fill_their_number(line: Line) -> None:
    line.records(
        numbered(0, 1, request_id="a"),
        numbered(1, 2, request_id="a"),
        numbered(2, 3, request_id="a", output_tokens=77),
        numbered(3, 4, tenant_id="stranger"),
        numbered(4, 5, output_tokens=-1),
        numbered(5, 6, timestamp="2026-11-01T13:00:00Z"),
        numbered(6, 7, kind="correction", correction_no=1, corrects="05a57c93-2f15-5a80-ac63-8048b38e1de1"),
        numbered(7, 8, status="excellent"),
        numbered(8, 10),
    )
    line.check(0)
    assert sum(quarantine.counts(line.connection).values()) == 6
    assert line.gaps == [(9, 9, 1)]


def test_a_torn_event_or_one_without_a_readable_number_fills_nothing(line: Line) -> None:
    line.records(
        Record(0, None, numbered(0, 1).value[:-1], RECEIVED),
        numbered(1, 2**53, output_tokens=-1),
        numbered(2, 1, replica="a\0b", output_tokens=-1),
        make_record(3, replica_id="r1", seq=4),
        make_record(4, replica_id="", boot_id="", seq=4),
    )
    line.check(0)
    assert line.connection.execute("select count(*) from usage.boot_numbers").fetchone() == (0,)


def test_a_duplicate_fills_nothing_new_and_leaves_the_gap_open(line: Line) -> None:
    line.events(1, 4, request_id="a")
    line.check(0)
    line.events(1, 4, request_id="a")
    line.check(1)
    assert line.gaps == [(2, 3, 2)]


def test_a_gap_is_alerted_once_after_the_delay_also_by_two_workers(line: Line, second_check: CompletenessCheck) -> None:
    line.events(1, 3)
    line.check(0)
    line.check(59)
    assert second_check.run(after(59.9))
    assert line.alerts == []
    for at in (60, 61):
        line.check(at)
        assert second_check.run(after(at))
    assert line.alerts == [("gap", "r1")]


def test_two_checks_do_not_run_at_the_same_time(line: Line, second_check: CompletenessCheck) -> None:
    with line.connection.transaction():
        line.check(0)
        assert second_check.run(after(0)) is False


def test_a_killed_check_leaves_nothing_and_the_next_one_finds_the_same(line: Line) -> None:
    line.events(1, 3)
    with line.connection.transaction(force_rollback=True):
        line.check(0)
    assert line.connection.execute("select count(*) from usage.number_fills").fetchone() == (1,)
    line.check(1)
    assert line.gaps == [(2, 2, 1)]


def test_a_closed_gap_is_not_alerted(line: Line) -> None:
    line.events(1, 3)
    line.check(0)
    line.events(2)
    line.check(61)
    assert line.alerts == []


def test_alerts_are_delivered_until_acknowledged_and_then_no_more(line: Line) -> None:
    for at, replica in enumerate(("r1", "r2", "r3")):
        line.events(1, 3, replica=replica)
        line.check(at)
    line.check(63)
    sent: list[list[str]] = []

    def send(waiting: list[Alert], acknowledged: Callable[[Alert], None]) -> None:
        """All but the first are taken, the first time."""
        sent.append([alert.key for alert in waiting])
        for alert in waiting[len(sent) == 1 :]:
            acknowledged(alert)
        if len(sent) == 1:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        deliver_alerts(line.connection, send)
    assert [deliver_alerts(line.connection, send) for _ in range(2)] == [1, 0]
    assert sent == [["r1", "r2", "r3"], ["r1"]]


def test_a_boot_that_falls_silent_without_a_farewell_is_reported_once_each_time(line: Line) -> None:
    """What silences a boot may be Kafka that is away: heard of again, it is no more over than before."""
    line.report("heartbeat", 0, last_seq=0)
    for at in range(0, 30, 5):
        line.check(at)
    assert line.alerts == []
    for at in (30, 35, 40):
        line.check(at)
    assert line.alerts == [("no_farewell", "r1")]
    assert [boot.key for boot in completeness_store.broken_off(line.connection)] == [R1]
    line.report("heartbeat", 41, last_seq=0, started=2, ended=1, open=1)
    for at in range(45, 70, 5):
        line.check(at)
    assert completeness_store.broken_off(line.connection) == []
    assert engine_store.report(line.connection).unexplained == [], "what is open has not ended"
    assert line.alerts == [("no_farewell", "r1")]
    for at in (71, 75):
        line.check(at)
    assert line.alerts == [("no_farewell", "r1")] * 2
    assert [boot.key for boot in completeness_store.broken_off(line.connection)] == [R1]


def test_silence_while_nobody_checked_is_not_held_against_a_boot(line: Line) -> None:
    line.report("heartbeat", 0, last_seq=0)
    line.check(0)
    line.check(100)
    line.check(109)
    assert line.alerts == []
    for at in range(110, 135, 5):
        line.check(at)
    assert line.alerts == [("no_farewell", "r1")]


def test_a_boot_that_said_farewell_is_not_reported(line: Line) -> None:
    line.report("heartbeat", 0, last_seq=0)
    line.report("farewell", 1, last_seq=0)
    for at in range(0, 60, 5):
        line.check(at)
    assert line.alerts == []


def test_a_boot_that_another_one_replaced_is_reported_and_the_new_one_is_not(line: Line) -> None:
    line.report("heartbeat", 0, last_seq=0)
    line.report("boot", 1, boot="b2")
    for at in range(2, 33, 5):
        line.report("heartbeat", at, last_seq=0, boot="b2")
        line.check(at)
    raised = line.connection.execute("select kind, subject->>'boot_id' from usage.alerts").fetchall()
    assert raised == [("no_farewell", "b1")]


def test_what_an_emitter_claims_holds_back_only_those_it_may_speak_for(line: Line) -> None:
    """It can send no heartbeat, and may claim a number that never comes, under one boot after another."""
    tenants.register(line.connection, [("tenant_2", "Two")], actor="test")
    access_keys.add(
        line.connection, kind="emitter", name="gw-eu", tenant_ids=["tenant_2"], all_tenants=False,
        secret=access_keys.secret_from(bytes(32)), actor="test",
    )  # fmt: skip
    line.report("boot", 0)
    line.report("heartbeat", 9, last_seq=0)
    line.check(9)

    def complete(tenant_id: str) -> datetime | None:
        return completeness_store.complete_to_of(line.connection, tenant_id).complete_to

    assert (complete("tenant_1"), complete("tenant_2")) == (after(9), after(9))
    for boot in ("b1", "b2"):
        line.events(2**53 - 1, replica="gw-eu.7", boot=boot, tenant_id="tenant_2", request_id=boot)
    line.check(10)
    assert (complete("tenant_1"), complete("tenant_2"), line.complete_to) == (after(9), None, None)
    line.events(1, replica="gw-euro", boot="b", request_id="r")
    line.check(11)
    assert complete("tenant_1") is None, "no key's: whoever it is, it sends to Kafka, and for anybody"


def test_two_boots_of_one_replica_have_numbers_of_their_own(line: Line) -> None:
    line.events(1, 2, 3, boot="b1")
    line.events(1, 3, boot="b2", request_id="other")
    line.check(0)
    found = completeness_store.open_gaps(line.connection)
    assert [(g.boot_id, g.first_number, g.last_number) for g in found] == [("b2", 2, 2)]


@pytest.mark.parametrize(
    ("offset_ms", "alerts"), [(1000, []), (1001, [("clock_offset", "r1")]), (-1001, [("clock_offset", "r1")])]
)
def test_a_clock_that_is_off_by_more_than_a_second_alerts_once(
    line: Line, offset_ms: int, alerts: list[tuple[str, str]]
) -> None:
    for at in (0, 1):
        line.report("heartbeat", at, last_seq=0, clock_offset_ms=offset_ms)
        line.check(at)
    assert line.alerts == alerts


def test_complete_to_follows_the_heartbeats_whose_numbers_are_all_here(line: Line) -> None:
    assert line.complete_to is None
    line.report("boot", 0)
    assert line.complete_to == after(0)
    line.report("heartbeat", 1, last_seq=2)
    line.report("heartbeat", 2, last_seq=3)
    line.report("heartbeat", 3, last_seq=5)
    line.events(1, 2, 5)
    line.check(4)
    assert line.complete_to == after(1)
    line.events(3)
    line.check(5)
    assert line.complete_to == after(2)
    line.events(4)
    line.check(6)
    assert line.complete_to == after(3)
    line.report("farewell", 7, last_seq=5)
    line.check(7)
    assert line.complete_to == after(7)


def test_complete_to_waits_for_the_slowest_of_the_replicas(line: Line) -> None:
    line.report("heartbeat", 9, last_seq=0)
    line.report("heartbeat", 4, last_seq=0, replica="r2")
    line.check(9)
    found = completeness_store.complete_to_overall(line.connection)
    assert (found.complete_to, found.held_back_by) == (after(4), (("r2", "b1"),))
    line.events(1, replica="r3")
    line.check(10)
    assert line.complete_to is None


def test_a_tenant_with_no_part_in_what_was_lost_is_complete(line: Line) -> None:
    tenants.register(line.connection, [("tenant_2", "Two")], actor="test")
    totals = [total_of(1), total_of(1) | {"tenant_id": "tenant_2"}]
    line.report("heartbeat", 1, last_seq=0)
    line.report("farewell", 5, last_seq=2, totals=totals)
    line.events(2)
    line.check(6)
    assert completeness_store.complete_to_of(line.connection, "tenant_1").complete_to == after(5)
    assert completeness_store.complete_to_of(line.connection, "tenant_2").complete_to == after(1)
    assert line.complete_to == after(1)


def test_a_broken_boot_holds_back_until_somebody_writes_it_off(line: Line) -> None:
    line.report("heartbeat", 1, last_seq=1)
    line.report("heartbeat", 9, last_seq=0, replica="r2")
    line.check(9)
    with pytest.raises(UnknownBoot):
        completeness_store.write_off(line.connection, ("r9", "b1"), actor="ada", reason="gone")
    assert completeness_store.write_off(line.connection, R1, actor="ada", reason="disk lost")
    assert not completeness_store.write_off(line.connection, R1, actor="ada", reason="again")
    assert line.complete_to == after(9)
    audited = line.connection.execute("select actor, action, subject from usage.audit_log where action like 'streams%'")
    assert audited.fetchall() == [("ada", "streams.write-off", "r1/b1")]
    line.check(10)
    assert line.alerts == []
    far = 10**9  # seconds; it was written off by the database's clock
    line.report("heartbeat", far, last_seq=1)
    line.check(far)
    line.check(far + 1)
    assert line.alerts == [("gap", "r1"), ("written_off_in_vain", "r1")]


def test_a_boot_that_served_what_no_disk_had_holds_back_after_its_farewell_until_it_is_written_off(line: Line) -> None:
    line.report("heartbeat", 1, last_seq=0)
    line.report("heartbeat", 2, last_seq=0, not_durable=True)
    line.report("heartbeat", 9, last_seq=0, not_durable=True)
    line.report("farewell", 9, last_seq=0)
    line.check(9)
    line.check(10)
    assert line.complete_to == after(1)
    assert line.alerts == [("not_durable", "r1")]
    assert [boot.durable_to for boot in completeness_store.not_durable(line.connection)] == [after(1)]
    assert completeness_store.write_off(line.connection, R1, actor="ada", reason="the gateway's log was compared")
    assert completeness_store.not_durable(line.connection) == []
    assert line.complete_to is None


def test_a_boot_that_is_held_back_for_long_keeps_few_marks(line: Line) -> None:
    for second in range(1, 41):
        line.report("heartbeat", second, last_seq=second)
    for _ in range(3):
        number_store.thin_marks(line.connection, most=10)
    (marks,) = (
        line.connection.execute("select array_agg(last_seq order by last_seq) from usage.heartbeat_marks").fetchone()
        or ()
    )
    assert len(marks) <= 10
    assert marks[-1] == 40


def test_unnumbered_events_are_counted_apart(line: Line) -> None:
    line.records(make_record(0), make_record(1), numbered(2, 1))
    line.check(0)
    assert completeness_store.unnumbered(line.connection) == {"tenant_1": 2}
    assert line.complete_to is None


def test_a_replica_may_begin_while_boots_are_looked_at(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    real = completeness_store.latest_beginnings

    def just_before(connection: psycopg.Connection) -> dict[str, Boot]:
        found = real(connection)
        line.report("boot", 0)
        return found

    line.report("boot", 0, replica="r0", boot="b0")
    monkeypatch.setattr(completeness_store, "latest_beginnings", just_before)
    line.check(1)


def test_heartbeats_that_say_more_than_was_counted_are_a_difference(line: Line) -> None:
    line.events(1, 2)
    line.report(
        "heartbeat",
        1,
        last_seq=2,
        totals=[total_of(2)],
    )
    line.check(1)
    assert completeness_store.boot_differences(line.connection) == []
    line.events(3, tenant_id="stranger")
    line.report(
        "heartbeat",
        2,
        last_seq=3,
        totals=[total_of(3)],
    )
    line.check(2)
    (found,) = completeness_store.boot_differences(line.connection)
    assert (found.tenant_id, found.model, found.comparable) == ("tenant_1", "llama", "exact")
    assert (found.reported.events, found.counted.events) == (3, 2)


def test_bad_reports_go_to_quarantine_whole_and_the_others_are_applied(
    connection: psycopg.Connection, replica_applier: ReplicaChunkApplier
) -> None:
    bad = [b"{torn", report_json("heartbeat", last_seq=-1), report_json("party"), report_json("boot", at=after(301)),
           report_json("heartbeat", replica="")]  # fmt: skip
    records = [Record(position, b"r1", value, RECEIVED) for position, value in enumerate(bad)]
    done = replica_applier.apply(make_chunk(*records, make_report(len(bad), "boot"), source=REPLICA_SOURCE))
    assert (done.applied, done.quarantined) == (1, len(bad))
    held = sorted(quarantine.listing(connection), key=lambda row: row.position)
    assert [row.reason for row in held] == ["torn", "invalid", "unsupported", "future", "invalid"]
    assert [whole(connection, row) for row in held] == bad


def test_reports_move_by_position_as_usage_does(
    connection: psycopg.Connection, replica_applier: ReplicaChunkApplier
) -> None:
    chunk = make_chunk(make_report(0, "boot"), make_report(1, "heartbeat", last_seq=1), source=REPLICA_SOURCE)
    assert replica_applier.apply(chunk).applied == 2
    assert replica_applier.apply(chunk).skipped == 2
    assert connection.execute("select count(*) from usage.heartbeat_marks").fetchone() == (1,)
    with pytest.raises(PositionGap):
        replica_applier.apply(make_chunk(make_report(3, "boot"), source=REPLICA_SOURCE))
    with pytest.raises(SourceChanged):
        replica_applier.apply(make_chunk(make_report(2, "boot")))
    assert passed_positions.stored_counts(connection) == {}
    assert passed_positions.counted_outcomes(connection) == {}


def test_what_was_found_cannot_be_edited(line: Line, owner: psycopg.Connection) -> None:
    line.events(1, 3)
    line.report("heartbeat", 0, last_seq=3, clock_offset_ms=5000)
    line.check(0)
    line.check(60)
    line.events(2)
    line.check(61)
    for change in (
        "update usage.gaps set missing = 1, closed_at = null",
        "update usage.gaps set since = now()",
        "delete from usage.gaps",
        "delete from usage.alerts",
        "update usage.alerts set detail = 'nothing'",
        "delete from usage.boot_findings",
    ):
        with pytest.raises(psycopg.errors.DatabaseError, match=r"append-only|keeps|permission denied"):
            line.connection.execute(change)
        with pytest.raises(psycopg.errors.DatabaseError, match=r"append-only|keeps"):
            owner.execute(change)


def test_corrections_and_other_versions_fill_their_number_and_count_for_their_boot(line: Line) -> None:
    line.records(
        numbered(0, 1, request_id="a", usage_source="stream"),
        numbered(1, 2, request_id="a", usage_source="engine", output_tokens=6),
        numbered(2, 3, request_id="a", usage_source="estimate", output_tokens=9),
        numbered(3, 4, request_id="a", kind="correction", correction_no=1, input_tokens=0, output_tokens=-1,
                 cache_hit_tokens=0, corrects=str(event_id_of(Identity("tenant_1", "a", 1, "usage", 0)))),
        numbered(4, 5, request_id="b", kind="correction", correction_no=1,
                 corrects=str(event_id_of(Identity("tenant_1", "b", 1, "usage", 0)))),
    )  # fmt: skip
    line.check(0)
    assert quarantine.counts(line.connection) == {"orphan": 1}
    assert line.connection.execute("select received_through from usage.boot_numbers").fetchone() == (5,)
    counted = line.connection.execute("select events, output_tokens from usage.replica_counts").fetchall()
    assert counted == [(4, 5 + 6 + 9 - 1)]
