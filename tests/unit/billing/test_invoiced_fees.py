"""Credit notes over fees in advance: against their invoice, cumulatively, and as papers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal

import pytest

from billing.bills.credits import Grant, GrantKind, TaxTreatment
from billing.bills.documents import Payer
from billing.bills.tax import NO_TAX, TaxMode, TaxRules
from billing.commands.show_invoices import document_of
from billing.invoicing.invoice_check import check_document
from billing.invoicing.invoice_file import InvoiceFile, invoice_file
from billing.invoicing.invoice_states import InvoiceState
from billing.invoicing.invoiced_fees import InvoicedFees
from billing.invoicing.invoices import AccountCredits, CreditUsed, Invoice, InvoiceIdentity, InvoiceKind, draw_up
from billing.invoicing.party_store import Sides
from billing.money import currency, from_minor, total
from billing.periods import BillingPeriod
from billing.posting.deferrals import deferred
from billing.presentation.ubl import ubl_of
from billing.rating.lines import LineKind, RatedLine
from tests.billing_builders import NOVEMBER, SINCE, stored
from tests.ubl_rules import broken_rules
from tests.unit.billing.test_deferrals import line
from tests.unit.billing.test_presentation import BUYER, ISSUED, SELLER

DAY = timedelta(days=1)
RATES = {"std": Decimal("0.19")}
RULES = [NO_TAX, TaxRules(TaxMode.EXCLUSIVE, RATES), TaxRules(TaxMode.INCLUSIVE, RATES)]
PAID = Grant("g", GrantKind.PAID, Decimal(40), "USD", SINCE, tax_treatment=TaxTreatment.PAYMENT)


def fee(amount: str, of: str, at: int = 0) -> RatedLine:
    return line(amount, of, BillingPeriod(NOVEMBER.start + at * DAY, NOVEMBER.end))


def unused(of: RatedLine, amount: str, at: int) -> RatedLine:
    return replace(
        of, identity=replace(of.identity, kind=LineKind.UNUSED), amount=-Decimal(amount),
        service_start=NOVEMBER.start + at * DAY,
    )  # fmt: skip


def invoiced(lines: Sequence[RatedLine], rules: TaxRules) -> Invoice:
    identity = InvoiceIdentity("default", "tenant_1", InvoiceKind.ADVANCE, NOVEMBER, "USD")
    return draw_up(identity, lines, plan_versions={"p": 1}, tax=rules)


def noted(
    fees: InvoicedFees, lines: list[RatedLine], at: int, rules: TaxRules, grants: Sequence[Grant] = ()
) -> Invoice:
    ((original, taken_back),) = fees.by_invoice({("tenant_1", "std"): lines})
    note = fees.credit_note(
        original, BillingPeriod(NOVEMBER.start + at * DAY, NOVEMBER.end), taken_back, revision=0,
        payer=Payer(currency("USD", date(2026, 11, 30)), rules), plan_versions={"p": 1},
        credits=AccountCredits(grants, {grant.grant_id: Decimal(0) for grant in grants}),
    )  # fmt: skip
    fees.take_in(note)
    return note


def paper(note: Invoice) -> InvoiceFile:
    issued = ISSUED | {"state": InvoiceState.ISSUED_LOCALLY, "number": "CN-000001", "due_date": None}
    made = document_of(stored(note, **issued), Sides(SELLER, BUYER, 30), None, ("INV-000123", date(2026, 11, 1)))
    return invoice_file(json.loads(json.dumps(made)))


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: rules.mode.value)
def test_notes_take_back_no_cent_more_or_less_than_was_invoiced(rules: TaxRules) -> None:
    """Three days, then three more, then what remains of a fee whose parts do not end at a cent."""
    one, other = fee("10", "a"), fee("0.05", "b")
    fees = InvoicedFees()
    fees.take_in(original := invoiced([one, other], rules))
    smaller = fee("6.01", "a2", 3)
    notes = [
        noted(fees, [unused(one, "9.003333333333", 3), unused(other, "0.045", 3), smaller], 3, rules),
        noted(fees, [unused(smaller, "6.01", 3)], 4, rules),
    ]
    left = Decimal("10") - Decimal("9.003333333333"), Decimal("0.05") - Decimal("0.045")
    sums = [original.net_minor, *(note.net_minor for note in notes)]
    taxes = [original.tax_minor, *(note.tax_minor for note in notes)]
    gross = sum(sums) + sum(taxes)
    if rules.mode is TaxMode.INCLUSIVE:
        assert (gross, sum(taxes)) == (100, 16)  # 1.00 and 0.00 of 10 and 0.05 were used
    else:
        assert sum(sums) == 100
        assert sum(taxes) == (19 if rules.mode is TaxMode.EXCLUSIVE else 0)
    assert total(each.rated.amount for document in (original, *notes) for each in document.lines) == sum(left)
    for note in notes:
        assert note.in_advance
        assert note.credits_invoice_id == original.invoice_id
        made = paper(note)
        assert check_document(made) == []
        assert broken_rules(ubl_of(made)) == []


def test_what_is_deferred_ends_where_the_fee_ends() -> None:
    one = fee("30", "a")
    fees = InvoicedFees()
    fees.take_in(original := invoiced([one], NO_TAX))
    note = noted(fees, [unused(one, "21", 9)], 9, NO_TAX)
    for day in range(31):
        earned = total(
            each.earned(NOVEMBER.start + day * DAY) for document in (original, note) for each in deferred(document)
        )
        assert earned == min(day, 9)


def test_what_credits_paid_comes_back_to_them_first() -> None:
    one = fee("30", "a")
    fees = InvoicedFees()
    paid = CreditUsed("g", GrantKind.PAID, TaxTreatment.PAYMENT, Decimal(20), 2000, Decimal(20))
    fees.take_in(replace(invoiced([one], NO_TAX), credits=(paid,)))
    first = noted(fees, [unused(one, "15", 15)], 15, NO_TAX, [PAID])
    assert [(each.grant_id, each.amount_minor) for each in first.credits] == [("g", -1500)]
    assert first.receivable_minor == 0
    again = fee("10", "b", 15)
    second = noted(fees, [unused(again, "9", 16)], 16, NO_TAX, [PAID])
    assert [each.amount_minor for each in second.credits] == [-500]
    assert from_minor(second.receivable_minor, second.identity.money) == Decimal(-4)


def test_what_nets_to_nothing_has_no_document_and_runs_on() -> None:
    one, same = fee("30", "a"), fee("20.01", "b", 10)
    fees = InvoicedFees()
    fees.take_in(invoiced([one], NO_TAX))
    payer = Payer(currency("USD", date(2026, 11, 30)))
    service = BillingPeriod(NOVEMBER.start + 10 * DAY, NOVEMBER.end)
    fees.go_on(service, ("tenant_1", "std"), [unused(one, "20.01", 10), same], payer)
    note = noted(fees, [unused(same, "0.005", 20)], 20, NO_TAX)
    # What remains is rounded, 20.005 to 20.00; by itself 0.005 would be nothing.
    assert note.total_minor == -1


def test_fees_that_are_on_no_invoice_are_not_taken_back() -> None:
    assert InvoicedFees().by_invoice({("tenant_1", "std"): [fee("1", "a")]}) == []
