"""What the database itself refuses, whatever program writes.

`book` writes as the application does. What its role has no right to is tried by the tables' owner as well: then the
triggers refuse it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from decimal import Decimal
from itertools import count

import psycopg
import pytest

from billing.ledger.journal import ACCOUNTS
from billing.money import CURRENCIES
from migrations.privileges import READ_ONLY, STATE
from streams.database import connect

ENTRY = """
    insert into ledger.journal_entries (idempotency_key, input_hash, kind, legal_entity, accounting_period,
        effective_at, recorded_at, transaction_id, legs, reverses)
    values (%s, sha256(%s::text::bytea), %s, 'default', %s, '2026-10-31Z', now(), '1', %s, %s) returning entry_id
"""
LEG = "select ledger.add_postings(array[%s], array[%s::smallint], array[%s], array[%s], array[%s::numeric])"


class Book:
    """Writes to the journal with plain SQL, as a careless program would: keys and accounting month of its own."""

    def __init__(self, connection: psycopg.Connection, owner: psycopg.Connection, name: str, month: str) -> None:
        self.connection = connection
        self.owner = owner
        self.name = name
        self.month = month
        connection.execute("insert into ledger.accounting_periods values ('default', %s, 'open')", (month,))
        self.account = {
            name: self._account(code, currency, subledger, quantum)
            for name, code, currency, subledger, quantum in (
                ("unbilled", 1150, "USD", "t1", None),
                ("revenue", 4000, "USD", "", None),
                ("euro", 4000, "EUR", "", None),
                ("receivable", 1100, "USD", "acme", "0.01"),
            )
        }

    def _account(self, code: int, currency: str, subledger: str, quantum: str | None) -> int:
        self.connection.execute(
            "insert into ledger.accounts (legal_entity, code, currency, subledger, quantum)"
            " values ('default', %s, %s, %s, %s) on conflict do nothing",
            (code, currency, subledger, quantum),
        )
        row = self.connection.execute(
            "select account_id from ledger.accounts where (legal_entity, code, currency, subledger)"
            " = ('default', %s, %s, %s)",
            (code, currency, subledger),
        ).fetchone()
        assert row is not None
        return int(row[0])

    def header(self, key: str = "k1", legs: int = 2, kind: str = "test", reverses: int | None = None) -> int:
        key = f"{self.name}/{key}"
        row = self.connection.execute(ENTRY, (key, key, kind, self.month, legs, reverses)).fetchone()
        assert row is not None
        return int(row[0])

    def leg(self, entry: int, seq: int, account: str, amount: str, currency: str = "USD") -> None:
        self.connection.execute(LEG, (entry, seq, self.account[account], currency, amount))

    def post(self, key: str, *legs: tuple[str, str], **header: object) -> int:
        with self.connection.transaction():
            entry = self.header(key, len(legs), **header)  # type: ignore[arg-type]
            for seq, (account, amount) in enumerate(legs, start=1):
                self.leg(entry, seq, account, amount, "EUR" if account == "euro" else "USD")
        return entry

    def count(self) -> int:
        row = self.connection.execute(
            "select count(*) from ledger.journal_entries where starts_with(idempotency_key, %s)", (f"{self.name}/",)
        ).fetchone()
        assert row is not None
        return int(row[0])


GOOD = (("unbilled", "12.345678901234"), ("revenue", "-12.345678901234"))


MONTHS = count(1)


@pytest.fixture
def book(shared_database_url: str, request: pytest.FixtureRequest) -> Iterator[Book]:
    """The journal of the database that this worker's tests share."""
    number = next(MONTHS)
    with connect(shared_database_url) as connection, connect(shared_database_url, as_login=True) as owner:
        yield Book(connection, owner, request.node.name, f"{2030 + number // 12}-{number % 12 + 1:02d}")


def refused(state: str) -> pytest.RaisesExc[psycopg.Error]:
    """An error with this SQLSTATE."""
    return pytest.RaisesExc(psycopg.Error, check=lambda error: error.sqlstate == state)


