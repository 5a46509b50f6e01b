"""`tollbook ledger` as finance uses it, and how a role that is missing is told."""

from __future__ import annotations

import csv
import io
import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

from billing.database import engine_for, transaction
from billing.ledger import ledger_store
from billing.ledger.journal import AccountCode, JournalEntry, Posting
from streams.errors import RoleRefused
from streams.schema import upgrade
from tests.fixtures_services import Databases
from tests.integration.console.conftest import Run

AT = datetime(2026, 10, 31, 12, tzinfo=UTC)


@pytest.fixture
def booked(own_database_url: str, run: Run) -> Run:
    """Three entries, two of them sealed."""
    engine = engine_for(own_database_url)
    entries = [
        JournalEntry(
            f"k{number}",
            "test",
            "default",
            "2026-10",
            AT,
            (
                Posting(AccountCode.UNBILLED_RECEIVABLE, "USD", Decimal("1.5"), f"=t{number}"),
                Posting(AccountCode.USAGE_REVENUE, "USD", Decimal("-1.5")),
            ),
        )
        for number in range(3)
    ]
    with transaction(engine) as connection:
        ledger_store.post(connection, entries[:2])
    assert run("ledger", "seal").returncode == 0
    with transaction(engine) as connection:
        ledger_store.post(connection, entries[2:])
    engine.dispose()
    return run


def assert_reports_are_shown(booked: Run, url: str, folder: Path) -> None:
    """As a table, JSON and CSV; one that does not tie ends with 1."""
    shown = booked("report", "revenue", "2026-10")  # entries of a test, which come from no rated line
    assert shown.returncode == 0
    assert "ties: revenue = what income accounts moved by: 4.5 = 4.5 USD" in shown.stdout
    exported = booked("ledger", "export", "--format", "csv").stdout
    assert exported == booked("ledger", "entries", "--csv").stdout
    assert len(exported.splitlines()) == 1 + 2 * 3
    found = json.loads(booked("report", "erp", "2026-10", "--json").stdout)
    assert [(row["account"], row["debit"], row["credit"]) for row in found["rows"]] == [
        ("1150", "4.5", "0"), ("4000", "0", "4.5"),
    ]  # fmt: skip
    assert found["holds"] is True
    file = folder / "revenue.csv"
    assert booked("report", "revenue", "2026-10", "--by", "tenant,tenant", "--out", str(file)).returncode == 0
    assert [row["tenant_id"] for row in csv.DictReader(file.open())] == ["'=t0", "'=t1", "'=t2"]
    receivable = (
        Posting(AccountCode.ACCOUNTS_RECEIVABLE, "USD", Decimal(2), "acme"),
        Posting(AccountCode.TAX_PAYABLE, "USD", Decimal(-2)),
    )
    engine = engine_for(url)
    with transaction(engine) as connection:
        ledger_store.post(connection, [JournalEntry("tax", "test", "default", "2026-10", AT, receivable)])
    engine.dispose()
    red = booked("tax", "report", "2026-10", "--csv")
    assert (red.returncode, red.stdout.splitlines()[0]) == (1, "currency,country,mode,tax_group,rate,net,tax")
    assert "DOES NOT TIE: tax = what 2200 moved by: 0 against 2 USD" in red.stderr
    assert booked("report", "ageing", "2026-Q4").returncode == 2
    assert "not in 2026-10" in booked("report", "ageing", "2026-10", "--as-of", "2026-12-01T00:00:00Z").stderr


