"""`reconcile run` over a month with credits and tax: it agrees, and what was changed in their records is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from billing.bills.credits import Grant, GrantKind
from billing.bills.tax import TaxMode, TaxRules
from billing.commands.decide_proposal import decide, propose
from billing.commands.grant_credit import grant_credit
from billing.commands.set_tax import set_tax
from billing.invoicing.credit_store import GivenCredit
from billing.invoicing.tax_store import DatedTaxRules
from billing.money import total
from billing.periods import parse_period
from billing.posting.proposal_store import ProposalKind
from billing.reports.report import Report
from tests.billing_builders import NOVEMBER, NOW, OCTOBER, SINCE
from tests.integration.reconciliation.conftest import Line, event, found

BOOKED, EXPLAINED = "issued invoices are booked", "the books are explained"
DECEMBER = parse_period("2026-12")
OWED, DRAWN, REGISTERED = "credits are owed", "credits are drawn as invoiced", "credits are as registered"
ADD_UP, AS_DRAWN_UP, IN_STRIPE = "invoices add up", "invoices are as drawn up", "finalized invoices are in Stripe"
PROMO = Grant("promo", GrantKind.PROMO, Decimal("0.5"), "USD", SINCE, granted_at=SINCE)
PAID = replace(PROMO, grant_id="paid", kind=GrantKind.PAID, amount=Decimal("0.75"))
EXPIRED = replace(PAID, grant_id="gone", amount=Decimal(3), expires=NOVEMBER.start)


def two_people(line: Line, kind: ProposalKind, subject: str, content: dict[str, object]) -> None:
    number = propose(line.engine, kind, subject, content, document="paper", now=NOW, actor="ada")
    decide(line.engine, number, approved=True, now=NOW, actor="bob")


@pytest.fixture
def november(line: Line) -> Line:
    """A month in which credits reduce the price and pay, prices contain tax, and a third credit has expired."""
    rules = TaxRules(TaxMode.INCLUSIVE, {"std": Decimal("0.19")})
    set_tax(line.engine, DatedTaxRules("acme", rules, NOVEMBER.start, ""), actor="ada")
    for grant in (PROMO, PAID, EXPIRED):
        grant_credit(line.engine, GivenCredit(grant, "acme", "because"), actor="ada")
    for paid in (PAID, EXPIRED):
        two_people(line, ProposalKind.SETTLE_CREDIT, paid.grant_id, {"paid_at": SINCE.isoformat()})
    legs = [{"account": 5200, "currency": "USD", "amount": "1"},
            {"account": 1100, "currency": "USD", "amount": "-1", "subledger": "acme"}]  # fmt: skip
    content = {"effective_at": NOW.isoformat(), "memo": "written off", "legs": legs}
    two_people(line, ProposalKind.POST_ENTRY, "default", content)
    at = NOVEMBER.start + timedelta(hours=3)
    line.send_events(event(4, timestamp=at.isoformat()), event(5, timestamp=(at + timedelta(days=9)).isoformat()))
    assert line.close(NOVEMBER).problems == []
    return line


def test_a_month_with_credits_and_tax_agrees(november: Line) -> None:
    report = november.reconcile(NOVEMBER)
    assert found(report) == {}
    compared = {check.name: check.compared for check in report.checks}
    assert compared[DRAWN] == 2
    # 4.00 and what else the events cost, less 0.50, of which 0.75 are paid by credit.
    assert november.rows("select sum(amount_minor) from ledger.invoice_credits where tax_treatment = 'payment'") == [
        (Decimal(75),)
    ]
    assert_reports_tie(november)


def shown(report: Report, *columns: str) -> list[tuple[object, ...]]:
    return [tuple(row[name] for name in columns) for row in report.rows]


def assert_reports_tie(line: Line) -> None:
    """Each report of each month ties to the books; what was changed past them is told by the one that shows it."""
    assert line.reports_tie(OCTOBER, NOVEMBER, DECEMBER)
    november, december = line.reports(NOVEMBER), line.reports(DECEMBER)
    # 1000 tokens at 0.002, 6 at 0.001, 4 cached at 0.0005; a credit of 3 that nobody used
    assert shown(november["revenue"], "model", "usage", "breakage") == [("", 0, 3), ("llama", Decimal("2.008"), 0)]
    assert shown(november["credits"], "grant_id", "opening", "expired", "closing") == [
        ("gone", 3, -3, 0), ("paid", Decimal("0.75"), 0, Decimal("0.75")), ("promo", Decimal("0.5"), 0, Decimal("0.5")),
    ]  # fmt: skip
    # both invoices are issued in December: 6.02, and 2.01 less 0.50 of which 0.75 are paid; 1 was written off
    assert shown(december["ageing"], "billing_account", "open", "not_due") == [
        ("acme", Decimal("5.78"), Decimal("5.78"))
    ]
    assert shown(december["tax"], "mode", "net", "tax") == [
        ("inclusive", Decimal("1.27"), Decimal("0.24")), ("none", Decimal("6.02"), 0),
    ]  # fmt: skip
    assert total(row["BilledCost"] for row in november["focus"].rows) == Decimal("0.76")
    line.tamper("ledger.rated_lines", "update ledger.rated_lines set amount = amount * 2")
    line.tamper("ledger.invoice_lines", "update ledger.invoice_lines set amount_minor = amount_minor + 1")
    red = {name for name, report in line.reports(NOVEMBER).items() if not report.holds}
    assert red == {"revenue", "focus"}


TAMPERED: tuple[tuple[str, str, set[str]], ...] = (
    ("ledger.credit_movements", "update ledger.credit_movements set amount = amount / 2 where grant_id = 'paid'",
     {OWED, DRAWN, REGISTERED}),
    ("ledger.credit_movements", "delete from ledger.credit_movements where kind = 'expired'",
     {OWED, REGISTERED}),
    ("ledger.credit_movements", "update ledger.credit_movements set amount = amount / 2 where grant_id = 'promo'",
     {EXPLAINED, DRAWN, REGISTERED}),
    ("ledger.invoice_credits", "update ledger.invoice_credits set amount = amount / 2 where grant_id = 'promo'",
     {AS_DRAWN_UP, BOOKED, DRAWN, IN_STRIPE}),
    ("ledger.invoice_taxes", "update ledger.invoice_taxes set tax_minor = tax_minor + 1",
     {AS_DRAWN_UP, ADD_UP, IN_STRIPE}),
    ("ledger.postings", "update ledger.postings set amount = amount * 2 where account_id in"
     " (select account_id from ledger.accounts where code = 2200)",
     {BOOKED, EXPLAINED, "the books balance"}),
    ("ledger.decisions", "delete from ledger.decisions where proposal_no = 3", {EXPLAINED}),
)  # fmt: skip


def test_what_was_changed_is_found(november: Line) -> None:
    undo: Callable[[str], list[tuple[object, ...]]] = november.rows
    for table, statement, checks in TAMPERED:
        copy = f"{table.replace('ledger.', 'ledger.kept_')}"
        november.as_owner(f"create table {copy} as table {table}", f"grant select on {copy} to tollbook_app")
        november.tamper(table, statement)
        assert found(november.reconcile(NOVEMBER)).keys() == checks, statement
        columns = [name for (name,) in undo(f"select column_name from information_schema.columns where"
                   f" table_schema || '.' || table_name = '{table}' order by ordinal_position")]  # fmt: skip
        listed = ", ".join(str(name) for name in columns)
        november.tamper(table, f"delete from {table}")
        november.tamper(table, f"insert into {table} ({listed}) overriding system value select {listed} from {copy}")
        november.as_owner(f"drop table {copy}")
    assert found(november.reconcile(NOVEMBER)) == {}
