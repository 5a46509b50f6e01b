"""`tollbook account`, and what of it stands on documents."""

from __future__ import annotations

import json
from pathlib import Path

from billing.database import engine_for
from tests.integration.billing.conftest import World
from tests.integration.console.conftest import Run


def test_accounts_are_made_described_and_shown(run: Run) -> None:
    assert run("account", "add", "acme", "--as", "ada").returncode == 1  # without a currency
    made = run(
        "account", "add", "acme", "--currency", "EUR", "--payment-terms", "14", "--name", "Acme Inc", "--as", "ada"
    )
    assert made.returncode == 0, made.stderr
    assert run("account", "add", "acme", "--country", "us", "--purchase-order", "PO-1", "--as", "ada").returncode == 0
    assert run("account", "add", "acme", "--country", "Narnia", "--as", "ada").stderr.startswith("tollbook: country: ")
    assert run("account", "add", "acme", "--city", "Nowhere", "--dry-run", "--as", "ada").returncode == 0
    assert run("account", "add", "acme", "--currency", "USD", "--as", "ada").returncode == 1
    assert run("account", "add", "default", "--entity", "--name", "Tollbook GmbH", "--as", "ada").returncode == 0
    assert "--currency" in run("account", "add", "eu", "--entity", "--as", "ada").stderr
    assert run("account", "add", "eu", "--entity", "--currency", "EUR", "--as", "ada").returncode == 0
    assert "other letters" in run("account", "add", "EU", "--entity", "--currency", "EUR", "--as", "ada").stderr
    assert run("account", "add", "eu", "--entity", "--currency", "USD", "--as", "ada").returncode == 1
    theirs = ("account", "add", "beta", "--currency", "EUR", "--legal-entity", "eu", "--as", "ada")
    assert run(*theirs).returncode == run(*theirs).returncode == 0
    (shown,) = json.loads(run("account", "show", "acme", "--json").stdout)
    expected = {"name": "Acme Inc", "currency": "EUR", "payment_terms_days": 14, "country": "US", "city": ""}
    assert shown == shown | expected | {"purchase_order": "PO-1"}
    listed = json.loads(run("account", "list", "--json").stdout)
    assert [row["name"] for row in listed] == ["Tollbook GmbH", "eu", "Acme Inc", "beta"]
    assert run("account", "show", "nobody").returncode == 1
    assert "account.describe" in {act["action"] for act in json.loads(run("audit", "list", "--json").stdout)}


def test_a_document_says_what_was_recorded_before_it_was_issued(
    run: Run, own_database_url: str, tmp_path: Path
) -> None:
    engine = engine_for(own_database_url)
    world = World(engine)
    world.customers("acme")
    world.use("acme", output_tokens=5000)
    world.rate()
    world.draft()
    for side in (("acme",), ("default", "--entity")):
        assert run("account", "add", *side, "--country", "DE", "--as", "ada").returncode == 0
    (invoice,) = json.loads(run("invoice", "list", "--json").stdout)
    assert (invoice["seller"]["country"], invoice["buyer"]["country"]) == ("DE", "DE")
    world.execute(
        "insert into ledger.invoice_transitions (invoice_id, from_state, to_state, at, actor)"
        " select invoice_id, 'draft', 'approved', now(), 'ada' from ledger.invoices"
    )
    assert run("account", "add", "acme", "--country", "AT", "--as", "ada").returncode == 0
    page, norm = tmp_path / "i.html", tmp_path / "i.xml"
    done = run("invoice", "show", invoice["invoice_id"], "--json", "--html", str(page))
    assert json.loads(done.stdout)["buyer"]["country"] == "DE"
    assert "<div>DE</div>" in page.read_text()
    refused = run("invoice", "show", invoice["invoice_id"], "--ubl", str(norm))
    assert (refused.returncode, norm.exists()) == (1, False)
    assert "no number" in refused.stderr
    engine.dispose()
