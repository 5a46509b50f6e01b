"""Every check of `reconcile run` finds what was changed in the record it looks at: one test a record."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from billing.database import raw, transaction
from billing.ledger.journal import AccountCode, JournalEntry, Posting
from billing.ledger.ledger_store import post
from serving_adapter.topics import ensure_topics
from streams.workers import status
from streams.workers.status import PartitionStatus
from tests.billing_builders import NOVEMBER, OCTOBER
from tests.integration.reconciliation.conftest import PARTITION, Line, event, found

IN_KAFKA = "everything in Kafka is applied"
ONE_OUTCOME = "every message has one outcome"
STORED = "what was counted is stored"
IN_MINUTE = "events are in their minute"
IN_HOUR = "events are in their hour"
RATED = "usage is rated"
ACCRUED = "rated lines are accrued"
BOOKED = "issued invoices are booked"
EXPLAINED = "the books are explained"
INVOICED = "rated lines are invoiced"
AS_DRAWN_UP = "invoices are as drawn up"
ADD_UP = "invoices add up"
ISSUED = "invoices are issued"
NUMBERED = "numbers have no gaps"
BALANCE = "the books balance"
IN_STRIPE = "finalized invoices are in Stripe"


def test_a_month_that_went_its_way_agrees(line: Line) -> None:
    report = line.reconcile()
    assert found(report) == {}
    # What compared nothing proves nothing: nobody has credits or has paid in it
    nothing = [check.name for check in report.checks if not check.compared]
    assert nothing == ["credits are as registered", "money in Stripe is booked once"]


@pytest.mark.parametrize(
    ("table", "statement", "checks"),
    [
        ("usage.events", "update usage.events set output_tokens = output_tokens + 1 where request_id = 'req-1'",
         {IN_MINUTE, IN_HOUR, RATED}),
        ("usage.events", "delete from usage.events where request_id = 'req-1'", {STORED, IN_MINUTE, IN_HOUR, RATED}),
        ("usage.windows_1m", "update usage.windows_1m set output_tokens = output_tokens + 1", {IN_MINUTE}),
        ("usage.windows_1h", "update usage.windows_1h set output_tokens = output_tokens + 1", {IN_HOUR}),
        ("usage.applied_chunks", "delete from usage.applied_chunks", {ONE_OUTCOME, STORED}),
        ("usage.quarantine", "delete from usage.quarantine", {STORED}),
        ("ledger.rated_lines", "update ledger.rated_lines set quantity = quantity + 1 where metric = 'output'",
         {RATED}),
        ("ledger.rated_lines", "update ledger.rated_lines set amount = amount + 0.000000000001 where metric = 'output'",
         {ACCRUED, INVOICED, EXPLAINED}),
        ("ledger.rated_lines", "delete from ledger.rated_lines where metric = 'output'",
         {RATED, ACCRUED, INVOICED, EXPLAINED}),
        ("ledger.postings",
         "update ledger.postings set amount = amount + 0.000000000001 where account_id ="
         " (select account_id from ledger.accounts where code = 4000)", {EXPLAINED, BALANCE}),
        ("ledger.postings",
         "update ledger.postings set amount = amount * 2 where entry_id in"
         " (select entry_id from ledger.journal_entries where kind = 'accrual')", {ACCRUED, EXPLAINED}),
        ("ledger.postings",
         "update ledger.postings set amount = amount * 2 where entry_id in"
         " (select entry_id from ledger.journal_entries where kind = 'invoice')", {BOOKED, EXPLAINED}),
        ("ledger.invoice_lines",
         "update ledger.invoice_lines set amount_minor = amount_minor + 1 where metric = 'output'",
         {AS_DRAWN_UP, ADD_UP, IN_STRIPE}),
        ("ledger.invoice_lines", "delete from ledger.invoice_lines where metric = 'output'",
         {AS_DRAWN_UP, ADD_UP, INVOICED, BOOKED, EXPLAINED, IN_STRIPE}),
        ("ledger.invoices", "update ledger.invoices set lines_hash = repeat('0', 64)", {AS_DRAWN_UP}),
        ("ledger.invoices", "update ledger.invoices set revision = 1", {AS_DRAWN_UP, IN_STRIPE}),
        ("ledger.invoices", "update ledger.invoices set net_minor = net_minor + 1, total_minor = total_minor + 1",
         {ADD_UP, BOOKED, EXPLAINED}),
        ("ledger.invoices", "update ledger.invoices set amount_due_minor = amount_due_minor + 1", {ADD_UP, IN_STRIPE}),
        ("ledger.invoices", "update ledger.invoices set rounding = 0.001", {ADD_UP, BOOKED, EXPLAINED}),
        ("ledger.invoices", "update ledger.invoices set due_date = due_date + 1", {IN_STRIPE}),
        ("ledger.invoices", "update ledger.invoices set number = 'INV-7'", {NUMBERED, IN_STRIPE}),
        ("ledger.invoices", "update ledger.invoices set state = 'paid'", {IN_STRIPE}),
        ("ledger.invoices", "update ledger.invoices set stripe_invoice_id = 'in_other'", {IN_STRIPE}),
        ("ledger.invoices", "update ledger.invoices set state = 'approved'", {ISSUED, BOOKED, EXPLAINED}),
    ],
)  # fmt: skip
def test_a_record_changed_by_the_owner_is_found(line: Line, table: str, statement: str, checks: set[str]) -> None:
    line.tamper(table, statement)
    assert found(line.reconcile()).keys() == checks


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"total": 603}, "total"),
        ({"amount_due": 603}, "amount_due"),
        ({"customer": "cus_other"}, "customer"),
        ({"status": "paid"}, "status"),
        ({"status": "uncollectible"}, "status"),
        ({"status": "void"}, "status"),
        ({"due_date": 1}, "due_date"),
        ({"auto_advance": True}, "auto_advance"),
        ({"collection_method": "charge_automatically"}, "collection_method"),
        ({"number": "INV-7"}, "number"),
        ({"currency": "eur"}, "currency"),
        ({"starting_balance": -1}, "starting_balance"),
        ({"metadata": {}}, "metadata lines_hash"),
    ],
)
def test_an_invoice_changed_in_stripe_is_found(line: Line, changed: dict[str, Any], told: str) -> None:
    line.tamper_stripe("invoice", **changed)
    (differences,) = found(line.reconcile()).values()
    assert any(key.endswith(f"/{told}") for key in differences), differences


def test_a_line_changed_in_stripe_is_found(line: Line) -> None:
    line.tamper_stripe("invoiceitem", amount=1)
    assert found(line.reconcile()).keys() == {IN_STRIPE}


def test_an_invoice_that_is_gone_from_stripe_is_found(line: Line) -> None:
    line.tamper_stripe("invoice", _deleted=True)
    assert found(line.reconcile()).keys() == {IN_STRIPE}


@pytest.mark.parametrize("finalized", [True, False])
def test_another_invoice_of_our_customer_is_found_whatever_it_says_it_is(line: Line, finalized: bool) -> None:
    extra = line.stripe.v1.invoices.create(
        {"customer": line.customer, "collection_method": "send_invoice", "days_until_due": 30}
    )
    line.stripe.v1.invoice_items.create(
        {"customer": line.customer, "invoice": extra.id, "amount": 500, "currency": "usd"}
    )
    if finalized:
        line.stripe.v1.invoices.finalize_invoice(extra.id)
    ((key,),) = found(line.reconcile()).values()
    assert extra.id in key
    line.stripe.v1.invoices.void_invoice(extra.id) if finalized else line.stripe.v1.invoices.delete(extra.id)
    assert found(line.reconcile()) == {}


def test_our_invoices_of_other_months_are_no_difference(line: Line) -> None:
    line.send_events(event(4, timestamp="2026-11-01T10:00:00Z"))
    assert line.close(NOVEMBER).problems == []
    assert (found(line.reconcile()), found(line.reconcile(NOVEMBER))) == ({}, {})


def test_a_topic_that_is_ahead_is_found(line: Line) -> None:
    line.produce(event(4))
    assert found(line.reconcile()) == {IN_KAFKA: [f"kafka:{line.topic}/0"]}


def test_a_topic_that_was_made_again_is_found_though_it_is_as_long_as_before(line: Line) -> None:
    admin = AdminClient(line.kafka.client())
    admin.delete_topics([line.topic])[line.topic].result()
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline, "the topic does not go away"
        try:
            if line.topic not in admin.list_topics().topics and line.topic in ensure_topics(line.kafka):
                break
        except KafkaException:
            pass
        time.sleep(0.1)
    line.produce(event(1), event(2), event(3), b"torn")
    assert found(line.reconcile()).keys() == {IN_KAFKA}
    seen = shown(line)
    assert seen.lag is None
    assert "made again" in str(seen.stopped_because)


def test_a_log_that_ends_before_its_position_is_found_and_has_no_lag(line: Line) -> None:
    line.execute("update usage.sources set next_position = next_position + 1 where next_position > 0")
    assert found(line.reconcile()) == {
        IN_KAFKA: [f"kafka:{line.topic}/0"], ONE_OUTCOME: [f"kafka:{line.topic}/0"],
    }  # fmt: skip
    seen = shown(line)
    assert seen.lag is None
    assert "truncated" in str(seen.stopped_because)


def shown(line: Line) -> PartitionStatus:
    """What `streams status` shows of the partition in use."""
    with transaction(line.engine) as connection:
        return status.partitions(raw(connection), line.log())[PARTITION]


def test_a_tenant_without_a_subscription_is_found(line: Line) -> None:
    line.tenant("bolt")
    line.send_events(event(4, tenant_id="bolt"))
    assert "bolt" in line.close().problems[0]
    assert found(line.reconcile()) == {RATED: ["bolt/without a subscription/requests"]}


def test_usage_before_a_subscription_begins_is_found(line: Line) -> None:
    line.tenant("bolt")
    line.subscribe("bolt", starts_at=NOVEMBER.start)
    line.send_events(event(4, tenant_id="bolt"))
    assert found(line.reconcile()) == {RATED: ["bolt/without a subscription/requests"]}


def test_late_usage_after_the_invoice_is_found(line: Line) -> None:
    line.send_events(event(4))
    assert found(line.reconcile()).keys() == {RATED}


def test_usage_without_a_price_is_found(line: Line) -> None:
    line.plan(
        "plan: q\ncurrency: USD\nversions:\n  - version: v1\n    from: 2026-01-01\n    charges:\n"
        '      - {key: out, model: per_unit, metric: gpu_second, price: "1", where: {model: other}}\n'
    )
    line.tenant("bolt")
    line.subscribe("bolt", plan="q")
    line.send_events(event(4, tenant_id="bolt"))
    line.close()
    assert [key.split(":")[0] for key in found(line.reconcile())[RATED]] == ["bolt/problem"]


def test_a_draft_of_a_month_that_has_ended_is_found(line: Line) -> None:
    line.customers("bolt")
    line.send_events(event(4, tenant_id="bolt"))
    line.rate()
    line.draft()
    assert found(line.reconcile()).keys() == {ISSUED}


def test_a_balanced_manual_entry_is_found(line: Line) -> None:
    million = Decimal(1_000_000)
    legs = (
        Posting(AccountCode.UNBILLED_RECEIVABLE, "USD", million, "acme"),
        Posting(AccountCode.USAGE_REVENUE, "USD", -million),
    )
    with transaction(line.engine) as connection:
        post(connection, [JournalEntry("manual:1", "manual", "default", "2026-10", OCTOBER.start, legs)])
    assert found(line.reconcile()) == {EXPLAINED: ["1150/acme/USD", "revenue//USD"]}
