"""Balances as of any moment in both times, and the chain that tells when a moment was."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from time import monotonic, sleep

import psycopg
import pytest

from billing.commands.export_beancount import export_beancount
from billing.commands.seal_journal import keep_balances, seal_journals
from billing.commands.show_journal import journal_entries
from billing.commands.trial_balance import account_balances, trial_balance
from billing.commands.verify_journal import Verified, export_chain, verify_journals
from billing.database import transaction
from billing.errors import UnknownMoment
from billing.ledger import balance_store, journal_chain_store, ledger_store
from billing.ledger.balance_store import AccountBalance, AsOf
from billing.ledger.journal import AccountCode, JournalEntry, Posting
from billing.ledger.journal_chain import verified_export
from billing.ledger.ledger_store import Wanted
from streams.database import connect
from tests.integration.billing.conftest import World
from tests.waiting import PATIENCE_S, wait_for

START = datetime(2026, 10, 1, tzinfo=UTC)
NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)


def entry(key: str, amount: str, at: datetime, tenant: str = "t1") -> JournalEntry:
    debit = Posting(AccountCode.UNBILLED_RECEIVABLE, "USD", Decimal(amount), tenant)
    credit = Posting(AccountCode.USAGE_REVENUE, "USD", -Decimal(amount))
    return JournalEntry(key, "test", "default", f"{at:%Y-%m}", at, (debit, credit))


def post(world: World, *entries: JournalEntry) -> None:
    with transaction(world.engine) as connection:
        ledger_store.post(connection, entries)


def seal(world: World) -> int:
    """Seal what is booked, however long a transaction of the server's own (a vacuum) holds it up."""
    until = monotonic() + PATIENCE_S
    while True:
        (found,) = seal_journals(world.engine)
        if not found.waiting or monotonic() > until:
            return found.seal_no


def seals_of(world: World, limit: int) -> list[int]:
    """How many entries each seal of at most `limit` took, until none waits.

    A try in which a transaction of another test's database ends may take none.
    """
    taken: list[int] = []
    until = monotonic() + PATIENCE_S
    while monotonic() < until:
        with transaction(world.engine) as connection:
            taken.append(journal_chain_store.seal(connection, "default", limit=limit))
            if journal_chain_store.waiting(connection, "default") == 0:
                break
        sleep(0.01)
    return [found for found in taken if found]


def revenue(world: World, as_of: datetime | None = None, booked: datetime | int | None = None) -> Decimal:
    found = account_balances(world.engine, as_of=as_of, booked_as_of=booked, code=4000, limit=10)
    return -sum((one.amount for one in found), Decimal(0))


def verify(world: World) -> Verified:
    (found,) = verify_journals(world.engine)
    return found


def tamper(world: World, table: str, statement: str) -> None:
    """Change a table past its guards, as somebody with the server's rights can."""
    world.as_owner(f"alter table {table} disable trigger user", statement, f"alter table {table} enable trigger user")


def test_a_balance_is_asked_as_of_a_moment_in_both_times(world: World) -> None:
    post(world, entry("a", "1", START), entry("b", "2", NOVEMBER))
    first = seal(world)
    post(world, entry("late", "4", START + timedelta(days=1)))  # booked later, effective earlier
    second = seal(world)
    post(world, entry("open", "8", START))  # not sealed
    assert (first, second) == (1, 2)
    assert revenue(world) == 15
    assert revenue(world, as_of=NOVEMBER) == 13  # what is effective at the moment itself belongs to after it
    assert revenue(world, as_of=START) == 0
    assert revenue(world, booked=1) == 3
    assert revenue(world, booked=2) == 7
    assert revenue(world, as_of=NOVEMBER, booked=1) == 1
    assert revenue(world, as_of=NOVEMBER, booked=2) == 5
    assert revenue(world, booked=0) == 0
    with pytest.raises(UnknownMoment, match="no seal 3"):
        revenue(world, booked=3)


def test_a_moment_of_booking_gives_the_same_balance_for_ever_and_one_ahead_is_refused(world: World) -> None:
    post(world, entry("a", "1", START))
    seal(world)
    moment = datetime.now(UTC)
    assert revenue(world, booked=moment) == 1
    post(world, entry("b", "2", START))
    assert revenue(world, booked=moment) == 1
    seal(world)
    assert revenue(world, booked=moment) == 1
    assert revenue(world, booked=datetime.now(UTC)) == 3
    assert revenue(world, booked=moment - timedelta(days=1)) == 0
    with pytest.raises(UnknownMoment, match="lies ahead"):
        revenue(world, booked=datetime.now(UTC) + timedelta(hours=1))