def refused_to_both(book: Book, state: str, statement: str) -> None:
    """The application has no right to it, and the owner is refused by a trigger."""
    with refused(NO_RIGHT):
        book.connection.execute(statement)  # type: ignore[call-overload]
    with refused(state):
        book.owner.execute(statement)  # type: ignore[call-overload]


CHECK, FOREIGN_KEY, UNIQUE, NO_RIGHT, NOT_SERIALISABLE = "23514", "23503", "23505", "42501", "40001"
NO_FUNCTION = "42883"


def test_a_balanced_entry_is_booked(book: Book) -> None:
    book.post("k1", *GOOD)
    book.post("k2", ("unbilled", "1"), ("euro", "-2"), ("revenue", "-1"), ("euro", "2"))
    assert book.count() == 2


@pytest.mark.parametrize(
    "legs",
    [
        (("unbilled", "12.34"), ("revenue", "-12.33")),
        (("unbilled", "1"), ("euro", "-1")),
        (("unbilled", "0.000000000001"), ("revenue", "-0.000000000002")),
    ],
)
def test_what_does_not_balance_in_each_currency_is_refused_at_commit(
    book: Book, legs: tuple[tuple[str, str], ...]
) -> None:
    with refused("TB004"):
        book.post("k1", *legs)
    assert book.count() == 0


def test_one_leg_or_none_is_refused(book: Book) -> None:
    with refused(CHECK):
        book.header(legs=1)
    with refused("TB003"), book.connection.transaction():
        book.header()
    with refused("TB003"), book.connection.transaction():
        book.leg(book.header(), 1, "unbilled", "1")
    assert book.count() == 0


def test_a_leg_cannot_be_added_later(book: Book) -> None:
    entry = book.post("k1", *GOOD)
    with refused("TB002"):
        book.leg(entry, 2, "unbilled", "1")
    with refused("TB002"):
        book.leg(entry, 3, "unbilled", "1")


def test_a_leg_cannot_be_added_after_the_balance_was_checked_in_the_same_transaction(book: Book) -> None:
    with refused("TB002"), book.connection.transaction():
        entry = book.header()
        book.leg(entry, 1, "unbilled", "1")
        book.leg(entry, 2, "revenue", "-1")
        book.connection.execute("set constraints all immediate")
        book.leg(entry, 3, "unbilled", "1")
    assert book.count() == 0


def test_a_header_cannot_be_stamped_with_another_transaction(book: Book) -> None:
    # ENTRY says transaction 1; the trigger writes the real one, and later legs are refused.
    entry = book.post("k1", *GOOD)
    row = book.connection.execute(
        "select transaction_id from ledger.journal_entries where entry_id = %s", (entry,)
    ).fetchone()
    assert row is not None
    assert row[0] != "1"
    with refused("TB002"):
        book.leg(entry, 1, "unbilled", "1")


FACTS = (
    "accounts",
    "balance_snapshots",
    "chart_of_accounts",
    "currencies",
    "invoice_transitions",
    "issued_numbers",
    "journal_entries",
    "plan_versions",
    "postings",
    "price_plans",
    "rated_lines",
    "sealed_entries",
    "seals",
    "snapshot_balances",
)


def test_the_journal_cannot_be_edited_or_deleted(book: Book) -> None:
    book.post("k1", *GOOD)
    for statement in (
        "update ledger.journal_entries set kind = 'other'",
        "update ledger.postings set amount = amount * 2",
        "delete from ledger.postings",
        "delete from ledger.journal_entries",
        "truncate ledger.postings",
        "truncate ledger.journal_entries cascade",
        "update ledger.accounts set code = 4010 where code = 4000",
    ):
        refused_to_both(book, "TB001", statement)


def test_a_series_of_numbers_only_counts_up_one_by_one(book: Book) -> None:
    for statement in (
        "update ledger.number_series set last_number = last_number + 2",
        "update ledger.number_series set last_number = last_number",
    ):
        with refused("TB009"):
            book.connection.execute(statement)
    for statement in (
        "update ledger.number_series set last_number = last_number + 1, prefix = 'X-'",
        "delete from ledger.number_series",
    ):
        refused_to_both(book, "TB009", statement)