def test_the_books_and_reports_are_shown_as_tables_json_and_csv(
    booked: Run, own_database_url: str, tmp_path: Path
) -> None:
    shown = json.loads(booked("ledger", "trial-balance", "--json", "--booked-as-of", "1").stdout)
    assert (shown["seal_no"], shown["totals"], shown["balanced"]) == (
        1,
        {"USD": {"debit": "3.0", "credit": "3.0"}},
        True,
    )
    rows = list(csv.DictReader(io.StringIO(booked("ledger", "accounts", "--csv", "--account", "1150").stdout)))
    assert [(row["subledger"], row["balance"], row["normal_side"]) for row in rows] == [
        ("'=t0", "1.5", "debit"), ("'=t1", "1.5", "debit"), ("'=t2", "1.5", "debit"),
    ]  # fmt: skip
    first = booked("ledger", "entries", "--json", "--limit", "2")
    assert [one["idempotency_key"] for one in json.loads(first.stdout)] == ["k0", "k1"]
    assert "--after 2" in first.stderr
    rest = booked("ledger", "entries", "--csv", "--limit", "2", "--after", "2").stdout
    assert [row["idempotency_key"] for row in csv.DictReader(io.StringIO(rest))] == ["k2", "k2"]
    assert "4000" in booked("ledger", "accounts", "--chart").stdout
    for arguments in (
        ("entries", "--account", "1234"),
        ("entries", "--period", "2026-Q4"),
        ("entries", "--limit", "100000"),
        ("trial-balance", "--period", "2026-10", "--as-of", "2026-10-01T00:00:00Z"),
        ("accounts", "--booked-as-of", "9" * 10),
        ("verify", "--head", "ab"),
        ("export", "--format", "jsonl", "--as-of", "2026-10-01T00:00:00Z"),
    ):
        assert booked("ledger", *arguments).returncode == 2, arguments
    assert booked("ledger", "accounts", "--booked-as-of", "7").returncode == 1
    assert_reports_are_shown(booked, own_database_url, tmp_path)


def test_the_chain_is_verified_and_its_export_without_the_database(
    booked: Run, owner: psycopg.Connection, tmp_path: Path
) -> None:
    (verified,) = json.loads(booked("ledger", "verify", "--json").stdout)
    assert (verified["entries"], verified["waiting"], verified["broken"]) == (2, 1, None)
    file = tmp_path / "journal.jsonl"
    assert booked("ledger", "export", "--format", "jsonl", "--out", str(file)).returncode == 0
    nowhere = {"TOLLBOOK_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing"}
    head = verified["chain_hash"]
    assert booked("ledger", "verify", "--export", str(file), "--head", head, **nowhere).returncode == 0
    other = booked("ledger", "verify", "--export", str(file), "--head", "00" * 32, **nowhere)
    assert (other.returncode, head in other.stderr) == (1, True)
    file.write_text(file.read_text().replace('"k1"', '"k7"'))
    changed = booked("ledger", "verify", "--export", str(file), **nowhere)
    assert (changed.returncode, "entry 2 (k7), number 2 of the chain" in changed.stderr) == (1, True)
    owner.execute("alter table ledger.journal_entries disable trigger user")
    owner.execute("update ledger.journal_entries set kind = 'x' where idempotency_key = 'k0'")
    broken = booked("ledger", "verify")
    assert (broken.returncode, "entry 1 (k0), number 1 of the chain" in broken.stderr) == (1, True)


def test_a_login_that_may_not_become_the_role_is_told_what_to_grant(
    booked: Run, owner: psycopg.Connection, own_database_url: str
) -> None:
    done = booked("ledger", "accounts", TOLLBOOK_DATABASE_ROLE="no_such_role")
    assert done.returncode == 1
    assert "`grant no_such_role to` the login" in done.stderr
    as_login = booked("ledger", "accounts", TOLLBOOK_DATABASE_ROLE="none")
    assert as_login.returncode == 0


@pytest.fixture
def poor_login(server_url: str) -> Iterator[str]:
    """A login that may create databases and no roles."""
    name = f"poor_{secrets.token_hex(4)}"
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(f"create role {name}")
        server.execute(f"grant {name} to current_user")
        yield name
        server.execute(f"drop role {name}")


def test_an_upgrade_that_may_not_make_the_role_says_what_an_administrator_runs(
    make_database: Databases, poor_login: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_database.without_schema()
    name = url.partition("?")[0].rsplit("/", 1)[1]
    with psycopg.connect(url, autocommit=True) as server:
        server.execute("create extension if not exists timescaledb")
        server.execute(f'grant create on database "{name}" to {poor_login}')
        server.execute(f"grant create on schema public to {poor_login}")
    role = f"absent_{poor_login}"
    monkeypatch.setenv("TOLLBOOK_DATABASE_ROLE", role)
    poor = url + ("&" if "?" in url else "?") + f"options=-c%20role%3D{poor_login}"
    with pytest.raises(RoleRefused, match=f"create role {role} nologin; grant {role} to"):
        upgrade(poor)
    with psycopg.connect(url, autocommit=True) as server:
        assert server.execute("select to_regclass('ledger.postings')").fetchone() == (None,)
        server.execute(f"drop owned by {poor_login}")
