"""Disputes from the first inquiry to the end, in any currency, and their evidence: files made from usage."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from billing.commands.correct_invoice import credit_invoice
from billing.commands.dispute_evidence import (
    dispute_document,
    dispute_list,
    submit_evidence,
    write_evidence,
)
from billing.commands.send_corrections import send_corrections
from billing.commands.show_invoices import invoice_document
from billing.errors import CorrectionRefused, UnknownDispute
from billing.invoicing.invoice_check import check_events
from billing.invoicing.invoice_file import read_invoice_file
from billing.stripe import returns
from billing.stripe.stripe_gateway import StripeGateway
from streams.retention.archive_files import Archive
from tests.billing_builders import OCTOBER
from tests.fixtures_stripe_twin import StripeTwin, act
from tests.integration.billing.conftest import World
from tests.integration.billing.late_months import Arrivals, used
from tests.integration.billing.stripe_months import books, finalized, sync

NOW = datetime(2026, 12, 3, tzinfo=UTC)


def no_archive() -> Archive:
    raise AssertionError("nothing is archived")


def test_a_dispute_is_known_with_its_invoice_and_its_money_comes_and_goes(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = finalized(world, gateway, "acme", "bolt")
    eur: dict[str, Any] = {"settle": "eur", "rate": "0.9"}
    paid = {name: act(stripe_twin, "pay", invoice=invoice, **eur)["id"] for name, invoice in sent.items()}
    inquiry = act(stripe_twin, "dispute", charge=paid["acme"], inquiry=True)["id"]
    sync(world, gateway)
    assert books(world).get(1180, 0) == 0
    act(stripe_twin, "decide", dispute=inquiry, won=True)
    won, lost = (act(stripe_twin, "dispute", charge=paid[name], amount=1500)["id"] for name in ("acme", "bolt"))
    sync(world, gateway)
    by_id = {row["dispute_id"]: row for row in dispute_list(world.engine)}
    assert (by_id[inquiry]["status"], by_id[won]["status"]) == ("warning_closed", "needs_response")
    assert by_id[won]["billing_account"] == "acme"
    assert by_id[won]["invoice_id"] == invoice_document(world.engine, sent["acme"])["invoice_id"]
    assert books(world)[1180] == 30, "what was paid in dollars is disputed in dollars"
    act(stripe_twin, "decide", dispute=won, won=True)
    act(stripe_twin, "decide", dispute=lost, won=False)
    with monkeypatch.context() as patch:
        # A bank need not withdraw what the dispute is over: what it did withdraw is lost.
        over_more = returns.dispute
        patch.setattr(returns, "dispute", lambda *of: replace(found := over_more(*of), amount=found.amount + 300))
        sync(world, gateway)
    now = books(world)
    assert (now.get(1180, 0), now[4930], now[5110]) == (0, 15, 30)
    assert {row["status"] for row in dispute_list(world.engine)} == {"warning_closed", "won", "lost"}
    # The bank gives a lost one back after all, and it stands as one that was won.
    act(stripe_twin, "reinstate", dispute=lost)
    for _ in range(2):
        sync(world, gateway)
    now = books(world)
    assert (now.get(1180, 0), now[4930], now[5110]) == (0, 0, 30)
    assert {row["status"] for row in dispute_list(world.engine)} == {"warning_closed", "won"}
    with pytest.raises(CorrectionRefused, match="evidence is not taken any more"):
        submit_evidence(world.engine, lost, {}, actor="ada")
    with pytest.raises(UnknownDispute):
        dispute_document(world.engine, "du_nobody")


def test_evidence_is_made_from_usage_and_submitted_once(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, own_database_url: str, tmp_path: Path
) -> None:
    world.customers("acme")
    begins = OCTOBER.start
    Arrivals(own_database_url).apply(
        *(used(f"r{n}", begins + timedelta(days=n % 2, hours=n), 2000, model="llama") for n in range(5))
    )
    world.rate()
    world.draft()
    sent = {i.billing_account: str(i.stripe_invoice_id) for i in world.send(gateway).invoices}
    charge = act(stripe_twin, "pay", invoice=sent["acme"])["id"]
    dispute = act(stripe_twin, "dispute", charge=charge)["id"]
    sync(world, gateway)
    written = write_evidence(world.engine, no_archive, dispute, tmp_path / "a")
    again = write_evidence(world.engine, no_archive, dispute, tmp_path / "b")
    assert written.files == again.files
    for name, digest in written.files.items():
        assert hashlib.sha256((tmp_path / "a" / name).read_bytes()).hexdigest() == digest
    document = json.loads((tmp_path / "a" / "invoice.json").read_text())
    assert document["stripe_invoice_id"] == sent["acme"]
    assert str(document["usage_digest"]) in written.texts["uncategorized_text"]
    with (tmp_path / "a" / "usage_by_day.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [(row["day"], row["model"], row["requests"], row["output_tokens"]) for row in rows] == [
        ("2026-10-01", "llama", "3", "6000"), ("2026-10-02", "llama", "2", "4000"),
    ]  # fmt: skip
    events = [json.loads(line) for line in (tmp_path / "a" / "requests.jsonl").read_text().splitlines()]
    assert [event["request_id"] for event in events] == ["r0", "r2", "r4", "r1", "r3"]
    of = read_invoice_file((tmp_path / "a" / "invoice.json").read_bytes())
    assert check_events(of, (tmp_path / "a" / "requests.jsonl").read_bytes().splitlines(keepends=True)) == []
    assert "5 requests" in written.texts["product_description"]
    assert "2026-10-02" in written.texts["access_activity_log"]
    less = {"std": Decimal(1)}
    credit_invoice(world.engine, sent["acme"], less, reason="it is not told yet", now=NOW, actor="ada")
    for _ in range(2):
        made = submit_evidence(world.engine, dispute, written.texts, actor="ada")
        send_corrections(world.engine, gateway=gateway, now=NOW, correction_nos=[made.correction_no])
    theirs = stripe_twin.client().v1.disputes.retrieve(dispute)
    assert (theirs.status, theirs.evidence_details.submission_count) == ("under_review", 1)
    assert theirs.evidence.product_description == written.texts["product_description"]
    sync(world, gateway)
    shown = dispute_document(world.engine, dispute)
    assert (shown["submissions"], [each["state"] for each in shown["evidence"]]) == (1, ["done"])