def test_no_table_of_facts_can_be_emptied_and_each_refuses_edits(book: Book) -> None:
    for table in FACTS:
        refused_to_both(book, "TB001", f"truncate ledger.{table} cascade")
        guards = book.connection.execute(
            "select count(*) from pg_trigger where tgrelid = %s::regclass and tgname = 'append_only'",
            (f"ledger.{table}",),
        ).fetchone()
        assert guards == (1,), table


@pytest.mark.parametrize("amount", ["0.0000000000001", "NaN", "Infinity", "-Infinity", "0"])
def test_too_many_decimals_and_no_numbers_are_refused(book: Book, amount: str) -> None:
    with refused(CHECK), book.connection.transaction():
        book.leg(book.header(), 1, "unbilled", amount)


def test_what_no_book_can_hold_is_refused(book: Book) -> None:
    for amount in ("1e18", "9" * 3_001):
        with refused(CHECK), book.connection.transaction():
            book.leg(book.header(), 1, "unbilled", amount)
    for moment in ("infinity", "-infinity", "1999-12-31T23:59:59Z", "2200-01-01Z", "4000-01-01 BC"):
        with refused(CHECK):
            book.connection.execute(ENTRY.replace("2026-10-31Z", moment), ("k1", "k1", "test", book.month, 2, None))  # type: ignore[arg-type]


def test_a_float_is_refused(book: Book) -> None:
    uncast = LEG.replace("::numeric", "")
    for amount in (12.5, float("nan")):
        with refused(NO_FUNCTION), book.connection.transaction():
            book.connection.execute(uncast, (book.header(), 1, book.account["unbilled"], "USD", amount))
    # An insert would turn a float into a number: the application has no right to it.
    insert = "insert into ledger.postings (entry_id, seq, account_id, currency, amount) values (%s, %s, %s, %s, %s)"
    with refused(NO_RIGHT), book.connection.transaction():
        book.connection.execute(insert, (book.header(), 1, book.account["unbilled"], "USD", 12.5))
    with book.connection.transaction():
        entry = book.header()
        for seq, (account, amount) in enumerate((("unbilled", "12.345678901234"), ("revenue", "-12.345678901234")), 1):
            book.connection.execute(uncast, (entry, seq, book.account[account], "USD", Decimal(amount)))
    rows = book.connection.execute("select amount from ledger.postings where entry_id = %s", (entry,)).fetchall()
    assert {row[0] for row in rows} == {Decimal("12.345678901234"), Decimal("-12.345678901234")}


def test_a_leg_in_another_currency_than_its_account_is_refused(book: Book) -> None:
    with refused(FOREIGN_KEY), book.connection.transaction():
        book.leg(book.header(), 1, "unbilled", "1", "EUR")


def test_receivables_take_whole_cents_only(book: Book) -> None:
    with refused("TB007"):
        book.post("k1", ("receivable", "1.005"), ("unbilled", "-1.005"))
    book.post("k2", ("receivable", "1.01"), ("unbilled", "-1.01"))


def test_an_entry_cannot_use_an_account_of_another_legal_entity(book: Book) -> None:
    book.owner.execute("insert into ledger.legal_entities values ('eu', 'EU', 'EUR') on conflict do nothing")
    row = book.connection.execute(
        "insert into ledger.accounts (legal_entity, code, currency) values ('eu', 4000, 'USD') returning account_id"
    ).fetchone()
    assert row is not None
    book.account["foreign"] = row[0]
    with refused("TB006"):
        book.post("k1", ("unbilled", "1"), ("foreign", "-1"))


def test_a_key_is_booked_once_and_an_entry_reversed_once(book: Book) -> None:
    entry = book.post("k1", *GOOD)
    with refused(UNIQUE):
        book.post("k1", *GOOD)
    back = tuple((account, amount.removeprefix("-") if "-" in amount else f"-{amount}") for account, amount in GOOD)
    book.post("k1:reversal", *back, reverses=entry)
    with refused(UNIQUE):
        book.post("k1:reversal-2", *back, reverses=entry)


