"""Posting through the store: once per key, in parallel too; balances as sums."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from billing.commands.rate_period import rate_period
from billing.commands.trial_balance import account_balances, trial_balance
from billing.database import engine_for, retried, transaction
from billing.errors import AccountingPeriodClosed, IdempotencyConflict
from billing.ledger import ledger_store
from billing.ledger.journal import AccountCode, JournalEntry, Posting, reversal
from tests.billing_builders import NOW, OCTOBER
from tests.integration.billing.conftest import World

AT = datetime(2026, 10, 31, tzinfo=UTC)


def entry(key: str = "k1", amount: str = "1.5", tenant: str = "t1", month: str = "2026-10") -> JournalEntry:
    debit = Posting(AccountCode.UNBILLED_RECEIVABLE, "USD", Decimal(amount), tenant)
    credit = Posting(AccountCode.USAGE_REVENUE, "USD", -Decimal(amount))
    return JournalEntry(key, "test", "default", month, AT, (debit, credit))


def post(engine: Engine, *entries: JournalEntry) -> dict[str, int]:
    with transaction(engine) as connection:
        return ledger_store.post(connection, entries)


def test_the_same_fact_is_booked_once_and_found_again(world: World) -> None:
    first = post(world.engine, entry("k1"), entry("k2", tenant="t2"))
    again = post(world.engine, entry("k2", tenant="t2"), entry("k3"), entry("k1"))
    assert {key: again[key] for key in first} == first
    assert world.count("ledger.journal_entries") == 3
    assert world.count("ledger.postings") == 6


def test_a_key_with_other_input_is_refused_and_nothing_of_the_batch_is_booked(world: World) -> None:
    post(world.engine, entry("k1"))
    with pytest.raises(IdempotencyConflict, match="k1"):
        post(world.engine, entry("k0"), entry("k1", amount="1.500000000001"))
    assert world.count("ledger.journal_entries") == 1


def test_one_batch_cannot_name_a_key_twice(world: World) -> None:
    with pytest.raises(IdempotencyConflict):
        post(world.engine, entry("k1"), entry("k1"))


def test_an_entry_comes_back_as_it_was_posted(world: World) -> None:
    given = replace(entry("k1", amount="1.000000000001"), source={"tenant_id": "t1"}, original_period="2026-09")
    post(world.engine, given)
    with transaction(world.engine) as connection:
        found = ledger_store.entry(connection, "k1")
        assert ledger_store.entry(connection, "k9") is None
    assert found is not None
    assert found[1] == given
    assert found[1].input_hash == given.input_hash


def test_64_at_once_with_one_key_book_it_once(world: World, own_database_url: str) -> None:
    engines = [engine_for(own_database_url) for _ in range(4)]
    try:
        with ThreadPoolExecutor(32) as pool:
            ids = list(pool.map(lambda n: post(engines[n % 4], entry("k1"), entry(f"own-{n}"))["k1"], range(64)))
    finally:
        for engine in engines:
            engine.dispose()
    assert len(set(ids)) == 1
    assert world.count("ledger.journal_entries") == 65
    assert world.rows("select count(*) from ledger.accounts") == [(2,)]


def test_of_two_inputs_under_one_key_at_once_one_is_booked_and_the_other_refused(world: World) -> None:
    def attempt(n: int) -> str:
        try:
            post(world.engine, entry("k1", amount=str(n % 2 + 1)))
        except IdempotencyConflict:
            return "refused"
        return "booked"

    with ThreadPoolExecutor(8) as pool:
        outcomes = Counter(pool.map(attempt, range(16)))
    assert outcomes == {"booked": 8, "refused": 8}
    assert world.count("ledger.journal_entries") == 1


def test_a_closed_period_takes_nothing_new_but_still_knows_what_it_has(world: World) -> None:
    first = post(world.engine, entry("k1"))
    world.execute("update ledger.accounting_periods set state = 'closed'")
    assert post(world.engine, entry("k1")) == first
    with pytest.raises(AccountingPeriodClosed, match=r"2026-10 of default is closed"):
        post(world.engine, entry("k2"))


def test_balances_are_sums_per_account_and_period(world: World) -> None:
    booked = post(
        world.engine, entry("k1", "1.25"), entry("k2", "0.000000000001", tenant="t2"), entry("k3", "7", month="2026-11")
    )
    back = reversal(
        entry("k1", "1.25"), entry_id=booked["k1"], idempotency_key="k1:r", accounting_period="2026-11", effective_at=AT
    )
    post(world.engine, back)
    whole, november = trial_balance(world.engine), trial_balance(world.engine, accounting_period="2026-11")
    assert [(row.code, row.debit, row.credit) for row in whole.rows] == [
        (1150, Decimal("7.000000000001"), 0),
        (4000, 0, Decimal("7.000000000001")),
    ]
    assert [(row.code, row.debit, row.credit) for row in november.rows] == [
        (1150, Decimal("5.75"), 0),
        (4000, 0, Decimal("5.75")),
    ]
    assert whole.balanced
    assert november.balanced
    assert whole.totals == {"USD": (Decimal("7.000000000001"), Decimal("7.000000000001"))}
    per_tenant = account_balances(world.engine, code=1150, limit=10)
    assert {one.subledger: one.amount for one in per_tenant} == {"t1": 7, "t2": Decimal("0.000000000001")}


POSTER = """
import random, sys
from datetime import datetime, timezone
from decimal import Decimal
from billing.ledger import ledger_store
from billing.database import engine_for, retried
from billing.ledger.journal import AccountCode, JournalEntry, Posting

