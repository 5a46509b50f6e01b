"""Events behind the horizon, once again: compared with all that is held, added once, archived beside their day."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import psycopg
import pytest

from billing.commands.draft_invoices import draft_invoices
from billing.commands.rate_period import rate_period
from billing.invoicing import adjustment_store
from billing.usage import settled_periods
from reconciliation.close.freezing import keeping_late
from reconciliation.close.gates.collecting import participants
from reconciliation.close.gates.evaluating import evaluate_late
from reconciliation.close.gates.gate import Gate
from reconciliation.errors import ReplayRefused
from reconciliation.period import reconcile_period
from reconciliation.replay import applying, behind, plan_store
from reconciliation.replay.behind import OpenArchive
from reconciliation.replay.plan_store import StoredPlan
from serving_adapter.identity import Identity, event_id_of
from streams.database import connect
from streams.errors import CannotArchive, EventsArchived
from streams.ingest import passed_positions
from streams.retention import archive, archive_store, retention_store
from streams.retention.expiry import Retention
from streams.rules.chunks import Accepted
from streams.rules.replayed import Compared
from streams.settings import RetentionSettings
from streams.usage import usage_store
from streams.usage.event_reader import events_of
from streams.usage.rebuild import rebuild
from tests.billing_builders import NOVEMBER, OCTOBER
from tests.builders import uuid_v7
from tests.integration.billing.conftest import World, world
from tests.integration.reconciliation.test_replay import AT, Killed, Replays, event, freeze, kill_at, replays

__all__ = ["replays", "world"]
LATER = datetime(2027, 1, 15, tzinfo=UTC)
DAY = timedelta(days=1)
MINTED = uuid_v7(AT)
FILES = "events/day=2026-10-14/bucket=000"


@contextmanager
def owner(replays: Replays) -> Iterator[psycopg.Connection]:
    """As the owner of the tables: dropping is the owner's."""
    with connect(replays.url, as_login=True) as opened:
        yield opened


def retain(replays: Replays, closed: datetime = OCTOBER.end) -> list[date]:
    """As `streams retain` does it, October being closed: what is old is forgotten, archived, dropped."""
    with owner(replays) as opened:
        retention_store.set_closed_before(opened, closed, actor="ada")
        Retention(opened, RetentionSettings()).step(LATER, at_once=True)
        archive.archive_days(opened, replays.archive(), OCTOBER.start, OCTOBER.end, actor="ada")
        return archive.drop(opened, replays.archive(), LATER, actor="ada")


@pytest.fixture
def dropped(replays: Replays) -> Replays:
    """14 October is only in the archive, with q1 to q3, one whose id says when it was minted, and an estimate."""
    estimate = event(6, usage_source="estimate", status="lost", output_tokens=2)
    replays.live(event(5, request_id=MINTED), estimate)
    assert retain(replays) == [AT.date()]
    with replays.connection() as opened:
        assert opened.execute("select count(*) from usage.event_identities").fetchone() == (0,)
        assert opened.execute("select count(*) from usage.events").fetchone() == (0,)
    return replays


def plan(replays: Replays, *messages: bytes) -> StoredPlan:
    return replays.plan(*messages, now=LATER)


def left_out(replays: Replays, made: StoredPlan) -> dict[str, tuple[str, str]]:
    """By origin, the reason and the detail of what a plan leaves out."""
    with replays.connection() as opened:
        return {
            row["origin"].rpartition(":")[2]: (row["reason"], row["detail"])
            for row in plan_store.left_out(opened, made.plan_id)
        }


def correction_of(number: int) -> bytes:
    corrected = event_id_of(Identity("acme", f"q{number}", 1, "usage", 0))
    return event(number, kind="correction", correction_no=1, corrects=str(corrected), output_tokens=-1)


def forget(replays: Replays, *, further: timedelta = timedelta(0)) -> None:
    """Every identity, as a sweep does it that is under way; or as another one does it, with the horizon moved on."""
    with owner(replays) as opened:
        retention_store.set_closed_before(opened, OCTOBER.end + further, actor="ada")
        Retention(opened, RetentionSettings()).step(LATER, at_once=True)
        opened.execute("delete from usage.event_identities_other")
        assert opened.execute("select count(*) from usage.event_identities").fetchone() == (0,)