@pytest.mark.parametrize(
    "legs",
    [
        (("unbilled", "-12"), ("revenue", "12")),  # of another amount
        GOOD,  # not turned
        (("revenue", "-12.345678901234"), ("unbilled", "12.345678901234")),  # other accounts
        (("unbilled", "-12.345678901234"), ("revenue", "12.345678901234"), ("unbilled", "1"), ("revenue", "-1")),
    ],
)
def test_a_reversal_takes_back_what_it_says(book: Book, legs: tuple[tuple[str, str], ...]) -> None:
    entry = book.post("k1", *GOOD)
    with refused("TB020"):
        book.post("k1:reversal", *legs, reverses=entry)
    assert book.count() == 1


def test_a_reversal_takes_back_all_of_an_entry(book: Book) -> None:
    entry = book.post("k1", *GOOD, ("unbilled", "1"), ("revenue", "-1"))
    back = (("unbilled", "-12.345678901234"), ("revenue", "12.345678901234"))
    with refused("TB020"):
        book.post("k1:reversal", *back, reverses=entry)
    book.post("k1:reversal", *back, ("unbilled", "-1"), ("revenue", "1"), reverses=entry)


def test_a_closed_or_unknown_accounting_period_takes_nothing_but_its_adjustments(book: Book) -> None:
    book.connection.execute("update ledger.accounting_periods set state = 'closed' where month = %s", (book.month,))
    with refused("TB005"):
        book.post("k1", *GOOD)
    book.post("k2", *GOOD, kind="prior_period_adjustment")
    book.month = "1999-01"
    with refused("TB005"):
        book.post("k3", *GOOD)


def test_the_application_works_under_a_role_that_owns_nothing(book: Book) -> None:
    row = book.connection.execute(
        "select current_user, (select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where pg_get_userbyid(c.relowner) = current_user and n.nspname in ('usage', 'ledger')),"
        " (select rolsuper or rolcreaterole or rolcreatedb from pg_roles where rolname = current_user)"
    ).fetchone()
    assert row == ("tollbook_app", 0, False)
    for statement in (
        "alter table ledger.postings disable trigger user",
        "drop trigger append_only on ledger.postings",
        "drop table ledger.postings cascade",
        "create or replace function ledger.refuse_change() returns trigger language plpgsql as 'begin return new; end'",
        "create table ledger.mine ()",
        "set session_replication_role = replica",
    ):
        with refused(NO_RIGHT):
            book.connection.execute(statement)


def test_the_application_may_change_no_more_than_is_listed(book: Book) -> None:
    found = book.connection.execute(
        "select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname in ('usage', 'ledger') and c.relkind in ('r', 'p') and ("
        "   has_any_column_privilege('tollbook_app', c.oid, 'UPDATE')"
        "   or has_table_privilege('tollbook_app', c.oid, 'DELETE, TRUNCATE, REFERENCES, TRIGGER'))"
    ).fetchall()
    assert {name for (name,) in found} == set(STATE)


def test_a_closed_book_stays_closed_and_is_never_removed(book: Book) -> None:
    book.connection.execute("update ledger.accounting_periods set state = 'closed' where month = %s", (book.month,))
    with refused("TB012"):
        book.connection.execute("update ledger.accounting_periods set state = 'open' where month = %s", (book.month,))
    refused_to_both(book, "TB012", f"delete from ledger.accounting_periods where month = '{book.month}'")
    refused_to_both(
        book, "TB012", f"update ledger.accounting_periods set month = '1999-12' where month = '{book.month}'"
    )
    refused_to_both(book, "TB001", "truncate ledger.accounting_periods cascade")


def test_a_transaction_that_began_before_the_close_does_not_post_into_it(book: Book) -> None:
    book.connection.execute("set session characteristics as transaction isolation level repeatable read")
    with refused(NOT_SERIALISABLE), book.connection.transaction():
        book.connection.execute("select count(*) from ledger.journal_entries")
        book.owner.execute("update ledger.accounting_periods set state = 'closed' where month = %s", (book.month,))
        book.header()
    assert book.count() == 0


