"""Fees in advance are earned by the second, and their parts add up."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from billing.bills.tax import TaxMode, TaxRules
from billing.invoicing.invoices import Invoice, InvoiceIdentity, InvoiceKind, draw_up
from billing.ledger.journal import AccountCode
from billing.money import total
from billing.periods import BillingPeriod
from billing.plans.charge_models import Flat
from billing.plans.price_plans import Charge, Filters
from billing.plans.schedules import MONTHLY
from billing.posting.deferrals import Deferred, deferred_by_tenant, earned_by_tenant
from billing.posting.posting_rules import Booking, fees_earned, invoice_issued
from billing.rating.lines import LineKind, RatedLine
from billing.rating.period import line_of
from tests.billing_builders import NOVEMBER, NOW, OCTOBER, cut, version

SERVICE = BillingPeriod(OCTOBER.start + timedelta(days=15, hours=12), NOVEMBER.end)
TAXED = TaxRules(TaxMode.INCLUSIVE, {"std": Decimal("0.19")})


def line(amount: str, key: str = "base", service: BillingPeriod = SERVICE) -> RatedLine:
    (piece,) = cut([version()])

    made = line_of(piece, Charge(key, "", Filters(), Flat(Decimal(1))), LineKind.FEE, Decimal(amount))
    return replace(made, service_start=service.start, service_end=service.end)


def invoice(*lines: RatedLine, tax: TaxRules | None = None) -> Invoice:
    identity = InvoiceIdentity("default", "tenant_1", InvoiceKind.ADVANCE, SERVICE, "USD")
    return draw_up(identity, lines, plan_versions={"p": 1}, **({} if tax is None else {"tax": tax}))


def test_half_a_months_time_earns_its_share() -> None:
    # 15.5 days of October and 30 of November.
    assert earned_by_tenant(invoice(line("45.5")), OCTOBER) == {"tenant_1": Decimal("15.5")}
    assert earned_by_tenant(invoice(line("45.5")), NOVEMBER) == {"tenant_1": Decimal("30")}


@given(
    amount=st.decimals("-1e6", "1e6", places=12),
    offset=st.timedeltas(timedelta(0), timedelta(days=400)),
    seconds=st.integers(1, 40_000_000),
)
def test_the_parts_of_all_months_add_up_to_the_fee(amount: Decimal, offset: timedelta, seconds: int) -> None:
    start = OCTOBER.start + offset
    of = Deferred("t", BillingPeriod(start, start + timedelta(seconds=seconds)), amount)
    months = MONTHLY.periods(start, of.service.end)
    assert total(of.earned_in(month) for month in months) == amount


def test_the_tax_that_a_price_contains_is_not_deferred() -> None:
    made = invoice(line("119"), line("11.90", "other"), tax=TAXED)
    assert deferred_by_tenant(made) == {"tenant_1": Decimal("110")}
    entry = invoice_issued(made, now=NOW)
    assert entry is not None
    assert {(leg.account, leg.amount) for leg in entry.postings} == {
        (AccountCode.ACCOUNTS_RECEIVABLE, Decimal("130.9")),
        (AccountCode.DEFERRED_FEES, Decimal("-110")),
        (AccountCode.TAX_PAYABLE, Decimal("-20.9")),
    }


def test_what_is_earned_moves_from_the_liability_to_income() -> None:
    booking = Booking("k", "default", "2026-10", OCTOBER.end - timedelta(seconds=1))
    entry = fees_earned(invoice(line("45.5")), OCTOBER, booking=booking)
    assert entry is not None
    assert [(leg.account, leg.subledger, leg.amount) for leg in entry.postings] == [
        (AccountCode.DEFERRED_FEES, "tenant_1", Decimal("15.5")),
        (AccountCode.FEE_REVENUE, "", Decimal("-15.5")),
    ]
    before = BillingPeriod(datetime(2026, 9, 1, tzinfo=UTC), OCTOBER.start)
    assert fees_earned(invoice(line("45.5")), before, booking=booking) is None
