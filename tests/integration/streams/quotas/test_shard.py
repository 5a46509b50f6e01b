"""A shard on a real database: windows, feed and journal together say what is used, once, also after a crash."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psycopg
import pytest

from serving_adapter.quota.groups import GROUPS, group_of
from streams.database import connect
from streams.quotas import definition_store, entries, feed, journal, rebuilding
from streams.quotas.calendar import Anchor, microseconds
from streams.quotas.decisions import Ask, Limits, Refused
from streams.quotas.definition_store import DatedAnchor
from streams.quotas.entries import Leased, Reserved
from streams.quotas.errors import Fenced, ShardsTaken
from streams.quotas.feed import Wanted
from streams.quotas.journal import MadeState
from streams.quotas.rebuilding import rebuild
from streams.quotas.standing_of import standing_of
from streams.rules import estimates
from streams.rules.estimates import EstimatePrice
from tests.integration.streams.quotas.driver import Driver, Usage, add_tenants, define
from tests.waiting import wait_for


@pytest.fixture
def usage(connection: psycopg.Connection) -> Usage:
    add_tenants(connection, "t1", "t2")
    return Usage(connection)


def test_confirmed_usage_is_counted_once_from_windows_feed_and_journal(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    define(connection)
    usage.happens("before-1", "before-2", "probe", output=50)
    driver = Driver(own_database_url)
    assert isinstance(driver.ask("r1", 200), Reserved)
    assert driver.budget() == (150, 0, 200)
    driver.settle("r1", 120)
    assert driver.budget() == (150, 120, 0)
    usage.happens("r1", output=120)
    usage.happens("r2", output=7)
    driver.look()
    driver.look()
    assert driver.budget() == (277, 0, 0)


def test_what_is_counted_and_not_read_yet_is_not_forgotten_meanwhile(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    define(connection)
    driver = Driver(own_database_url)
    driver.ask("r0")
    driver.settle("r1", 90)  # of a request that nobody asked about: the next look finds out whether it is counted
    for number in range(feed.ROWS_AT_MOST // 1000 + 1):
        usage.happens(f"other-{number}", output=1)
    usage.happens("r1", output=90)
    known = []
    while not known or known[-1] != (111, 0, 100):
        driver.look()
        known.append(driver.budget())
        assert sum(known[-1][:2]) >= 90, "settled or confirmed, at any moment"
        assert len(known) < 9
    assert len(known) > 1


def test_changes_are_numbered_in_the_order_in_which_they_are_committed(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    """Else a service that has seen the higher number would never read the lower one."""
    now = datetime.now(UTC)
    anchor = DatedAnchor(Anchor(now.replace(microsecond=0), 3), now)
    price = EstimatePrice("", "output", Decimal("0.01"), "USD", now)
    writes: list[Callable[[psycopg.Connection], object]] = [
        define,
        lambda other: definition_store.assign(other, "t1", "free", now, actor="test"),
        lambda other: definition_store.set_anchors(other, [("t1", anchor)]),
        lambda other: estimates.set_prices(other, "t1", [price]),
    ]
    with connect(own_database_url) as other:
        other.execute("set lock_timeout = '20ms'")
        for write in writes:
            with connection.transaction():
                write(connection)
                with pytest.raises(psycopg.errors.LockNotAvailable), other.transaction():
                    estimates.set_prices(other, "t2", [price])
        estimates.set_prices(other, "t2", [price])


def test_after_a_crash_everything_is_as_it_was(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    define(connection)
    define(connection, metric="concurrency", period="none", limit=4)
    define(connection, metric="requests", period="minute", limit=5)
    driver = Driver(own_database_url)
    for number in range(4):
        assert isinstance(driver.ask(f"r{number}"), Reserved)
    driver.settle("r0", 30)
    driver.settle("r1", 40)
    usage.happens("r1", output=40)  # counted, and the crash comes before it is read
    usage.happens("r2", output=60)
    driver.crash()
    again = Driver(own_database_url)
    assert (again.rebuilt.entries, again.rebuilt.resolved) == (6, 2)
    refused = again.ask("r9", 900)
    assert isinstance(refused, Reserved)
    assert refused.max_tokens == 1000 - 100 - 30 - 100
    assert again.budget() == (100, 30, 100 + 770)
    refused = again.ask("r10")
    assert isinstance(refused, Refused)
    assert {wall.quota.quota_id for wall in refused.walls} == {"minute-requests", "month-output_tokens"}


def test_a_stored_state_takes_the_place_of_the_journal_before_it(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    define(connection)
    define(connection, tenant="t2")
    driver = Driver(own_database_url)
    for number in range(20):
        driver.ask(f"r{number}", 16)
        driver.ask(f"q{number}", 16, tenant="t2")
    driver.ask("last", 20, store_a_state=True)
    driver.settle("r3", 7)  # while the state is being made, as of before
    driver.ask("more", 20, tenant="t2")
    driver.store_states()
    driver.settle("r4", 7)
    before = [driver.budget(), driver.budget(tenant="t2")]
    journal.forget(connection, driver.mine, driver.shard.states.needed_from() - 1)
    driver.crash()
    again = Driver(own_database_url)
    assert again.rebuilt.entries == 1
    assert not again.mine.lost
    again.ask("r1", 16)
    again.ask("q1", 16, tenant="t2")
    assert [again.budget(), again.budget(tenant="t2")] == before


def test_an_old_owner_writes_nothing(connection: psycopg.Connection, own_database_url: str, usage: Usage) -> None:
    define(connection)
    old = Driver(own_database_url)
    old.ask("r1")
    new = Driver(own_database_url)
    with pytest.raises(Fenced):
        old.ask("r2")
    new.ask("r3")
    assert new.budget() == (0, 0, 200)
    journal.keep_states(old.writing, old.mine, [], {"": 0, "usage:0": 77})
    assert "usage:0" not in (Driver(own_database_url).mine.feed_read or {}), "nor where it has read"


def test_no_batch_waits_for_anything_else_that_is_stored(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:  # fmt: skip
    define(connection)
    driver = Driver(own_database_url)
    driver.ask("r1")
    driver.writing.execute("set lock_timeout = '2s'")
    with connect(own_database_url) as storing, storing.transaction():
        journal.keep_states(storing, driver.mine, [MadeState(0, 1, b"state")], driver.positions)
        journal.forget(storing, driver.mine, 0)
        driver.ask("r2")
    assert driver.budget() == (0, 0, 200)


def test_tenants_are_divided_and_divided_anew(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    names = [f"n{number}" for number in range(12)]
    add_tenants(connection, *names)
    define(connection, tier="free", limit=100)
    for name in names:
        definition_store.assign(connection, name, "free", datetime.now(UTC), actor="test")
    one = Driver(own_database_url)
    for name in names:
        assert isinstance(one.ask("r1", 60, tenant=name), Reserved)
    with pytest.raises(ShardsTaken):
        Driver(own_database_url, of=2)
    assert journal.divide(connection, 2)
    with pytest.raises(Fenced):
        one.ask("r2", 20, tenant="n0")
    drivers = [Driver(own_database_url, shard=number, of=2) for number in range(2)]
    for name in names:
        driver = next(each for each in drivers if each.shard.owns(name))
        answer = driver.ask("r2", 60, tenant=name)
        assert isinstance(answer, Reserved)
        assert answer.max_tokens == 40  # what is left of 100
    assert all(each.shard.books for each in drivers)


@pytest.mark.parametrize("first", [0, 1])
def test_dividing_anew_forgets_nothing_that_another_shard_needs(
    connection: psycopg.Connection, own_database_url: str, usage: Usage, first: int
) -> None:
    names = [f"n{number}" for number in range(12)]
    add_tenants(connection, *names)
    for name in names:
        define(connection, tenant=name, limit=100)
    one = Driver(own_database_url)
    for name in names:
        assert isinstance(one.ask("r1", 90, tenant=name), Reserved)
    journal.divide(connection, 2)

    def forget(driver: Driver) -> None:
        driver.store_states()
        journal.forget(connection, driver.mine, driver.shard.states.needed_from() - 1)

    quick = Driver(own_database_url, shard=first, of=2)
    forget(quick)
    late = Driver(own_database_url, shard=1 - first, of=2)
    for name in names:
        driver = quick if quick.shard.owns(name) else late
        assert isinstance(driver.ask("r2", 90, tenant=name), Refused)
    forget(late)
    forget(quick)
    kept = connection.execute("select count(*) from usage.quota_journal").fetchone()
    assert kept is not None
    assert kept[0] <= 2  # of each shard the last
    assert not Driver(own_database_url, shard=0, of=2).mine.lost


def test_without_its_journal_only_a_share_is_promised(
    connection: psycopg.Connection, owner: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    define(connection)
    driver = Driver(own_database_url)
    driver.ask("r1", 500)
    owner.execute("truncate usage.quota_journal")
    again = Driver(own_database_url)
    assert again.mine.lost
    answer = again.ask("r2", 500)
    assert isinstance(answer, Reserved)
    assert answer.max_tokens == 100
    assert isinstance(again.ask("r3", 500), Refused)
    again.crash()
    another = Driver(own_database_url)  # the journal is whole again, and what was lost is not
    assert not another.mine.lost
    assert isinstance(another.ask("r4", 500), Refused)
    assert journal.divide(connection, 2)
    drivers = [Driver(own_database_url, shard=number, of=2) for number in range(2)]
    assert all(each.shard.learning_until == another.shard.learning_until for each in drivers)


def test_a_rebuild_that_takes_long_is_not_ended_by_the_server(
    connection: psycopg.Connection, own_database_url: str, usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(connection)
    driver = Driver(own_database_url)
    driver.ask("r1")
    decode = entries.decode

    def slowly(stored: bytes) -> list[entries.Entry]:
        time.sleep(0.3)
        return decode(stored)

    monkeypatch.setattr(entries, "decode", slowly)
    connection.execute("set idle_in_transaction_session_timeout = '100ms'")
    rebuilt = rebuild(connection, driver.mine, Limits())
    assert rebuilt.entries == 1
    shown = connection.execute("show idle_in_transaction_session_timeout").fetchone()
    assert shown == ("100ms",)


def test_no_first_request_waits_for_a_tenants_usage_to_be_read(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    """Neither of a tenant that has quotas now, nor after a restart: callers would go by their fail mode meanwhile."""
    driver = Driver(own_database_url)
    add_tenants(connection, "new")
    define(connection, tenant="t1")
    define(connection, tenant="new")
    define(connection, tier="paid")
    usage.happens("before", output=70)
    driver.look()
    driver.look()

    def ask(driver: Driver, tenant: str, **more: str) -> None:
        answer = driver.shard.ask(Ask(tenant, f"r{driver.mine.epoch}", "m-1", 10, max_tokens=100, **more), driver.now)
        assert isinstance(answer, Reserved), answer

    for tenant in ("t1", "new"):
        ask(driver, tenant)
    driver.ask("told", tenant="t2", tier="paid")  # in a tier that only its callers know
    driver.crash()
    again = Driver(own_database_url)
    for tenant in ("t1", "new"):
        ask(again, tenant)
    ask(again, "t2", tier="paid")
    assert again.budget() == (70, 0, 200)


def test_usage_that_nobody_had_reserved_is_told_apart_also_over_crashes(
    connection: psycopg.Connection, own_database_url: str, usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    price = EstimatePrice("", "output", Decimal("0.01"), "USD", datetime.now(UTC) - timedelta(days=60))
    estimates.set_prices(connection, "t1", [price])
    define(connection)
    define(connection, metric="spend", limit="100")
    driver = Driver(own_database_url)
    driver.ask("r1")
    usage.happens("foreign", output=30)
    driver.look()
    cut = driver.shard.next_batch() or pytest.fail("it is to be written")
    for _ in range(2):  # as when nobody knows whether it is
        driver.shard.written(journal.append(driver.writing, driver.mine, cut.batch), cut)
    assert driver.unreserved() == 30
    driver.crash()
    usage.happens("r1", output=50)
    usage.happens("while-nobody-looked", output=7)
    usage.happens("probe", output=500, purpose="probe")
    for kept in (False, True, True):
        again = Driver(own_database_url)
        assert (again.budget()[0], again.unreserved(), again.unreserved("month-spend")) == (87, 37, 37 * 10**16)
        if kept:
            again.store_states()
            journal.forget(connection, again.mine, again.shard.states.needed_from() - 1)
        again.crash()
    monkeypatch.setattr(rebuilding, "CHUNKS_AT_MOST", 1)
    usage.happens("long-ago", output=9)
    usage.happens("lately", output=4)
    last = Driver(own_database_url)
    assert (last.budget()[0], last.unreserved(), last.rebuilt.left_out) == (100, 41, 1)
    last.crash()
    usage.happens("after-all", output=6)  # no service runs, and nobody has read it
    shown = {each["quota_id"]: (each["used"], each["unreserved"]) for each in standing_of(connection, "t1")}
    assert shown == {"month-output_tokens": (106, 47), "month-spend": ("1.06", "0.47")}


def test_usage_of_other_purposes_and_platform_tenants_is_left_out(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    define(connection)
    usage.happens("a", output=500, purpose="probe")
    driver = Driver(own_database_url)
    driver.ask()
    usage.happens("b", output=500, purpose="eval")
    driver.look()
    assert driver.budget()[0] == 0


def test_corrections_and_better_sources_change_what_is_used(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    define(connection)
    define(connection, metric="requests")
    driver = Driver(own_database_url)
    driver.ask("r1")
    usage.happens("r1", output=80, usage_source="gateway")
    driver.look()
    assert (driver.budget(), driver.budget("month-requests")) == ((80, 0, 0), (1, 0, 0))
    usage.happens("r1", output=90, usage_source="engine")
    driver.look()
    assert (driver.budget(), driver.budget("month-requests")) == ((90, 0, 0), (1, 0, 0))
    driver.crash()
    again = Driver(own_database_url)
    again.ask("r2")
    assert again.budget() == (90, 0, 100)


def test_a_settle_that_comes_long_after_its_event_is_not_counted_again(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    define(connection)
    driver = Driver(own_database_url)
    driver.ask("other")
    usage.happens("r1", output=80)
    driver.look()
    driver.settle("r1", 80)
    assert driver.budget()[:2] == (80, 80)  # careful until the database was asked
    driver.look()
    assert driver.budget()[:2] == (80, 0)


def test_what_ran_out_of_a_slice_while_the_service_was_away_counts_once(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    define(connection)
    driver = Driver(own_database_url)
    driver.ask("other", 16)
    driver.shard.lease(Leased("t1", "l1", "gw", driver.now, "m-1", "", 5, 500, 500, 0, driver.now + 10**9))
    driver.write()
    driver.crash()
    usage.happens("s1", "s2", output=100)
    again = Driver(own_database_url)
    again.ask("next", 16)
    again.settle("s1", 100, lease_id="l1")
    again.settle("s2", 100, lease_id="l1")
    again.look()
    assert again.budget()[:2] == (200, 0)


def test_definitions_change_while_requests_are_in_flight(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    define(connection, limit=150)
    usage.happens("before", output=50)
    driver = Driver(own_database_url)
    driver.ask("r1")
    define(connection, limit=400)
    define(connection, metric="total_tokens", limit=500)
    driver.look()
    driver.look()  # reads the new budget
    answer = driver.ask("r2", 400)
    assert isinstance(answer, Reserved)
    assert answer.max_tokens == 250
    assert driver.budget("month-total_tokens") == (60, 0, 110 + 260)


def test_spend_is_priced_by_the_tenants_highest_prices_as_they_were(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    now = datetime.now(UTC)
    old = [EstimatePrice("", "output", Decimal("0.01"), "USD", now - timedelta(days=900))]
    new = [EstimatePrice("", "output", Decimal("1000"), "USD", now + timedelta(days=1))]
    estimates.set_prices(connection, "t1", old + new)
    define(connection, metric="spend", limit="10")
    usage.happens("paid", output=100)
    usage.happens("free", output=100, status="error")
    driver = Driver(own_database_url)
    answer = driver.ask("r1", 2000)
    assert isinstance(answer, Reserved)
    assert answer.max_tokens == 900
    assert Decimal(driver.budget("month-spend")[0]) / 10**18 == 1


def test_prices_that_change_within_an_hour_hold_from_then_on_also_after_a_restart(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    now = datetime.now(UTC)
    change = (now - timedelta(minutes=70)).replace(minute=30, second=0, microsecond=0)
    prices = [
        EstimatePrice("", "output", Decimal(price), "USD", since)
        for price, since in (("0.01", now - timedelta(days=900)), ("0.10", change))
    ]
    begin = {"t1": now.replace(minute=0, second=0, microsecond=0), "t2": now.replace(minute=17, second=0)}
    for tenant, at in begin.items():
        estimates.set_prices(connection, tenant, prices)
        since = at - timedelta(days=3)
        definition_store.set_anchors(connection, [(tenant, DatedAnchor(Anchor(since, 1), since))])
        define(connection, tenant=tenant, metric="spend", limit="1000", period="billing_period")
    driver = Driver(own_database_url)
    for tenant, at in begin.items():
        for name, then in (
            ("dear", change + timedelta(minutes=1)),
            ("cheap", change - timedelta(minutes=1)),
            ("another hour", change - timedelta(minutes=61)),
            ("the period before", at - timedelta(days=3, minutes=2)),
        ):
            usage.happens(name.replace(" ", "-"), tenant_id=tenant, timestamp=then.isoformat())
    driver.look()
    for each in (driver, Driver(own_database_url)):
        assert [each.budget("billing_period-spend", tenant)[0] for tenant in begin] == [12 * 10**18] * 2


def test_billing_periods_follow_the_subscriptions_anchor(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    now = datetime.now(UTC)
    first = DatedAnchor(
        Anchor((now - timedelta(days=40)).replace(second=0, microsecond=0), 1), now - timedelta(days=40)
    )
    second = DatedAnchor(Anchor(now.replace(second=0, microsecond=0), 3), now + timedelta(days=1))
    for _ in range(2):
        definition_store.set_anchors(connection, [("t1", first), ("t1", second)])
    assert connection.execute("select count(*) from usage.billing_anchors").fetchone() == (2,)
    define(connection, period="billing_period")
    usage.happens("r0", output=70)
    driver = Driver(own_database_url)
    driver.ask("r1")
    assert driver.budget("billing_period-output_tokens") == (70, 0, 100)
    held = driver.shard.books["t1"]
    assert held.changes_at == microseconds(second.starts_at)
    assert driver.shard.ready("t1", held.changes_at) is held
    assert held.awaits is not None  # another period from then on, once it is read
    assert [meter.anchor for meter in held.awaits.budgets] == [second.anchor]


def test_a_change_of_prices_reaches_a_service_that_runs(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    define(connection, metric="spend", limit="10")
    since = datetime.now(UTC) - timedelta(days=60)
    estimates.set_prices(connection, "t1", [EstimatePrice("", "output", Decimal("0.01"), "USD", since)])
    usage.happens("r0", output=100)
    driver = Driver(own_database_url)
    driver.ask("r1")
    assert driver.budget("month-spend") == (10**18, 0, 10**18)
    estimates.set_prices(connection, "t1", [EstimatePrice("", "output", Decimal("0.03"), "USD", since)])
    driver.look()
    driver.look()  # reads what is spent, at these prices
    driver.ask("r2")
    assert driver.budget("month-spend") == (3 * 10**18, 0, 6 * 10**18)
    price = EstimatePrice("", "output", Decimal("0.03"), "USD", since)
    usage.happens("failed", output=100, status="error")
    for statuses, billed in ((("ok", "error"), 6), (("error",), 3), (("ok", "aborted"), 3)):  # as contracts may say
        estimates.set_prices(connection, "t1", [price], statuses)
        driver.look()
        driver.look()
        assert driver.budget("month-spend")[0] == billed * 10**18
    estimates.set_prices(connection, "t1", [price], ("ok", "error", "lost"))
    driver.look()
    driver.look()
    usage.happens("another", output=100, status="error")
    driver.look()
    assert driver.budget("month-spend")[0] == 9 * 10**18


def test_thresholds_are_recorded_once_whoever_finds_them(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    define(connection, limit=100, thresholds=[50, 80, 100])
    for _ in range(2):
        driver = Driver(own_database_url)
        driver.ask("r1", 16)
        usage.happens(f"u{driver.mine.epoch}", output=30)
        driver.look()
        driver.write()
        driver.crash()
    query = "select subject ->> 'percent' from usage.alerts where kind = 'quota_threshold' and key = 't1' order by 1"
    assert connection.execute(query).fetchall() == [("50",)]
    usage.happens("more", output=30)
    for name in ("r2", "r3"):  # what is left is too little for the shortest answer
        driver = Driver(own_database_url)
        assert isinstance(driver.ask(name, 16), Refused)
        driver.crash()
    assert connection.execute(query).fetchall() == [("100",), ("50",), ("80",)]


def test_unknown_and_suspended_tenants_are_told(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    driver = Driver(own_database_url)
    assert driver.ask(tenant="nobody") == "unknown"
    add_tenants(connection, "nobody")
    driver.look()
    assert isinstance(driver.ask(tenant="nobody"), Reserved)
    connection.execute("update usage.tenants set state = 'suspended' where tenant_id = 'nobody'")
    driver.look()
    assert driver.ask("r2", tenant="nobody") == "suspended"
    driver.look()
    assert driver.ask("r3", tenant="nobody") == "suspended"
    connection.execute("update usage.tenants set state = 'active' where tenant_id = 'nobody'")
    driver.look()
    assert isinstance(driver.ask("r4", tenant="nobody"), Reserved)


def test_a_look_reads_the_tenants_that_are_new_or_changed_and_no_others(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    driver = Driver(own_database_url)

    def told() -> set[str]:
        wanted = Wanted(tenants_since=driver.tenants_through)
        found = feed.look(driver.reading, driver.positions, driver.shard.definitions.marks, wanted, 0, 1)
        driver.tenants_through = found.tenants_through
        return set(found.states)

    # Whoever is in a transaction, in another database too, holds up what need not be told again
    wait_for(lambda: told() == set(), "nobody is told again")
    with connection.transaction():
        add_tenants(connection, "late")
        with connect(own_database_url) as other:
            add_tenants(other, "soon")
        assert told() == {"soon"}
    assert "late" in told()
    connection.execute("update usage.tenants set state = 'suspended' where tenant_id = 't1'")
    assert "t1" in told()


def test_sql_and_python_agree_about_groups(connection: psycopg.Connection) -> None:
    names = [f"tenant_{number}" for number in range(200)] + ["é:ü"]
    rows = connection.execute(
        "select usage.quota_group(t) from unnest(%s::text[]) with ordinality as u (t, n) order by n", (names,)
    )
    assert [row[0] for row in rows] == [group_of(name) for name in names]
    assert {group_of(f"x{number}") for number in range(9000)} == set(range(GROUPS))