def test_an_account_is_one_of_the_chart_and_kept_as_the_chart_says(book: Book) -> None:
    wrong = (
        (1234, "", None, FOREIGN_KEY),  # not in the chart
        (4000, "t1", None, "TB013"),  # kept per nothing
        (1150, "", None, "TB013"),  # kept per tenant
        (1100, "acme", None, "TB013"),  # in whole quanta
        (1150, "t1", "0.01", "TB013"),  # exact
        (1100, "acme", "0.01", "TB013"),  # another currency's quantum
    )
    insert = "insert into ledger.accounts (legal_entity, code, currency, subledger, quantum) values ('default'"
    for code, subledger, quantum, state in wrong:
        with refused(state):
            book.connection.execute(f"{insert}, %s, 'JPY', %s, %s)", (code, subledger, quantum))  # type: ignore[arg-type]
    with refused("TB013"):
        book.connection.execute(f"{insert}, 4000, 'ZZZ', '', null)")  # type: ignore[arg-type]


def test_the_application_does_not_widen_what_the_books_are_made_of(book: Book) -> None:
    for table in READ_ONLY:
        with refused(NO_RIGHT):
            book.connection.execute(f"insert into {table} default values")  # type: ignore[arg-type]


def test_the_databases_currencies_are_those_of_the_code(book: Book) -> None:
    rows = book.connection.execute("select currency, since, quantum from ledger.currencies order by 1, 2").fetchall()
    assert rows == sorted((each.code, each.since, each.quantum) for each in CURRENCIES)


def test_the_databases_chart_of_accounts_is_that_of_the_code(book: Book) -> None:
    rows = book.connection.execute(
        "select code, name, type, normal_side, subledger, in_quanta from ledger.chart_of_accounts order by code"
    ).fetchall()
    assert rows == [
        (a.code, a.name.lower(), a.type.value, a.normal_side.value, a.subledger.value, a.in_quanta)
        for _, a in sorted(ACCOUNTS.items())
    ]


def test_a_seal_follows_the_one_before_and_bears_a_later_time(book: Book) -> None:
    name = f"seal-{book.month}"
    book.owner.execute("insert into ledger.legal_entities values (%s, 'x', 'USD')", (name,))
    seal = (
        "insert into ledger.seals (legal_entity, seal_no, last_position, chain_hash, upto_transaction, upto_entry,"
        " server, sealed_at) values (%s, %s, %s, sha256(''), '1', 1, 1, '1999-01-01Z')"
    )
    book.connection.execute(seal, (name, 1, 5))
    book.connection.execute(seal, (name, 2, 6))
    for number, last in ((2, 9), (4, 9), (3, 6)):
        with refused("TB011"):
            book.connection.execute(seal, (name, number, last))
    rows = book.connection.execute(
        "select sealed_at > '2026-01-01' from ledger.seals where legal_entity = %s", (name,)
    ).fetchall()
    assert rows == [(True,), (True,)]


def test_whoever_closes_a_period_waits_for_postings_that_are_under_way(book: Book, shared_database_url: str) -> None:
    lock = f"select pg_advisory_xact_lock(hashtextextended('ledger/default/{book.month}', 0))"
    got_it = threading.Event()

    def close() -> None:
        with connect(shared_database_url) as other, other.transaction():
            other.execute(lock)
            got_it.set()

    with book.connection.transaction():
        entry = book.header()
        closer = threading.Thread(target=close)
        closer.start()
        assert not got_it.wait(0.3)
        book.leg(entry, 1, "unbilled", "1")
        book.leg(entry, 2, "revenue", "-1")
    assert got_it.wait(60)
    closer.join()


def test_prices_take_eighteen_decimals_and_amounts_twelve(book: Book) -> None:
    book.connection.execute("select 0.000000000000000001::ledger.price, 0.000000000001::ledger.amount")
    for wrong in ("0.0000000000000000001::ledger.price", "'NaN'::ledger.price", "0.0000000000001::ledger.quantity"):
        with refused(CHECK):
            book.connection.execute(f"select {wrong}")
