"""Which entry a business fact makes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from billing.ledger.journal import AccountCode, balances
from billing.plans.price_plans import Metric
from billing.posting.posting_rules import accrual, invoice_issued
from billing.rating import LineKind
from tests.billing_builders import NOW, OCTOBER, bill, charge, invoice, rated, usage, version

PLAN = version(charge("out", Metric.OUTPUT, "0.001"))
UNBILLED, REVENUE = AccountCode.UNBILLED_RECEIVABLE, AccountCode.USAGE_REVENUE
RECEIVABLE, ROUNDING = AccountCode.ACCOUNTS_RECEIVABLE, AccountCode.ROUNDING_DIFFERENCE


def accrued(tokens: int, now: datetime = NOW, rating_no: int = 1) -> object:
    lines = rated(PLAN, [usage(output_tokens=tokens)]).lines
    return accrual(lines, legal_entity="default", period=OCTOBER, rating_no=rating_no, now=now)


def test_rated_usage_is_accrued_exactly_in_the_month_of_its_completion() -> None:
    entry = accrual(
        rated(PLAN, [usage(output_tokens=2125)]).lines, legal_entity="default", period=OCTOBER, rating_no=3, now=NOW
    )
    assert entry is not None
    assert balances([entry]) == {
        (UNBILLED, "USD", "tenant_1"): Decimal("2.125"),
        (REVENUE, "USD", ""): Decimal("-2.125"),
    }
    assert entry.accounting_period == "2026-10"
    assert entry.idempotency_key == "accrual:default:tenant_1:tenant_1:2026-10:3"
    assert entry.effective_at == OCTOBER.end - timedelta(microseconds=1)


def test_fees_and_true_ups_are_revenue_of_their_own() -> None:
    (line,) = rated(PLAN, [usage(output_tokens=1000)]).lines
    kinds = (LineKind.USAGE, LineKind.FEE, LineKind.PREPAID_FEE, LineKind.TRUE_UP, LineKind.DISCOUNT)
    lines = [replace(line, identity=replace(line.identity, kind=kind)) for kind in kinds]
    entry = accrual(lines, legal_entity="default", period=OCTOBER, rating_no=1, now=NOW)
    assert entry is not None
    assert {code: amount for (code, _, _), amount in balances([entry]).items()} == {
        UNBILLED: 5, REVENUE: -2, AccountCode.FEE_REVENUE: -2, AccountCode.COMMITMENT_TRUE_UP_REVENUE: -1,
    }  # fmt: skip


def test_an_accrual_in_mid_month_is_effective_when_it_is_made() -> None:
    middle = datetime(2026, 10, 16, 12, tzinfo=UTC)
    entry = accrual(
        rated(PLAN, [usage(output_tokens=1)]).lines, legal_entity="default", period=OCTOBER, rating_no=1, now=middle
    )
    assert entry is not None
    assert entry.effective_at == middle


def test_lines_that_come_to_nothing_accrue_nothing() -> None:
    assert accrued(0) is None


def test_an_invoice_clears_what_was_accrued_and_books_the_residue() -> None:
    # 2.125 is billed as 2.12: half a tenth of a cent stays with us, a debit of 5900.
    entry = invoice_issued(bill(PLAN, [usage(output_tokens=2125)]), now=NOW)
    assert entry is not None
    assert balances([entry]) == {
        (RECEIVABLE, "USD", "tenant_1"): Decimal("2.12"),
        (ROUNDING, "USD", ""): Decimal("0.005"),
        (UNBILLED, "USD", "tenant_1"): Decimal("-2.125"),
    }
    assert (entry.accounting_period, entry.effective_at) == ("2026-12", NOW)


def test_a_residue_in_our_favour_is_a_credit() -> None:
    entry = invoice_issued(bill(PLAN, [usage(output_tokens=2135)]), now=NOW)
    assert entry is not None
    assert balances([entry])[ROUNDING, "USD", ""] == Decimal("-0.005")


def test_an_invoice_rounded_to_zero_still_clears_what_was_accrued() -> None:
    entry = invoice_issued(bill(PLAN, [usage(output_tokens=4)]), now=NOW)
    assert entry is not None
    assert balances([entry]) == {
        (ROUNDING, "USD", ""): Decimal("0.004"),
        (UNBILLED, "USD", "tenant_1"): Decimal("-0.004"),
    }


def test_an_invoice_of_nothing_books_nothing() -> None:
    assert invoice_issued(invoice([]), now=NOW) is None


def test_each_tenant_of_an_account_is_cleared_by_itself() -> None:
    (line,) = rated(PLAN, [usage(output_tokens=1000)]).lines
    other = replace(line, identity=replace(line.identity, tenant_id="tenant_2"))
    entry = invoice_issued(invoice([line, other]), now=NOW)
    assert entry is not None
    assert balances([entry]) == {
        (RECEIVABLE, "USD", "tenant_1"): Decimal("2.00"),
        (UNBILLED, "USD", "tenant_1"): Decimal("-1"),
        (UNBILLED, "USD", "tenant_2"): Decimal("-1"),
    }