def test_balances_over_snapshots_are_those_of_the_journal_alone(world: World) -> None:
    """Random posting, sealing and keeping; every moment is asked with and without what is kept."""
    seed = 20261121
    chosen = random.Random(seed)
    moments = [START + timedelta(days=chosen.randrange(60)) for _ in range(6)]
    for number in range(40):
        at = chosen.choice(moments) + timedelta(microseconds=chosen.choice([-1, 0, 1]))
        post(world, entry(f"k{number}", str(chosen.randrange(1, 9)), at, f"t{chosen.randrange(3)}"))
        if chosen.random() < 0.4:
            seal(world)
        if chosen.random() < 0.25:
            keep_balances(world.engine, effective_before=chosen.choice(moments))
    last = seal(world)
    post(world, *(entry(f"open{number}", "3", at) for number, at in enumerate(moments)))  # not sealed

    def both(as_of: AsOf) -> tuple[list[AccountBalance], list[AccountBalance]]:
        with transaction(world.engine) as connection:
            with_kept, alone = (
                balance_store.account_balances(connection, legal_entity="default", as_of=as_of, use_snapshots=use)
                for use in (True, False)
            )
        return [one for one in with_kept if one.amount], [one for one in alone if one.amount]

    assert world.count("ledger.balance_snapshots") > 3, seed
    for effective in (None, *moments, *(at + timedelta(microseconds=1) for at in moments)):
        for seal_no in (None, 0, 1, last // 2, last):
            with_kept, alone = both(AsOf(effective, seal_no))
            assert with_kept == alone, (seed, effective, seal_no)
            naive = world.rows(
                "select -coalesce(sum(p.amount), 0) from ledger.journal_entries e"
                " join ledger.postings p using (entry_id)"
                " join ledger.accounts a on a.account_id = p.account_id"
                " left join ledger.sealed_entries s on s.entry_id = e.entry_id where a.code = 4000"
                " and e.effective_at < coalesce(cast(:effective as timestamptz), 'infinity')"
                " and (cast(:seal_no as integer) is null or s.seal_no <= :seal_no)",
                effective=effective,
                seal_no=seal_no,
            )
            assert revenue(world, as_of=effective, booked=seal_no) == naive[0][0], (seed, effective, seal_no)
    assert verify(world).broken is None


def test_a_snapshot_is_used(world: World) -> None:
    post(world, entry("a", "1", START))
    seal(world)
    keep_balances(world.engine, effective_before=NOVEMBER)
    tamper(world, "ledger.snapshot_balances", "update ledger.snapshot_balances set amount = amount * 2")
    assert revenue(world, as_of=NOVEMBER) == 2
    assert verify(world).broken == "balance snapshot 1 is not what the journal comes to"


def test_keeping_twice_keeps_once(world: World) -> None:
    keep_balances(world.engine, effective_before=NOVEMBER)
    assert world.count("ledger.balance_snapshots") == 0  # nothing is sealed yet
    post(world, entry("a", "1", START))
    seal(world)
    for _ in range(2):
        keep_balances(world.engine, effective_before=NOVEMBER)
    assert world.count("ledger.balance_snapshots") == 1


def test_an_entry_that_commits_after_later_ones_is_not_passed_over(world: World, own_database_url: str) -> None:
    """Ids are not in commit order: whoever seals up to the highest id would never seal the slow one."""
    post(world, entry("first", "1", START))  # makes the accounts and the period, which would be waited for
    seal(world)
    with world.engine.connect() as slow, slow.begin():
        ledger_store.post(slow, [entry("slow", "1", START)])
        post(world, entry("fast", "2", START))
        (found,) = seal_journals(world.engine)
        assert (found.sealed, found.waiting) == (0, 1)  # what the slow one hides is not seen, and fast waits for it
    seal(world)
    assert world.rows(
        "select idempotency_key from ledger.sealed_entries join ledger.journal_entries using (entry_id)"
        " order by position"
    ) == [("first",), ("slow",), ("fast",)]
    assert verify(world).broken is None


def test_a_seal_takes_so_many_and_the_next_goes_on_also_within_one_transaction(world: World) -> None:
    post(world, *(entry(f"k{number}", "1", START) for number in range(7)))
    assert seals_of(world, limit=3) == [3, 3, 1]
    assert seals_of(world, limit=3) == []
    assert revenue(world, booked=2) == 6
    found = verify(world)
    assert (found.broken, found.entries) == (None, 7)


def test_what_a_transaction_posts_it_does_not_seal(world: World) -> None:
    with transaction(world.engine) as connection:
        ledger_store.post(connection, [entry("a", "1", START)])
        assert journal_chain_store.seal(connection, "default") == 0


def test_after_a_restore_on_another_server_sealing_goes_on(world: World) -> None:
    """Its transactions count from elsewhere: those of before may lie ahead, new ones bear lower numbers."""
    post(world, entry("sealed", "1", START))
    seal(world)
    post(world, entry("ahead", "2", START), entry("behind", "4", START))
    tamper(world, "ledger.seals", "update ledger.seals set server = 1, upto_transaction = '4000000000'")
    tamper(
        world,
        "ledger.journal_entries",
        "update ledger.journal_entries set transaction_id = '4000000000' where idempotency_key = 'ahead'",
    )
    assert revenue(world) == 7
    with transaction(world.engine) as connection:
        assert journal_chain_store.waiting(connection, "default") == 2
    assert seals_of(world, limit=1) == [1, 1]
    post(world, entry("new", "8", START))
    assert seal(world) == 4
    found = verify(world)
    assert (found.broken, found.entries) == (None, 4)
    assert revenue(world, booked=4) == 15


TAMPERED = [
    ("journal_entries", "update ledger.journal_entries set kind = 'x' where entry_id = 2", "(k1), number 2 of"),
    ("journal_entries", "update ledger.journal_entries set effective_at = '2020-01-01Z' where entry_id > 2", "(k2)"),
    ("postings", "update ledger.postings set amount = amount * 2 where entry_id = 2", "(k1)"),
    ("accounts", "update ledger.accounts set subledger = 't9' where subledger = 't1'", "(k0)"),
    ("sealed_entries", "delete from ledger.sealed_entries where position = 2", "number 2 of the chain is missing"),
    ("sealed_entries", "delete from ledger.sealed_entries where position = 4", "the last seal, 1, says other"),
    ("seals", "update ledger.seals set chain_hash = sha256('')", "the last seal, 1, says other"),
]


@pytest.mark.parametrize(("table", "statement", "named"), TAMPERED, ids=range(len(TAMPERED)))
def test_verifying_names_the_first_entry_that_was_changed(world: World, table: str, statement: str, named: str) -> None:
    post(world, *(entry(f"k{number}", "1", START) for number in range(4)))
    seal(world)
    assert verify(world).broken is None
    tamper(world, f"ledger.{table}", statement)
    assert named in str(verify(world).broken)


def test_an_entry_slipped_in_among_the_sealed_ones_is_named(world: World) -> None:
    post(world, entry("a", "1", START))
    seal(world)
    post(world, entry("b", "1", START))
    statement = "update ledger.journal_entries set transaction_id = '3' where idempotency_key = 'b'"
    tamper(world, "ledger.journal_entries", statement)
    assert "was slipped in" in str(verify(world).broken)


def test_an_entry_that_is_not_sealed_yet_must_balance_too(world: World) -> None:
    post(world, entry("a", "1", START))
    tamper(world, "ledger.postings", "update ledger.postings set amount = amount * 2 where seq = 1")
    assert "does not balance" in str(verify(world).broken)


def test_the_export_of_the_chain_is_followed_without_the_database(world: World) -> None:
    post(world, *(entry(f"k{number}", "1.000000000001", START) for number in range(5)))
    seal(world)
    post(world, entry("open", "1", START))
    lines = list(export_chain(world.engine))
    found = verify(world)
    assert verified_export(lines) == (5, found.chain_hash)
    assert list(export_chain(world.engine)) == lines


def test_entries_come_in_pages_and_by_what_is_asked(world: World) -> None:
    post(
        world,
        *(entry(f"k{number}", "1", START, f"t{number % 2}") for number in range(5)),
        entry("n", "1", NOVEMBER, "t0"),
    )

    def keys(wanted: Wanted, **as_of: datetime) -> list[str]:
        return [one.idempotency_key for one in journal_entries(world.engine, wanted, **as_of)]

    first = journal_entries(world.engine, Wanted("default", limit=4))
    assert [one.idempotency_key for one in first] == ["k0", "k1", "k2", "k3"]
    assert keys(Wanted("default", limit=4, after=first[-1].entry_id)) == ["k4", "n"]
    assert keys(Wanted("default", code=1150, subledger="t1")) == ["k1", "k3"]
    assert keys(Wanted("default", accounting_period="2026-11")) == ["n"]
    assert keys(Wanted("default", key="k2")) == ["k2"]
    assert keys(Wanted("default", kind="other")) == []
    assert keys(Wanted("default"), as_of=NOVEMBER) == ["k0", "k1", "k2", "k3", "k4"]
    assert keys(Wanted("other")) == []
    assert [[str(leg.amount) for leg in one.legs] for one in first[:1]] == [["1", "-1"]]


def test_accounts_come_in_pages(world: World) -> None:
    post(world, *(entry(f"k{number}", "1", START, f"t{number}") for number in range(3)))
    first = account_balances(world.engine, limit=2)
    rest = account_balances(world.engine, limit=5, after=first[-1].account_id)
    assert [(one.account.code, one.subledger) for one in (*first, *rest)] == [
        (1150, "t0"), (1150, "t1"), (1150, "t2"), (4000, ""),
    ]  # fmt: skip


def test_the_trial_balance_is_asked_as_of_both_times(world: World) -> None:
    post(world, entry("a", "1", START))
    seal(world)
    post(world, entry("b", "2", NOVEMBER))
    assert trial_balance(world.engine, booked_as_of=1).totals == {"USD": (Decimal(1), Decimal(1))}
    assert trial_balance(world.engine, as_of=NOVEMBER).totals == {"USD": (Decimal(1), Decimal(1))}
    assert trial_balance(world.engine).totals == {"USD": (Decimal(3), Decimal(3))}


def bean_check(file: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("bean-check")
    return subprocess.run([program, "--no-cache", str(file)], capture_output=True, text=True, check=False)


def exported_ledger(world: World, file: Path, change: Callable[[str], str] = lambda text_: text_) -> Path:
    file.write_text(change("".join(export_beancount(world.engine))))
    return file


def test_beancount_accepts_the_export_and_would_see_a_difference_of_one_in_the_last_decimal(
    world: World, tmp_path: Path
) -> None:
    post(
        world,
        entry("a", "1.000000000001", START),
        entry("b", "2.5", NOVEMBER - timedelta(microseconds=1), tenant='t."2'),
        entry("c", "123456789012.000000000003", NOVEMBER, tenant="é-x"),
    )
    receivable = Posting(AccountCode.ACCOUNTS_RECEIVABLE, "EUR", Decimal("1.00"), "acme")
    post(
        world,
        JournalEntry(
            "eur", "test", "default", "2026-11", NOVEMBER,
            (
                receivable,
                Posting(AccountCode.ROUNDING_DIFFERENCE, "EUR", Decimal("-0.004")),
                Posting(AccountCode.UNBILLED_RECEIVABLE, "EUR", Decimal("-0.996"), "t1"),
            ),
        ),
    )  # fmt: skip
    seal(world)
    keep_balances(world.engine, effective_before=NOVEMBER)
    good = bean_check(exported_ledger(world, tmp_path / "good.beancount"))
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    assert (tmp_path / "good.beancount").read_text().count(" balance ") == 3 + 7
    for old, new in (
        ("balance Income:4000-UsageRevenue  -3.500000000001", "balance Income:4000-UsageRevenue  -3.500000000002"),
        ("\n  Income:4000-UsageRevenue  -2.500000000000", "\n  Income:4000-UsageRevenue  -2.500000000001"),
    ):
        bad = bean_check(exported_ledger(world, tmp_path / "bad.beancount", lambda t, o=old, n=new: t.replace(o, n)))
        assert bad.returncode != 0, old
        assert (tmp_path / "bad.beancount").read_text() != (tmp_path / "good.beancount").read_text()


def test_sealers_at_once_make_one_chain(world: World, own_database_url: str) -> None:
    post(world, *(entry(f"k{number}", "1", START) for number in range(20)))
    program = (
        "import sys; from billing.database import engine_for; from billing.commands.seal_journal import seal_journals;"
        "seal_journals(engine_for(sys.argv[1]))"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, own_database_url]) for _ in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    assert world.count("ledger.sealed_entries") == 20
    assert verify(world).broken is None


def test_a_seal_waits_for_a_sealer_under_way(own_database_url: str, world: World) -> None:
    post(world, entry("a", "1", START))
    with world.engine.connect() as first, first.begin(), connect(own_database_url) as other:
        wait_for(lambda: journal_chain_store.seal(first, "default") > 0, "it is sealed")
        other.execute("set lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute("select pg_advisory_xact_lock(hashtextextended('ledger-seal/default', 0))")
    assert world.count("ledger.seals") == 1
