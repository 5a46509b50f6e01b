"""The ledger's part of `make bench-close`: entries a second through the store and its guards, beside bare INSERTs.

The floor is the same rows, in the same batches and transactions, into tables of the same columns and primary keys
without triggers, checks or foreign keys. On this one machine; WORKERS processes (default 2) book at the same time.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

from billing.commands.seal_journal import keep_balances, seal_journals
from billing.commands.verify_journal import verify_journals
from billing.database import engine_for, transaction
from billing.ledger import ledger_store
from billing.ledger.balance_store import account_balances
from billing.ledger.journal import AccountCode, JournalEntry, Posting
from streams.database import connect
from tests.benchmarks.databases import database
from tests.benchmarks.report import QUICK, Report

WORKERS = int(os.environ.get("WORKERS", "2"))
SEED = 20261121
RUNS = 1 if QUICK else 5
BATCHES = 10 if QUICK else 100
BATCH = 200
"""Entries a transaction, as a rating of many tenants posts them."""
SINGLE = 100 if QUICK else 1_000
"""Entries a worker books one by one, as finalizing invoices does."""
TENANTS = 500
AT = datetime(2026, 10, 31, tzinfo=UTC)
BARE = (
    "create table bare.entries as select * from ledger.journal_entries with no data",
    "create table bare.postings as select * from ledger.postings with no data",
    "alter table bare.entries add primary key (entry_id), add unique (idempotency_key)",
    "alter table bare.postings add primary key (entry_id, seq)",
)


def main(report: Report) -> None:
    """Add the ledger's figures to a report."""
    with database() as url:
        with connect(url, as_login=True) as owner:
            owner.execute("create schema bare")
            for statement in BARE:
                owner.execute(statement)  # type: ignore[call-overload]
        _book(url, "accounts", 1, TENANTS)
        guarded, bare = [], []
        for run in range(RUNS):  # in turn, so that a busy moment of the machine meets both
            guarded.append(_rate(url, _book, f"many-{run}", BATCHES, BATCH))
            bare.append(_rate(url, _insert, f"many-{run}", BATCHES, BATCH))
        report.add("ledger_entries_per_s", "1/s", guarded)
        report.add("ledger_bare_entries_per_s", "1/s", bare)
        report.add("ledger_ratio_to_bare", "", [ours / floor for ours, floor in zip(guarded, bare, strict=True)])
        guarded, bare = [], []
        for run in range(RUNS):
            guarded.append(_rate(url, _book, f"single-{run}", SINGLE, 1))
            bare.append(_rate(url, _insert, f"single-{run}", SINGLE, 1))
        report.add("ledger_single_entries_per_s", "1/s", guarded)
        report.add("ledger_single_ratio_to_bare", "", [a / b for a, b in zip(guarded, bare, strict=True)])
        _chain(url, report)


def _chain(url: str, report: Report) -> None:
    engine = engine_for(url)
    begun = time.monotonic()
    (sealed,) = seal_journals(engine)
    report.add("ledger_sealed_per_s", "1/s", [sealed.sealed / (time.monotonic() - begun)])
    begun = time.monotonic()
    (found,) = verify_journals(engine)
    assert found.broken is None
    report.add("ledger_verified_per_s", "1/s", [found.entries / (time.monotonic() - begun)])

    def balances() -> float:
        begun = time.monotonic()
        with transaction(engine) as connection:
            account_balances(connection, legal_entity="default")
        return (time.monotonic() - begun) * 1000

    report.add("ledger_balances_ms_without_snapshot", "ms", [balances() for _ in range(3)])
    keep_balances(engine, effective_before=datetime(2026, 11, 1, tzinfo=UTC))
    report.add("ledger_balances_ms_with_snapshot", "ms", [balances() for _ in range(3)])
    engine.dispose()


def _rate(url: str, work: Callable[[str, str, int, int], None], name: str, batches: int, size: int) -> float:
    """Entries a second of WORKERS processes that each do `work`."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(WORKERS + 1)
    done = [
        context.Process(target=_worker, args=(ready, work, url, f"{name}-{number}", batches, size))
        for number in range(WORKERS)
    ]
    for process in done:
        process.start()
    ready.wait(60)
    begun = time.monotonic()
    for process in done:
        process.join()
        assert process.exitcode == 0, "a worker failed"
    return WORKERS * batches * size / (time.monotonic() - begun)


def _worker(ready: object, work: Callable[[str, str, int, int], None], url: str, *arguments: object) -> None:
    ready.wait(60)  # type: ignore[attr-defined]
    work(url, *arguments)  # type: ignore[arg-type]


def _entries(name: str, first: int, count: int) -> list[JournalEntry]:
    """Accruals of as many tenants: two legs each."""
    made = []
    for number in range(first, first + count):
        amount, tenant = Decimal(number + 1).scaleb(-9), f"tenant_{number % TENANTS:03}"
        legs = (
            Posting(AccountCode.UNBILLED_RECEIVABLE, "USD", amount, tenant),
            Posting(AccountCode.USAGE_REVENUE, "USD", -amount),
        )
        source = {"tenant_id": tenant, "billing_account": tenant, "period": "2026-10", "rating_no": "1"}
        made.append(JournalEntry(f"{name}:{number}", "accrual", "default", "2026-10", AT, legs, source=source))
    return made


def _book(url: str, name: str, batches: int, size: int) -> None:
    engine = engine_for(url)
    for batch in range(batches):
        with transaction(engine) as connection:
            ledger_store.post(connection, _entries(name, batch * size, size))
    engine.dispose()


def _insert(url: str, name: str, batches: int, size: int) -> None:
    """The same rows as psycopg would write them for anybody: arrays of columns, two statements."""
    begin = int.from_bytes(name.encode(), "big") % 2**40 * 2**20  # ids of this worker's own
    with connect(url, autocommit=False, as_login=True) as connection:
        for batch in range(batches):
            entries = _entries(name, batch * size, size)
            ids = [begin + batch * size + number for number in range(size)]
            connection.execute(
                "insert into bare.entries select i, k, h, 'accrual', 'default', '2026-10', null, %s, now(),"
                " pg_current_xact_id(), 2, null, s::jsonb"
                " from unnest(%s::bigint[], %s::text[], %s::bytea[], %s::text[]) as given (i, k, h, s)",
                (
                    AT,
                    ids,
                    [entry.idempotency_key for entry in entries],
                    [entry.input_hash for entry in entries],
                    ['{"tenant_id": "tenant_000", "billing_account": "tenant_000", "rating_no": "1"}'] * size,
                ),
            )
            legs = [
                (id_, seq, leg) for id_, one in zip(ids, entries, strict=True) for seq, leg in enumerate(one.postings)
            ]
            connection.execute(
                "insert into bare.postings select * from"
                " unnest(%s::bigint[], %s::smallint[], %s::bigint[], %s::text[], %s::numeric[])",
                (
                    [id_ for id_, _, _ in legs],
                    [seq for _, seq, _ in legs],
                    [1] * len(legs),
                    ["USD"] * len(legs),
                    [leg.amount for _, _, leg in legs],
                ),
            )
            connection.commit()
