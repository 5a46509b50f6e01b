"""`tollbook invoice void | credit-note | write-off | refund | pay` and `tollbook dispute`, as finance uses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from billing.database import engine_for
from billing.settings import StripeSettings
from billing.stripe.stripe_gateway import StripeGateway
from tests.fixtures_stripe_twin import StripeTwin, act
from tests.integration.billing.conftest import World
from tests.integration.billing.stripe_months import finalized
from tests.integration.console.conftest import Run

ACCOUNTS = ("acme", "bolt", "cord", "dent")


@pytest.fixture
def sent(own_database_url: str, stripe_twin: StripeTwin, run: Run, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Finalized invoices of 20.00 by account; the command line knows the twin."""
    monkeypatch.setenv("TOLLBOOK_STRIPE_KEY", stripe_twin.key)
    monkeypatch.setenv("TOLLBOOK_STRIPE_API", stripe_twin.url)
    engine = engine_for(own_database_url)
    found = finalized(World(engine), StripeGateway(StripeSettings(stripe_twin.key, stripe_twin.url)), *ACCOUNTS)
    engine.dispose()
    return found


def said(run: Run, *arguments: str) -> str:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def found(run: Run, *arguments: str) -> Any:
    return json.loads(said(run, *arguments, "--json"))


def test_finance_corrects_invoices_and_answers_a_dispute(
    run: Run, stripe_twin: StripeTwin, sent: dict[str, str], tmp_path: Path
) -> None:
    acme, bolt, cord, dent = (sent[name] for name in ACCOUNTS)
    by = ("--as", "ada")
    test = ("--reason", "slow", "--test", *by)

    over = ("invoice", "credit-note", acme, "--amount", "5", *test)
    assert "would be issued: credit note CN-000001" in said(run, *over, "--dry-run")
    assert run("invoice", "credit-note", acme, *test).returncode == 2
    charge = act(stripe_twin, "pay", invoice=acme)["id"]
    assert "credit_note: done in Stripe (cn_" in said(run, *over)
    assert run(*over).returncode == 1, "the same once more is refused"
    refused = run("invoice", "refund", acme, "--amount", "-5", *test)
    assert (refused.returncode, refused.stderr.splitlines()) == (1, ["tollbook: -5 is no amount: say more than 0"])
    assert "from 1 payments" in said(run, "invoice", "refund", acme, "--amount", "2", *test, "--dry-run")
    assert "refund: done in Stripe (re_" in said(run, "invoice", "refund", acme, "--credit-note", "CN-000001", *test)
    assert [r.amount for r in stripe_twin.client().v1.refunds.list().data] == [500]

    for verb, of in ((("write-off",), bolt), (("pay", "--out-of-band"), cord)):
        told = said(run, "invoice", verb[0], of, *verb[1:], "--document", "letter 7", *by)
        number = told.split()[1].rstrip(":")
        assert run("approval", "approve", number, *by).returncode == 1
        said(run, "approval", "approve", number, "--as", "bob")
    assert run("invoice", "pay", cord, "--document", "d", *by).returncode == 2
    ahead = found(run, "stripe", "sync", "--test", "--dry-run")
    assert (ahead["booked"], ahead["corrected"], ahead["events"] > 0) == (2, 2, True)
    assert found(run, "stripe", "sync", "--test", "--dry-run") == ahead, "nothing was done"
    done = found(run, "stripe", "sync", "--test")
    assert (done["corrected"], done["booked"]) == (2, 2)

    assert "can be voided" in said(run, "invoice", "void", dent, *test, "--dry-run")
    assert "drawn up anew: adjustment of 2026-10" in said(run, "invoice", "void", dent, "--reissue", *test)
    states = {row["stripe_invoice_id"]: row["state"] for row in found(run, "invoice", "list")}
    assert [states[of] for of in (acme, bolt, cord, dent)] == ["paid", "uncollectible", "paid", "void"]
    assert "collection: uncollectible, 20.00 left to pay" in said(run, "invoice", "show", bolt)

    dispute = act(stripe_twin, "dispute", charge=charge)["id"]
    refused = run("stripe", "sync", TOLLBOOK_STRIPE_API="")
    assert refused.returncode == 2, refused.stderr
    assert "say --test" in refused.stderr, "a test key of Stripe itself needs --test"
    said(run, "stripe", "sync", *by)  # a twin's does not
    (listed,) = found(run, "dispute", "list")
    assert (listed["dispute_id"], listed["amount"], listed["status"]) == (dispute, "15", "needs_response")
    folder = tmp_path / "evidence"
    evidence = ("dispute", "evidence", dispute, "--to", str(folder), *by)
    assert "5 files and SHA256SUMS" in said(run, *evidence)
    assert "would be submitted" in said(run, *evidence, "--submit", "--test", "--dry-run")
    assert said(run, *evidence, "--submit", "--test").endswith("submitted\n")
    assert "was submitted before, by ada" in said(run, *evidence, "--submit", "--test")
    assert {file.name for file in folder.iterdir()} >= {"usage_by_day.csv", "requests.jsonl", "invoice.json"}
    assert [each["state"] for each in found(run, "dispute", "show", dispute)["evidence"]] == ["done"]
    acts = {entry["action"] for entry in found(run, "audit", "list")}
    assert acts >= {"invoice.credit_note", "invoice.refund", "invoice.void", "invoice.write_off", "dispute.evidence"}