def requests(replays: Replays) -> int:
    """What the hourly windows say."""
    with replays.connection() as opened:
        row = opened.execute("select sum(requests)::int8 from usage.windows_1h").fetchone()
        return int(row[0]) if row else 0


def test_what_is_behind_the_horizon_is_compared_with_the_archive_whatever_its_time(dropped: Replays) -> None:
    elsewhere = (AT + 3 * DAY).isoformat()
    made = plan(
        dropped,
        event(1), event(3, timestamp=elsewhere), event(5, request_id=MINTED), event(5, request_id=MINTED.upper()),
        event(2, output_tokens=99), event(6), event(7), event(7),
        correction_of(8), event(2, tenant_id="beta"),
        event(1, usage_source="gateway", output_tokens=4),
    )  # fmt: skip
    assert {name: made.counts[name] for name in ("add", "behind", "there", "conflict", "refused")} == {
        "add": 3, "behind": 3, "there": 5, "conflict": 1, "refused": 2
    }  # fmt: skip
    told = left_out(dropped, made)
    assert told["5"] == (
        "conflict", "other content than the one of 2026-10-14T08:02:00+00:00 in the archive of 2026-10-14"
    )  # fmt: skip
    assert {at: reason for at, (reason, _) in told.items()} == {"5": "conflict", "6": "too_old", "9": "too_old"}
    assert "nothing takes its place" in told["6"][1]
    assert requests(dropped) == 5


def test_without_the_archive_or_with_a_damaged_one_nothing_behind_the_horizon_is_planned(dropped: Replays) -> None:
    (file,) = (dropped.folder / "archive" / FILES).glob("*.parquet")
    stored = file.read_bytes()
    for content in (stored[:-9] + b"123456789", stored[:-1], None):
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(ReplayRefused, match=r"1 events lie behind the horizon .* cannot be read"):
            plan(dropped, event(7))
    file.write_bytes(stored)
    assert plan(dropped, event(7)).records == 1


