"""`tollbook credit`, `tax`, `approval` and `ledger post` as finance uses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from billing.database import engine_for
from tests.integration.billing.conftest import World
from tests.integration.console.conftest import Run


@pytest.fixture
def finance(own_database_url: str, run: Run) -> Run:
    """The command line over a database with one customer."""
    engine = engine_for(own_database_url)
    World(engine).customers("acme")
    engine.dispose()
    return run


def rows(run: Run, *arguments: str) -> list[dict[str, Any]]:
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_a_credit_is_granted_settled_by_two_listed_and_in_the_audit_log(finance: Run) -> None:
    grant = ("credit", "grant", "acme", "100.00", "usd", "--from", "2026-10-01", "--expires", "2030-01-01",
             "--kind", "paid", "--reason", "top-up", "--id", "topup", "--model", "mini", "--as", "ada")  # fmt: skip
    assert "would be granted" in finance(*grant, "--dry-run").stdout
    assert rows(finance, "credit", "list") == []
    assert finance(*grant).returncode == finance(*grant).returncode == 0
    other = finance(*("200.00" if text == "100.00" else text for text in grant))
    assert (other.returncode, "another --id" in other.stderr) == (1, True)
    (before,) = rows(finance, "credit", "list", "--account", "acme")
    assert (before["state"], before["remaining"], before["models"]) == ("unpaid", "100", ["mini"])
    settle = ("credit", "settle", "topup", "--paid-at", "2026-10-02T00:00:00Z", "--document", "bank 7", "--as", "ada")
    assert "proposal 1: another person approves it" in finance(*settle).stdout
    assert finance("approval", "approve", "1", "--as", "ada").returncode == 1
    assert rows(finance, "approval", "list")[0]["subject"] == "topup"
    assert "journal entry" in finance("approval", "approve", "1", "--as", "bob").stdout
    (after,) = rows(finance, "credit", "list")
    assert (after["state"], after["paid_at"]) == ("usable", "2026-10-02T00:00:00Z")
    assert "nothing to expire" in finance("credit", "expire", "--as", "ada").stdout
    assert finance("credit", "void", "topup", "--reason", "r", "--as", "ada").returncode == 1
    acts = {entry["action"] for entry in rows(finance, "audit", "list")}
    assert {"credit.grant", "credit.settle.propose", "approval.approve"} <= acts


def test_an_account_is_topped_up_where_its_credit_runs_low(finance: Run) -> None:
    rule = ("credit", "top-up", "set", "acme", "50", "usd", "--below", "20", "--limit", "150", "--from", "2026-01-01",
            "--as", "ada")  # fmt: skip
    assert finance(*rule).stdout == "set\n"
    assert finance(*rule).stdout == "nothing new\n"
    (listed,) = rows(finance, "credit", "top-up", "list")
    assert (listed["below"], listed["amount"], listed["monthly_limit"]) == ("20", "50", "150")
    run = ("credit", "top-up", "run", "--as", "timer")
    assert rows(finance, *run, "--dry-run")[0]["bought"] == rows(finance, *run)[0]["bought"] == "50"
    assert rows(finance, *run) == []
    assert "7" in finance("credit", "top-up", "buy", "acme", "7", "--as", "ada").stdout
    assert [each["state"] for each in rows(finance, "credit", "list")] == ["unpaid", "unpaid"]
    end = ("credit", "top-up", "end", "acme", "usd", "--from", "2026-01-01", "--as", "ada")
    assert finance(*end).stdout == "ended\n"
    assert rows(finance, "credit", "top-up", "list") == []


def test_a_credit_without_an_id_has_one_of_what_it_says(finance: Run) -> None:
    grant = ("credit", "grant", "acme", "5", "USD", "--from", "2026-10-01", "--reason", "sorry", "--as", "ada")
    assert "granted" in finance(*grant).stdout
    assert "there already" in finance(*grant).stdout
    (listed,) = rows(finance, "credit", "list")
    assert "5 taken back" in finance("credit", "void", listed["credit_id"], "--reason", "no", "--as", "ada").stdout
    (listed,) = rows(finance, "credit", "list")
    assert (listed["state"], listed["remaining"]) == ("voided", "0")


def test_tax_rules_are_set_and_listed(finance: Run) -> None:
    common = ("--from", "2026-10-01", "--as", "ada")
    assert finance("tax", "set", "acme", "exclusive", "--rate", "std=0.19", *common).stdout == "set\n"
    assert finance("tax", "set", "acme", "exclusive", "--rate", "std=0.19", *common).stdout == "nothing new\n"
    assert finance("tax", "set", "acme", "exempt", *common).returncode == 1
    assert finance("tax", "set", "acme", "exclusive", "--rate", "19", *common).returncode == 2
    (rule,) = rows(finance, "tax", "list")
    assert (rule["mode"], rule["rates"], rule["recorded_by"]) == ("exclusive", {"std": "0.19"}, "ada")


def test_exchange_rates_are_set_and_listed_and_the_books_remeasured_by_them(finance: Run) -> None:
    common = ("--from", "2026-09-30", "--document", "ECB", "--as", "ada")
    assert finance("exchange", "set", "eur", "usd", "1.085", *common, "--dry-run").stdout == "would be set\n"
    assert finance("exchange", "set", "eur", "usd", "1.085", *common).stdout == "set\n"
    assert finance("exchange", "set", "eur", "usd", "1.085", *common).stdout == "nothing new\n"
    wrong = finance("exchange", "set", "usd", "eur", "0.9", *common)
    assert (wrong.returncode, "kept as EUR in USD" in wrong.stderr) == (1, True)
    (rate,) = rows(finance, "exchange", "list")
    assert (rate["base"], rate["rate"], rate["from"]) == ("EUR", "1.085", "2026-09-30T00:00:00Z")
    assert rows(finance, "exchange", "remeasure", "2026-10") == [
        {"legal_entity": "default", "loss": "0", "problem": None}
    ]
    assert finance("exchange", "remeasure", "2026").returncode == 2


def test_a_journal_entry_by_hand_is_proposed_from_a_file(finance: Run, tmp_path: Path) -> None:
    file = tmp_path / "entry.yaml"
    file.write_text(
        'effective_at: "2026-10-20T12:00:00Z"\nmemo: written off\nlegs:\n'
        '  - {account: 5200, currency: USD, amount: "12.50"}\n'
        '  - {account: 1100, currency: USD, amount: "-12.50", subledger: acme}\n'
    )
    assert finance("ledger", "post", str(file), "--document", "court 7", "--as", "ada").returncode == 0
    assert finance("approval", "reject", "1", "--reason", "no", "--as", "bob").returncode == 0
    assert rows(finance, "ledger", "entries") == []
    assert finance("ledger", "post", str(file), "--document", "court 7", "--as", "ada").returncode == 0
    assert finance("approval", "approve", "2", "--as", "bob").returncode == 0
    assert {entry["kind"] for entry in rows(finance, "ledger", "entries")} == {"manual"}
    refused = finance("ledger", "close", "2026-10", "--document", "r", "--as", "ada")
    assert (refused.returncode, "`tollbook close run 2026-10`" in refused.stderr) == (1, True)
    assert finance("ledger", "close", "2025-12", "--document", "r", "--as", "ada").returncode == 0
    number = str(max(each["proposal"] for each in rows(finance, "approval", "list")))
    assert f"proposal {number}: approved" in finance("approval", "approve", number, "--as", "bob").stdout
