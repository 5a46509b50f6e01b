"""Plans and replays on a real database, by the code that applies all else."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pyarrow import fs
from sqlalchemy import Engine

from billing.commands.change_subscription import cancel_subscription
from billing.commands.draft_invoices import draft_invoices
from billing.commands.rate_period import rate_period
from billing.database import transaction
from console import replay_shown
from reconciliation.close import close_store
from reconciliation.close.close_store import Standing
from reconciliation.close.states import Event
from reconciliation.errors import MaterialUnreadable, ReplayRefused
from reconciliation.replay import applying, log_source, plan_store, spool_source, trial
from reconciliation.replay.applying import Replayed
from reconciliation.replay.material import Found, NotMappable
from reconciliation.replay.plan_store import StoredPlan
from reconciliation.replay.planning import Planner
from serving_adapter.identity import Identity, event_id_of
from serving_adapter.spool.frames import framed
from streams.database import connect
from streams.ingest.apply import ChunkApplier
from streams.ingest.passed_positions import counted_outcomes, runs, stored_counts
from streams.quotas import definition_store
from streams.quotas.definitions import quota_from
from streams.retention.archive_files import Archive
from streams.rules.chunks import Record
from tests.billing_builders import OCTOBER
from tests.builders import RECEIVED, SOURCE, event_json, make_chunk
from tests.fixtures_quota_server import QuotaServerProcess
from tests.integration.billing.conftest import World, world
from tests.integration.streams.conftest import register_source, store
from tests.waiting import wait_for

__all__ = ["store", "world"]
NOW = datetime(2026, 10, 20, tzinfo=UTC)
AT = datetime(2026, 10, 14, 8, tzinfo=UTC)
Changed = dict[str, Any]


class Killed(BaseException):
    """What a kill does, as far as one process can do it to itself."""


def kill_at(wanted: str) -> Callable[[str], None]:
    def checkpoint(step: str) -> None:
        if step == wanted:
            raise Killed

    return checkpoint


def event(number: int, **changed: Any) -> bytes:
    at = AT + timedelta(minutes=number)
    values: Changed = {"tenant_id": "acme", "request_id": f"q{number}", "timestamp": at.isoformat()}
    return event_json(**(values | changed))


@dataclass
class Replays:
    """A database of three tenants on one plan, of which q1 to q3 of acme are counted."""

    url: str
    engine: Engine
    folder: Path
    applied: int = 0

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection]:
        with connect(self.url) as opened:
            yield opened

    def live(self, *messages: bytes) -> None:
        """Messages that come by Kafka."""
        with self.connection() as opened:
            records = [
                Record(self.applied + at, b"k", message, RECEIVED) for at, message in enumerate(messages)
            ]  # fmt: skip
            ChunkApplier(opened).apply(make_chunk(*records))
        self.applied += len(messages)

    def plan(self, *messages: bytes, now: datetime = NOW) -> StoredPlan:
        """A plan of an export with these lines."""
        file = self.folder / "export.jsonl"
        file.write_bytes(b"\n".join(messages) + b"\n")
        with self.connection() as opened:
            material = log_source.exported(str(file))
            plan_id = Planner(opened, now, self.archive).plan(material, {"export": "x"}, "ada", lambda _: None)
        trial.complete(self.engine, plan_id, now)
        return self.stored(plan_id)

    def archive(self) -> Archive:
        return Archive(str(self.folder / "archive"))

    def stored(self, plan_id: str) -> StoredPlan:
        with self.connection() as opened:
            return plan_store.get(opened, plan_id)

    def apply(self, plan: StoredPlan) -> Replayed:
        begun = applying.begin(self.engine, plan.plan_id, "ada")
        with self.connection() as opened:
            replayer = applying.Replayer(self.engine, opened, begun, "ada", self.archive)
            return replayer.run(rate=None, progress=lambda *_: None)

    def counted(self) -> dict[str, tuple[int, int]]:
        """(raw events, requests in hourly windows) by tenant."""
        with self.connection() as opened:
            rows = opened.execute(
                "select tenant_id, count(*), (select sum(requests) from usage.windows_1h as w"
                " where w.tenant_id = e.tenant_id)::int8 from usage.counting_events as e group by 1"
            )
            return {tenant: (events, requests) for tenant, events, requests in rows}

    def rows(self, tenant: str) -> list[str]:
        """A tenant's events and windows as text, but for whose they are and how they came."""
        apart = "array['tenant_id', 'source', 'position', 'ingested_at', 'raw']"
        tables = ("usage.counting_events", "usage.windows_1m", "usage.windows_1h")
        query = " union all ".join(
            f"select (to_jsonb(t) - {apart})::text from {table} as t where tenant_id = %(tenant)s" for table in tables
        )
        with self.connection() as opened:
            return sorted(row[0] for row in opened.execute(query, {"tenant": tenant}))

    def proven(self) -> bool:
        """Whether each source's positions are contiguous, and what they counted is stored."""
        with self.connection() as opened:
            whole = all(after - first == outcomes for _, first, after, outcomes in runs(opened))
            return whole and stored_counts(opened) == counted_outcomes(opened)