def test_it_is_added_once_whoever_adds_it_however_often_and_whatever_is_forgotten_between(
    dropped: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []

    def compare(connection: psycopg.Connection, open_archive: OpenArchive, messages: Sequence[Accepted]) -> Compared:
        compared.append(len(messages))
        return behind.compare(connection, open_archive, messages)

    monkeypatch.setattr(applying, "compare", compare)
    monkeypatch.setattr(applying, "MOST_COMPARED", 4)
    messages = [event(number, tenant_id=t) for t in ("acme", "beta") for number in range(10, 20)]
    first, second, third = (plan(dropped, *messages) for _ in range(3))
    assert first.records == first.counts["behind"] == 20
    begun = [applying.begin(dropped.engine, each.plan_id, "ada") for each in (first, second)]
    for step in ("counted", "committed"):
        with dropped.connection() as opened:
            replayer = applying.Replayer(
                dropped.engine, opened, begun[0], "ada", dropped.archive, chunk=7, checkpoint=kill_at(step)
            )  # fmt: skip
            with pytest.raises(Killed):
                replayer.run(rate=None, progress=lambda *_: None)
    forget(dropped)

    def run(number: int) -> None:
        with dropped.connection() as opened:
            applying.Replayer(dropped.engine, opened, begun[number], "ada", dropped.archive, chunk=4).run(
                rate=None, progress=lambda *_: None
            )

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [dropped.apply(each) for each in (first, second)]
    assert [each.done for each in done] == [True, True]
    assert sum(each.applied for each in done) == 20
    assert [each.applied + each.duplicates for each in done] == [20, 20]
    assert 4 <= max(compared) <= 4 + 7, "a chunk more at most"
    assert requests(dropped) == 25
    with dropped.connection() as opened:
        assert opened.execute("select count(*) from usage.events").fetchone() == (20,)
        assert passed_positions.stored_counts(opened) == passed_positions.counted_outcomes(opened)
    with pytest.raises(ReplayRefused, match="replayed from behind the horizon: was 0, now 20"):
        dropped.apply(third)
    forget(dropped, further=timedelta(hours=1))
    assert plan(dropped, *messages).records == 0
    conflicting = plan(dropped, event(10, output_tokens=99))
    assert "that was replayed" in left_out(dropped, conflicting)["1"][1]


def test_what_was_counted_and_forgotten_after_the_planning_does_not_count_again(replays: Replays) -> None:
    """Applying compares anew where more is forgotten than was, also in the middle of it."""
    with owner(replays) as opened:
        retention_store.set_closed_before(opened, AT + timedelta(minutes=30), actor="ada")
        retention_store.move_forgotten(opened, AT + timedelta(minutes=30))
    made = plan(replays, *(event(number) for number in (*range(41, 50), 40, *range(20, 30))))
    assert (made.records, made.counts["behind"]) == (20, 10)
    begun = applying.begin(replays.engine, made.plan_id, "ada")
    replays.live(event(40))
    told: list[int] = []

    def forget_more(through: int, _: int) -> None:
        if not told:
            forget(replays)
        told.append(through)

    with replays.connection() as opened:
        replayer = applying.Replayer(replays.engine, opened, begun, "ada", replays.archive, chunk=5)
        done = replayer.run(rate=None, progress=forget_more)
    assert told == [5, 10, 15, 20]
    assert (done.done, done.applied, done.duplicates) == (True, 19, 1)
    assert requests(replays) == 23


def test_what_was_added_is_archived_beside_its_day_before_it_is_dropped_and_everybody_sees_both(
    dropped: Replays, world: World
) -> None:
    dropped.apply(plan(dropped, event(7), event(8)))
    kept = sorted((dropped.folder / "archive").rglob("*.*"))

    def explained() -> list[tuple[str, int]]:
        with dropped.connection() as opened:
            found = events_of(opened, dropped.archive, "acme", OCTOBER.start, OCTOBER.end)
            return [(each.request_id, each.output_tokens) for each in found]

    before = explained()
    assert [name for name, _ in before] == ["q1", "q2", "q3", MINTED, "q6", "q7", "q8"]
    with owner(dropped) as opened:
        replayed = archive_store.count_replayed(opened)
        with pytest.raises(CannotArchive, match="a replay is adding"):
            archive_store.drop_archived(opened, OCTOBER.end, replayed - 1)
        with pytest.raises(EventsArchived, match="is not in the archive"):
            archive_store.drop_archived(opened, OCTOBER.end, replayed)
        assert archive.days_to_write(opened, dropped.archive(), OCTOBER.start, OCTOBER.end)[0].there is False
        assert archive.drop(opened, dropped.archive(), LATER, actor="ada") == [AT.date()]
        assert opened.execute("select count(*) from usage.events").fetchone() == (0,)
        held = archive_store.archived_days(opened, OCTOBER.start, OCTOBER.end)
        assert [(each.part, each.rows, each.is_gone) for each in held] == [(0, 5, True), (1, 2, True)]
        assert passed_positions.stored_counts(opened) == passed_positions.counted_outcomes(opened)
    assert set(kept) < set((dropped.folder / "archive").rglob("*.*"))
    assert explained() == before
    again = plan(dropped, event(7), event(8, output_tokens=99), event(9))
    assert (again.counts["there"], again.counts["conflict"], again.records) == (1, 1, 1)

    with owner(dropped) as opened:
        archive.recall(opened, dropped.archive(), OCTOBER.start, OCTOBER.end, actor="ada")
        dropped.apply(plan(dropped, event(9)))
        assert rebuild(opened, OCTOBER.start, OCTOBER.end, actor="ada").differences == ()
        minutes = sum(each.requests for each in usage_store.minute_quantities(opened, OCTOBER.start, OCTOBER.end))
        assert minutes == requests(dropped) == 8
        assert archive.droppable(opened, LATER).hindered_by is not None
        assert archive.let_go(opened, actor="ada") == 2
        assert archive.drop(opened, dropped.archive(), LATER, actor="ada") == [AT.date()]
    assert [name for name, _ in explained()] == [*(name for name, _ in before), "q9"]


def test_a_closed_and_archived_month_bills_it_with_the_next(replays: Replays, world: World) -> None:
    numbered = event(7, replica_id="r1", boot_id="b1", seq=1)
    replays.live(numbered)
    freeze(world)
    retain(replays, OCTOBER.end + 2 * DAY)
    with owner(replays) as opened:  # the numbers of a boot that ended are let go of
        opened.execute("delete from usage.number_fills")

    def rated_again() -> list[str]:
        with world.engine.begin() as opened:
            due = settled_periods.unsettled(opened, adjustment_store.rated_periods(opened, NOVEMBER.start))
            for period, terms in due.items():
                settled_periods.settle(opened, period, terms)
        return [period.name for period in due]

    assert rated_again() == []
    unseen = plan(replays, event(4)).money
    assert unseen is not None
    (row,) = unseen
    assert row["follows"].startswith("not rated: raw events of 2026-10 are only in the archive")
    with owner(replays) as opened:
        archive.recall(opened, replays.archive(), OCTOBER.start, OCTOBER.end, actor="ada")
        archive.let_go(opened, actor="ada")
        replays.apply(plan(replays, event(9)))
        assert (rated_again(), rated_again()) == (["2026-10"], [])
        with pytest.raises(EventsArchived, match="events recall"):
            rate_period(world.engine, period=OCTOBER, now=LATER)
        archive.recall(opened, replays.archive(), OCTOBER.start, OCTOBER.end, actor="ada")
    made = plan(replays, event(4), numbered)
    assert (made.records, made.counts["there"]) == (1, 1)
    assert made.money is not None
    (told,) = made.money
    assert (told["period"], told["frozen"], Decimal(told["amount"])) == ("2026-10", True, Decimal("0.018"))
    assert "a line on the next invoice of acme" in told["follows"]
    replays.apply(made)
    assert rated_again() == ["2026-10"]
    (late,) = rate_period(world.engine, period=OCTOBER, now=LATER, keep=keeping_late(NOVEMBER, "ada")).late
    assert late.amount == Decimal("0.036")
    rate_period(world.engine, period=NOVEMBER, now=LATER)
    (invoice,) = draft_invoices(world.engine, period=NOVEMBER, now=LATER).changed
    assert [line.original_period for line in invoice.lines] == [OCTOBER] * len(late.lines)
    assert_the_gates_of_what_came_late_say_what_to_do_once_it_is_archived_again(replays, world)


def assert_the_gates_of_what_came_late_say_what_to_do_once_it_is_archived_again(replays: Replays, world: World) -> None:
    """And ask about all others."""

    def differences() -> dict[Gate, list[str]]:
        with world.engine.connect() as opened:
            accounts = participants(opened, NOVEMBER)
        found = evaluate_late(world.engine, NOVEMBER, accounts)
        return {gate: [each.key for each in found[gate].found] for gate in (Gate.R2, Gate.R3)}

    def reconciled() -> dict[str, bool]:
        found = reconcile_period(world.engine, period=OCTOBER, now=LATER, gateway=None, log=None)
        return {check.name: check.agrees for check in found.checks}

    assert differences() == {Gate.R2: [], Gate.R3: []}
    of_usage = ("every message has one outcome", "what was counted is stored", "events are in their minute",
                "events are in their hour", "usage is rated", "rated lines are accrued")  # fmt: skip
    assert {name: agrees for name, agrees in reconciled().items() if name in of_usage} == dict.fromkeys(of_usage, True)
    with owner(replays) as opened:
        archive.let_go(opened, actor="ada")
    with pytest.raises(EventsArchived, match="`tollbook events recall` brings them back"):
        reconciled()
    hindered = differences()[Gate.R3]
    assert len(hindered) >= 1
    assert all("only in the archive: `tollbook events recall` brings them back" in key for key in hindered), hindered
