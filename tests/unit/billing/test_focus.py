"""FOCUS rows of documents: categories, corrections, prepaid credit; and that they come to what documents ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

from billing.bills.credits import Grant, GrantKind, TaxTreatment
from billing.bills.tax import NO_TAX, TaxMode, TaxRules
from billing.invoicing.invoices import AccountCredits, CreditUsed, Invoice, InvoiceIdentity, InvoiceKind, draw_up
from billing.money import total
from billing.periods import BillingPeriod
from billing.plans.account_store import BillingAccount
from billing.plans.price_plans import Metric
from billing.posting.top_up_invoicing import top_up_invoice
from billing.rating import LineKind, RatedLine
from billing.rating.period import Coverable
from billing.reports.focus import COLUMNS, FocusDocument, focus_report
from billing.reports.report import Report
from tests.billing_builders import NOVEMBER, OCTOBER, SINCE, charge, rated, usage, version

# https://focus.finops.org, version 1.2: the columns whose feature level is Mandatory
MANDATORY = {
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd",
    "ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity",
    "PricingUnit", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName",
}  # fmt: skip
PRICES = version(charge("in", Metric.INPUT, "0.01", model="a"), charge("out", Metric.OUTPUT, "0.02", model="a"))
ADDED = TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal("0.2")})
WITHIN = TaxRules(TaxMode.INCLUSIVE, {"std": Decimal("0.2")})
PAID = Grant("pre", GrantKind.PAID, Decimal(1000), "USD", SINCE, granted_at=SINCE, paid_at=SINCE)


def used(inputs: int, outputs: int = 0) -> Sequence[RatedLine]:
    return rated(PRICES, [usage(model="a", input_tokens=inputs, output_tokens=outputs)]).lines


def made(lines: Sequence[RatedLine], tax: TaxRules = NO_TAX, grants: Sequence[Grant] = ()) -> Invoice:
    identity = InvoiceIdentity("default", "acme", InvoiceKind.USAGE, OCTOBER, "USD")
    of = [Coverable(OCTOBER.start, line.identity.charge_key, "std", Fraction(line.amount)) for line in lines]
    credits = AccountCredits(grants, {grant.grant_id: grant.amount for grant in grants}, of, lines[0])
    return draw_up(identity, lines, plan_versions={"p": 1}, tax=tax, credits=credits)


def focus(*invoices: Invoice) -> Report:
    return focus_report(
        FocusDocument(invoice, NOVEMBER, f"N-{number}", "Seller", "Acme") for number, invoice in enumerate(invoices, 1)
    )


def costs(found: Report) -> list[tuple[str, Decimal, Decimal]]:
    return [(row["ChargeCategory"], row["BilledCost"], row["EffectiveCost"]) for row in found.rows]


def test_usage_and_tax_come_to_what_the_invoice_asks_for() -> None:
    found = focus(made(used(1000, 300), ADDED))
    assert costs(found) == [("Usage", 10, 10), ("Usage", 6, 6), ("Tax", Decimal("3.2"), Decimal("3.2"))]
    assert set(COLUMNS) >= MANDATORY
    assert found.holds
    (tokens, _, tax) = found.rows
    assert tokens["ContractedCost"] == tokens["PricingQuantity"] * tokens["ContractedUnitPrice"] == 10
    assert (tokens["ConsumedQuantity"], tokens["ConsumedUnit"], tokens["x_Model"]) == (1000, "Tokens", "a")
    assert (tax["PricingQuantity"], tax["ConsumedQuantity"], tax["ChargeClass"]) == (None, None, None)
    assert {row["InvoiceId"] for row in found.rows} == {"N-1"}


def test_tax_that_prices_contain_is_a_row_of_its_own() -> None:
    found = focus(made(used(600, 300), WITHIN))
    assert costs(found) == [("Usage", 5, 5), ("Usage", 5, 5), ("Tax", 2, 2)]
    assert found.holds


def test_usage_that_prepaid_credit_pays_for_is_billed_at_0_and_buying_it_costs_nothing() -> None:
    covered = focus(made(used(1000, 300), ADDED, [PAID]))
    assert costs(covered) == [("Usage", 0, 10), ("Usage", 0, 6), ("Tax", 0, Decimal("3.2"))]
    account = BillingAccount("acme", "default", "Acme", "USD")
    bought = focus(top_up_invoice(account, PAID, OCTOBER.start, 0, is_paid=True))
    assert costs(bought) == [("Purchase", 1000, 0)]
    assert covered.holds
    assert bought.holds


def test_prepaid_credit_that_is_not_enough_pays_in_proportion() -> None:
    found = focus(made(used(1000, 500), ADDED, [replace(PAID, amount=Decimal("12"))]))
    assert costs(found) == [("Usage", 5, 10), ("Usage", 5, 10), ("Tax", 2, 4)]
    assert [row["x_PrepaidApplied"] for row in found.rows] == [5, 5, 2]
    assert found.holds


def test_bought_credit_that_reduces_the_price_is_no_row_and_given_credit_is_one() -> None:
    before_tax = replace(PAID, tax_treatment=TaxTreatment.PRICE_REDUCTION, amount=Decimal(4))
    promo = replace(before_tax, grant_id="promo", kind=GrantKind.PROMO, paid_at=None)
    found = focus(made(used(1000), ADDED, [before_tax]))
    assert costs(found) == [("Usage", 6, 10), ("Tax", Decimal("1.2"), Decimal("1.2"))]
    given = focus(made(used(1000), ADDED, [promo]))
    assert sorted(costs(given)) == [("Credit", -4, -4), ("Tax", Decimal("1.2"), Decimal("1.2")), ("Usage", 10, 10)]
    assert found.holds
    assert given.holds


def test_a_given_credit_that_pays_of_the_total_is_a_credit_row() -> None:
    promo = Grant(
        "promo", GrantKind.PROMO, Decimal(3), "USD", SINCE, granted_at=SINCE, tax_treatment=TaxTreatment.PAYMENT
    )
    found = focus(made(used(1000), ADDED, [promo]))
    assert costs(found)[-1] == ("Credit", -3, -3)
    assert found.holds


def kinds(*of: tuple[LineKind, str]) -> list[RatedLine]:
    (line,) = used(100)
    return [
        replace(
            line, amount=Decimal(amount), unit_price=None, quantity=Decimal(0),
            identity=replace(line.identity, kind=kind.value, charge_key=f"k{number}"),
        )
        for number, (kind, amount) in enumerate(of)
    ]  # fmt: skip


def test_charge_categories() -> None:
    lines = kinds(
        (LineKind.FEE, "30"), (LineKind.DISCOUNT, "-1"), (LineKind.MINIMUM, "2"), (LineKind.TRUE_UP, "7"),
        (LineKind.UNUSED, "-3"), (LineKind.OVERAGE, "5"),
    )  # fmt: skip
    found = focus(made(lines))
    assert [(row["ChargeCategory"], row["ChargeFrequency"], row["BilledCost"]) for row in found.rows] == [
        ("Purchase", "Recurring", 30), ("Adjustment", "One-Time", -1), ("Adjustment", "One-Time", 2),
        ("Adjustment", "One-Time", 7), ("Purchase", "Recurring", -3), ("Usage", "Usage-Based", 5),
    ]  # fmt: skip
    assert (found.rows[0]["PricingQuantity"], found.rows[0]["ContractedUnitPrice"]) == (1, 30)


def test_the_fee_for_included_usage_is_that_usages_cost() -> None:
    fee, overage = kinds((LineKind.PREPAID_FEE, "20"), (LineKind.OVERAGE, "5"))
    same = replace(overage, identity=replace(overage.identity, charge_key=fee.identity.charge_key))
    found = focus(made([fee, same]))
    assert sorted(costs(found)) == [("Purchase", 20, 0), ("Usage", 5, 25)]
    assert found.holds


def test_what_changes_an_invoiced_period_is_a_correction_there() -> None:
    invoice = made(used(1000), ADDED)
    (line,) = invoice.lines
    late = replace(invoice, lines=(replace(line, original_period=BillingPeriod(SINCE, OCTOBER.start)),))
    of = replace(invoice.identity, kind=InvoiceKind.CREDIT_NOTE)
    minus = replace(line, amount_minor=-1000, rated=replace(line.rated, amount=Decimal(-10), quantity=Decimal(-1000)))
    back = tuple(replace(row, base_minor=-1000, tax_minor=-200) for row in invoice.taxes)
    note = replace(
        invoice, identity=of, lines=(minus,), taxes=back, net_minor=-1000, tax_minor=-200, total_minor=-1200,
        credits=(CreditUsed("pre", GrantKind.PAID, TaxTreatment.PAYMENT, Decimal(-12), -1200, Decimal(0)),),
    )  # fmt: skip
    found = focus(late, note)
    assert [(row["ChargeCategory"], row["ChargeClass"]) for row in found.rows] == [
        ("Usage", "Correction"), ("Tax", None), ("Usage", "Correction"), ("Tax", "Correction"),
    ]  # fmt: skip
    # the note gives back to prepaid credit what that had paid: nothing is billed
    assert costs(found)[2:] == [("Usage", 0, -10), ("Tax", 0, -2)]
    assert found.holds


def test_a_document_that_says_another_total_is_named() -> None:
    found = focus(made(used(1000), ADDED), replace(made(used(5), ADDED), total_minor=7, net_minor=4))
    assert [tie.differences for tie in found.ties] == [
        (("N-2", Decimal("0.06"), Decimal("0.07")),),
        (("N-2", Decimal("0.05"), Decimal("0.04")),),
    ]
    assert total(row["BilledCost"] for row in found.rows) == Decimal("12.06")