@pytest.fixture
def replays(world: World, own_database_url: str, tmp_path: Path) -> Replays:
    world.customers("acme", "beta", "gamma")
    with connect(own_database_url) as opened:
        register_source(opened, SOURCE, "usage")
    made = Replays(own_database_url, world.engine, tmp_path)
    made.live(event(1), event(2), event(3))
    return made


def test_a_plan_says_what_would_become_of_each_message_and_counts_nothing(
    replays: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replays.plan(
        event(1), event(2, output_tokens=99), event(4), event(5, tenant_id="beta"), event(4), b"torn",
        event(6, tenant_id="stranger"), event(7, kind="correction", correction_no=1, corrects="0" * 36),
    )  # fmt: skip
    assert (plan.state, plan.records) == ("planned", 2)
    assert {name: plan.counts[name] for name in ("read", "add", "there", "conflict", "refused")} == {
        "read": 8, "add": 2, "there": 2, "conflict": 1, "refused": 3
    }  # fmt: skip
    assert plan.counts["reasons"] == {"conflict": 1, "torn": 1, "unknown_tenant": 1, "invalid": 1}
    with replays.connection() as opened:
        origins = {row["reason"]: row["origin"] for row in plan_store.left_out(opened, plan.plan_id)}
    assert origins["conflict"] == "export.jsonl:2"
    assert [(row["tenant_id"], row["month"], row["requests"]) for row in plan.effects["usage"]] == [
        ("acme", "2026-10", 1), ("beta", "2026-10", 1)
    ]  # fmt: skip
    # 6 uncached of 10 input tokens at 0.001, 4 cached at 0.0005, 5 output at 0.002
    assert plan.money is not None
    assert {row["tenant_id"]: Decimal(row["amount"]) for row in plan.money} == {
        "acme": Decimal("0.018"), "beta": Decimal("0.018")
    }  # fmt: skip
    assert all("when it is drawn up" in row["follows"] for row in plan.money)
    assert replays.counted() == {"acme": (3, 3)}
    with replays.connection() as opened:
        assert opened.execute("select count(*) from ledger.rated_lines").fetchone() == (0,)
    assert_many_are_tried_in_slices_and_what_is_too_many_is_said_to_be_open(replays, monkeypatch)


def assert_many_are_tried_in_slices_and_what_is_too_many_is_said_to_be_open(
    replays: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "MOST_TRIED", 2)
    of = [("acme", 2), ("beta", 3), ("gamma", 1)]
    plan = replays.plan(*(event(10 + n, tenant_id=name) for name, count in of for n in range(count)))
    money = {row["tenant_id"]: row for row in plan.money or ()}
    assert {name: Decimal(row["amount"]) for name, row in money.items() if not row["problem"]} == {
        "acme": 2 * Decimal("0.018"), "gamma": Decimal("0.018")
    }  # fmt: skip
    assert "not tried: 3 events are more than are tried at once (2)" in money["beta"]["follows"]
    with pytest.raises(ReplayRefused, match="is planned: customers are told what was added"):
        replay_shown.messages(plan)
    replays.apply(plan)
    drafts = replay_shown.messages(replays.stored(plan.plan_id))
    assert "2026-10: We are still working out what it comes to" in drafts["beta"]
    assert "0.04 USD" in drafts["acme"]


def test_a_plan_is_applied_once_whoever_applies_it_and_however_often(replays: Replays) -> None:
    messages = [event(number, tenant_id=tenant) for tenant in ("acme", "beta", "gamma") for number in range(1, 40)]
    plan, again = replays.plan(*messages), replays.plan(*messages)
    outcomes: list[Replayed] = []
    side_by_side = [threading.Thread(target=lambda: outcomes.append(replays.apply(plan))) for _ in range(3)]
    for thread in side_by_side:
        thread.start()
    replays.live(*messages[30:50])
    for thread in side_by_side:
        thread.join()
    done = replays.apply(plan)
    assert len(outcomes) == 3
    assert done.done
    assert done.applied + done.duplicates == plan.records == 114
    assert replays.counted() == {"acme": (39, 39), "beta": (39, 39), "gamma": (39, 39)}
    assert replays.proven()
    with pytest.raises(ReplayRefused, match="events of it that are counted: was 0, now 114"):
        replays.apply(again)
    assert replays.plan(*messages).records == 0
    assert replays.stored(plan.plan_id).state == "applied"
    assert_parts_that_overlap_count_once(replays)


def assert_parts_that_overlap_count_once(replays: Replays) -> None:
    """Both planned before one is applied: the other is refused for what both have, and planned anew has the rest."""
    messages = [event(number) for number in range(40, 61)]
    first, second = replays.plan(*messages[:13]), replays.plan(*messages[10:])
    assert (first.records, second.records) == (13, 11)
    assert replays.apply(first).applied == 13
    with pytest.raises(ReplayRefused, match="events of it that are counted: was 0, now 3"):
        replays.apply(second)
    rest = replays.plan(*messages[10:])
    assert (rest.records, rest.counts["there"], replays.apply(rest).applied) == (8, 3, 8)
    assert replays.counted() == {"acme": (60, 60), "beta": (39, 39), "gamma": (39, 39)}
    assert replays.proven()


def test_a_killed_replay_goes_on_where_it_stopped_and_leaves_what_another_does(
    replays: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_a_plan_that_was_killed_is_none(replays, monkeypatch)
    killed, whole = (replays.plan(*(event(n, tenant_id=name) for n in range(10, 40))) for name in ("beta", "gamma"))
    with monkeypatch.context() as patched:
        patched.setattr(applying.audit, "record", die)
        with pytest.raises(Killed):
            applying.begin(replays.engine, killed.plan_id, "ada")
    assert replays.stored(killed.plan_id).state == "planned"
    begun = applying.begin(replays.engine, killed.plan_id, "ada")
    for step in ("staged", "counted", "advanced", "committed"):
        with replays.connection() as opened:
            replayer = applying.Replayer(
                replays.engine, opened, begun, "ada", replays.archive, chunk=7, checkpoint=kill_at(step)
            )
            with pytest.raises(Killed):
                replayer.run(rate=None, progress=lambda *_: None)
    with monkeypatch.context() as patched:
        patched.setattr(applying.audit, "record", die)  # all of it is counted; that it has ended is not written yet
        with pytest.raises(Killed):
            replays.apply(killed)
    assert not replays.stored(killed.plan_id).ended_at
    assert replays.counted()["beta"] == (30, 30)
    done = replays.apply(killed)
    assert replays.stored(killed.plan_id).report == done.as_report()
    assert (done.done, done.applied, done.duplicates) == (True, 30, 0)
    assert replays.counted() == {"acme": (3, 3), "beta": (30, 30)}
    replays.apply(whole)
    assert replays.rows("beta") == replays.rows("gamma")
    assert len(replays.rows("beta")) > 60, "events and windows of both sizes"
    assert replays.proven()


def die(*_: Any, **__: Any) -> None:
    raise Killed


def assert_a_plan_that_was_killed_is_none(replays: Replays, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it was read: nothing is there. Before what it changes in money was told: it is not applied."""
    with monkeypatch.context() as patched:
        patched.setattr("reconciliation.replay.planning.audit.record", die)
        with pytest.raises(Killed):
            replays.plan(event(4))
    with replays.connection() as opened:
        assert plan_store.listed(opened, 10) == []
    with monkeypatch.context() as patched:
        patched.setattr(plan_store, "complete", die)
        with pytest.raises(Killed):
            replays.plan(event(4))
    with replays.connection() as opened:
        (unfinished,) = plan_store.listed(opened, 10)
    with pytest.raises(ReplayRefused, match="was not finished: make another"):
        applying.begin(replays.engine, unfinished.plan_id, "ada")
    assert replays.counted() == {"acme": (3, 3)}


@pytest.mark.parametrize("what", ["an event has come", "a tenant is suspended", "the period was frozen"])
def test_a_plan_is_refused_once_the_world_has_changed(what: str, replays: Replays, world: World) -> None:
    plan = replays.plan(event(4), event(5))
    if what == "an event has come":
        replays.live(event(5))
    elif what == "a tenant is suspended":
        with replays.connection() as opened:
            opened.execute("update usage.tenants set state = 'suspended' where tenant_id = 'acme'")
    else:
        freeze(world)
    with pytest.raises(ReplayRefused, match="out of date"):
        replays.apply(plan)
    assert replays.counted()["acme"][0] <= 4


def test_what_came_while_a_plan_was_made_or_applied_is_not_told_as_planned(replays: Replays) -> None:
    with replays.connection() as opened:
        found = [Found("", event(number)) for number in (4, 5)]
        made = Planner(opened, NOW, replays.archive).plan(found, {"export": "x"}, "ada", lambda _: None)
    replays.live(event(5))
    with pytest.raises(ReplayRefused, match=r"1 of its events came while plan .* was made: make another"):
        trial.complete(replays.engine, made, NOW)

    plan = replays.plan(event(6), event(7), event(8, tenant_id="beta"))
    begun = applying.begin(replays.engine, plan.plan_id, "ada")
    replays.live(event(7, output_tokens=99))
    with replays.connection() as opened:
        replayer = applying.Replayer(replays.engine, opened, begun, "ada", replays.archive)
        done = replayer.run(rate=None, progress=lambda *_: None)
    assert (done.applied, done.quarantined) == (2, 1)
    assert [(row["tenant_id"], row["requests"], row["output_tokens"]) for row in done.added] == [
        ("acme", 1, 5), ("beta", 1, 5)
    ]  # fmt: skip
    drafts = replay_shown.messages(replays.stored(plan.plan_id))
    assert "2026-10: 1 requests" in drafts["acme"]
    assert "2026-10: We are still working out what it comes to" in drafts["acme"]
    assert "0.02 USD before tax" in drafts["beta"]
    assert "between 2026-10-14 08:08 and 2026-10-14 08:08 (UTC)" in drafts["beta"], "its own times"
    assert replays.apply(plan).added == done.added


def freeze(world: World) -> None:
    """Freeze October's invoice of acme."""
    at = OCTOBER.end + timedelta(days=2)
    rate_period(world.engine, period=OCTOBER, now=at)
    draft_invoices(world.engine, period=OCTOBER, now=at)
    world.execute("update ledger.invoices set frozen_at = now()")


def test_of_a_cut_or_frozen_period_the_plan_says_what_follows(replays: Replays, world: World) -> None:
    before = replays.plan(event(4), now=OCTOBER.end + timedelta(days=3))
    begun = replays.plan(event(5), now=OCTOBER.end + timedelta(days=3))
    applying.begin(replays.engine, begun.plan_id, "ada")
    cut(world, Event.COLLECT, Event.FREEZE)
    assert replays.apply(begun).moved == ["acme 2026-10"]
    (draft,) = replay_shown.messages(replays.stored(begun.plan_id)).values()
    assert "2026-10: We are still working out what it comes to" in draft, "what was planned was of an open period"
    with pytest.raises(ReplayRefused, match=r"out of date .*'acme 2026-10': 'open'.* now .*'acme 2026-10': 'cut'"):
        replays.apply(before)
    plan = replays.plan(event(4), now=OCTOBER.end + timedelta(days=3))
    (row,) = plan.money or ()
    assert (row["frozen"], Decimal(row["amount"])) == (True, Decimal("0.018"))
    assert row["follows"].startswith("2026-10 is cut: a line on the next invoice of acme")
    assert "`tollbook close reopen 2026-10 acme`" in row["follows"]
    freeze(world)
    plan = replays.plan(event(4), now=OCTOBER.end + timedelta(days=3))
    assert plan.money is not None
    (row,) = plan.money
    assert (row["frozen"], Decimal(row["amount"])) == (True, Decimal("0.018"))
    assert "a line on the next invoice of acme" in row["follows"]


def cut(world: World, *events: Event) -> None:
    """What a close does to acme's October."""
    with transaction(world.engine) as connection:
        standing = Standing("2026-10", "default", "acme")
        for each in events:
            (standing,) = close_store.move(connection, [standing], each, "ada")


def test_a_better_telling_takes_the_place_of_an_estimate(replays: Replays) -> None:
    replays.live(event(4, usage_source="estimate", status="lost", output_tokens=2))
    assert replays.counted()["acme"] == (4, 4)
    plan = replays.plan(event(4))
    assert plan.counts["supersede"] == 1
    (row,) = plan.effects["usage"]
    assert (row["requests"], row["output_tokens"]) == (0, 3)
    done = replays.apply(plan)
    assert (done.applied, [(row["requests"], row["output_tokens"]) for row in done.added]) == (1, [(0, 3)])
    assert replays.counted()["acme"] == (4, 4)


def test_a_correction_is_planned_told_and_billed_where_what_it_corrects_is(replays: Replays, world: World) -> None:
    """Made in November of October's usage; one of a weaker telling than the one that counts is left out."""
    now = OCTOBER.end + timedelta(days=3)
    with replays.connection() as opened:
        quota = {"tenant_id": "acme", "period": "month", "metric": "spend", "limit": "0.05", "hard": True}
        definition_store.define(opened, quota_from(quota, now=OCTOBER.start), actor="ada")
    back = {
        "timestamp": (now - timedelta(days=1)).isoformat(), "kind": "correction", "correction_no": 1,
        "input_tokens": -10, "output_tokens": -5, "cache_hit_tokens": -4,
    }  # fmt: skip
    corrects = {n: str(event_id_of(Identity("acme", f"q{n}", 1, "usage", 0))) for n in (2, 3)}
    plan = replays.plan(
        event(2, corrects=corrects[2], **back),
        event(3, corrects=corrects[3], usage_source="gateway", **back),
        event(3, corrects=corrects[3], **(back | {"output_tokens": -6})),
        now=now,
    )
    assert (plan.records, plan.counts["there"], plan.counts["reasons"]) == (1, 1, {"invalid": 1})
    (row,) = plan.effects["usage"]
    assert (row["month"], row["requests"], row["output_tokens"]) == ("2026-10", 0, -5)
    (money,) = plan.money or ()
    assert (money["period"], Decimal(money["amount"])) == ("2026-10", Decimal("-0.018"))
    assert spend_of(plan) == ("0.054", "0.036", False)
    done = replays.apply(plan)
    assert [(row["month"], row["output_tokens"]) for row in done.added] == [("2026-10", -5)]
    drafts = replay_shown.messages(replays.stored(plan.plan_id))
    assert "2026-10: 0 requests, 10 input tokens (4 of them cached), 5 output tokens" in drafts["acme"]
    # 0.018 each; an error is not billed, nor an estimate
    unbilled = [event(5, status="error"), event(6, usage_source="estimate"), event(7, fault="platform")]
    assert spend_of(replays.plan(event(4), *unbilled)) == ("0.036", "0.054", True)
    assert_what_two_payers_of_one_period_get_is_told_apart(replays, world)


def spend_of(plan: StoredPlan) -> tuple[str, str, bool]:
    (told,) = plan.effects["quotas"]
    assert told["quota_id"] == "month-spend"
    return told["used"], told["after"], told["passes"]


def assert_what_two_payers_of_one_period_get_is_told_apart(replays: Replays, world: World) -> None:
    change = AT + timedelta(minutes=10)
    cancel_subscription(world.engine, tenant_id="acme", at=change, actor="ada")
    world.account("group")
    world.subscribe("acme", starts_at=change, billing_account="group")
    plan = replays.plan(event(4), event(12), event(13))
    assert {row["billing_account"]: Decimal(row["amount"]) for row in plan.money or ()} == {
        "acme": Decimal("0.018"), "group": 2 * Decimal("0.018")
    }  # fmt: skip


def test_what_a_budget_gets_is_told_with_its_limit_and_known_to_the_quota_service_once_it_is_applied(
    replays: Replays, quota_server: Callable[..., QuotaServerProcess]
) -> None:
    at = datetime.now(UTC)
    begins = at - timedelta(days=400)
    with replays.connection() as opened:
        quota = {"tenant_id": "acme", "period": "month", "metric": "output_tokens", "limit": 18, "hard": True}
        definition_store.define(opened, quota_from(quota, now=min(begins, OCTOBER.start)), actor="ada")
    (told,) = replays.plan(event(4)).effects["quotas"]
    assert (told["quota_id"], told["used"], told["after"], told["passes"]) == ("month-output_tokens", "15", "20", True)

    server = quota_server()
    plan = replays.plan(event(5, timestamp=at.isoformat(), output_tokens=17), now=at)
    (told,) = plan.effects["quotas"]
    assert server.quota(tenant="acme")["used"] == int(told["used"]) == 0
    replays.apply(plan)
    wait_for(lambda: server.quota(tenant="acme")["used"] == int(told["after"]) == 17, "the service's knowing of it")


def test_numbers_of_what_is_there_already_are_filled(replays: Replays) -> None:
    plan = replays.plan(event(1, replica_id="r1", boot_id="b1", seq=1))
    assert plan.counts["fill"] == plan.records == 1
    done = replays.apply(plan)
    assert (done.applied, done.duplicates) == (0, 1)
    with replays.connection() as opened:
        assert opened.execute("select received_through from usage.boot_numbers").fetchone() == (1,)
    assert json.loads(json.dumps(replays.stored(plan.plan_id).report)) == done.as_report()


def test_spools_and_logs_are_read_from_an_object_store_as_from_a_folder(store: str, tmp_path: Path) -> None:
    messages = [event(number, tenant_id="a/b") for number in range(5)]
    segment = b"".join(framed(b"E" + message) for message in messages)
    files, root = fs.FileSystem.from_uri(store)
    for place, data in (
        ("spools/r%2F1/b1/00000001.seg", segment), ("spools/r%2F1/b1/00000002.seg", segment[:-3]),
        ("logs/access.jsonl.gz", gzip.compress(b"\n".join(messages))),
    ):  # fmt: skip
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(data)
        with files.open_output_stream(f"{root}/{place}", compression=None) as stream:
            stream.write(data)

    def read(where: str) -> list[Found | NotMappable]:
        head, _, options = where.partition("?")
        given = [f"{head}/{folder}" + (f"?{options}" if options else "") for folder in ("spools", "logs")]
        return [*spool_source.spooled(given[0]), *log_source.exported(given[1])]

    found = read(store)
    assert found == read(str(tmp_path))
    assert [each.message for each in found if isinstance(each, Found)] == [*messages, *messages[:4], *messages]
    assert [each.origin for each in found if isinstance(each, NotMappable)] == [found[9].origin]
    assert found[0].origin == "r/1/b1/00000001.seg:0"
    with pytest.raises(MaterialUnreadable, match="is not there"):
        read(store.replace("/usage?", "/nothing?"))


def test_an_unknown_plan_is_told(replays: Replays) -> None:
    with pytest.raises(ReplayRefused, match="there is no plan"):
        applying.begin(replays.engine, "rp-000000000000", "ada")