url, seed = sys.argv[1], int(sys.argv[2])
at = datetime(2026, 10, 31, tzinfo=timezone.utc)

def entry(key):
    amount = Decimal(int(key[1:]) + 1)
    legs = (Posting(AccountCode.UNBILLED_RECEIVABLE, "USD", amount, f"t-{key}"),
            Posting(AccountCode.USAGE_REVENUE, "USD", -amount))
    return JournalEntry(key, "test", "default", "2026-10", at, legs)

engine, chosen = engine_for(url), random.Random(seed)
for _ in range(15):
    batches = [[f"k{n}" for n in chosen.sample(range(40), 8)] for _ in range(3)]
    # Several batches in a transaction, in no order: processes wait for each other in circles, which ends in deadlocks
    def work(opened):
        for batch in batches:
            ledger_store.post(opened, [entry(key) for key in batch])
    retried(engine, work, attempts=50)
"""


def test_processes_that_post_the_same_facts_at_once_book_each_once(world: World, own_database_url: str) -> None:
    running = [subprocess.Popen([sys.executable, "-c", POSTER, own_database_url, str(seed)]) for seed in range(4)]
    assert [process.wait(120) for process in running] == [0, 0, 0, 0]
    assert world.count("ledger.journal_entries") == 40
    assert world.count("ledger.postings") == 80
    assert trial_balance(world.engine).totals == {"USD": (Decimal(820), Decimal(820))}


def test_a_deadlock_is_tried_again_and_both_are_booked(world: World) -> None:
    post(world.engine, entry("first"))  # makes the accounts
    met, tries = threading.Barrier(2, timeout=60), Counter[str]()

    def two(first: str, second: str) -> None:
        def work(connection: Connection) -> None:
            tries[first] += 1
            ledger_store.post(connection, [entry(first)])
            if tries[first] == 1:
                met.wait()
            ledger_store.post(connection, [entry(second)])

        retried(world.engine, work)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(two, "a", "b"), pool.submit(two, "b", "a")]:
            done.result(120)
    assert sorted(tries.values()) == [1, 2]
    assert world.count("ledger.journal_entries") == 3


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_trying_again_has_a_bound_and_nothing_of_what_failed_stays(world: World, state: str) -> None:
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        ledger_store.post(connection, [entry("k1")])
        connection.execute(text(f"do $$ begin raise exception 'again' using errcode = '{state}'; end $$"))

    with pytest.raises(DBAPIError, match="again"):
        retried(world.engine, work, attempts=3)
    assert len(tries) == 3
    assert world.count("ledger.journal_entries") == 0


ASKS_ONCE = (
    "create sequence ledger.asked",
    """create function ledger.ask() returns trigger language plpgsql security definer as $$ begin
        if nextval('ledger.asked') = 1 then raise exception 'again' using errcode = '40P01'; end if;
        return new;
    end $$""",
    "create trigger ask before insert on ledger.journal_entries for each row execute function ledger.ask()",
)


def test_a_command_that_posts_is_done_again_where_the_database_asks_and_books_once(world: World) -> None:
    world.customers("acme")
    world.use("acme", output_tokens=1)
    world.as_owner(*ASKS_ONCE)
    assert world.rate().lines_posted == 1
    assert world.count("ledger.journal_entries") == 1
    world.use("acme", output_tokens=1)
    world.as_owner("alter sequence ledger.asked restart")
    with pytest.raises(DBAPIError, match="again"), transaction(world.engine) as connection:
        rate_period(connection, period=OCTOBER, now=NOW)
    assert world.count("ledger.journal_entries") == 1


def test_another_error_is_not_tried_again(world: World) -> None:
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        connection.execute(text("select 1 / 0"))

    with pytest.raises(DBAPIError, match="division by zero"):
        retried(world.engine, work)
    assert len(tries) == 1
