"""Lines for another ledger, the tax report, commitments: figures worked by hand."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from billing.bills.tax import TaxMode, TaxRules
from billing.errors import ReportRefused
from billing.invoicing.invoices import Invoice, InvoiceIdentity, InvoiceKind, draw_up
from billing.periods import BillingPeriod
from billing.plans.price_plans import Commitment, Metric
from billing.rating.lines import LineKind
from billing.reports.commitments import RunningCommitment, commitment_report, running
from billing.reports.erp import OWN_CHART, Target, erp_report, read_mapping
from billing.reports.report import Amounts, Report
from billing.reports.tax_report import TaxedDocument, tax_report
from tests.billing_builders import NOVEMBER, OCTOBER, charge, rated, subscription, usage, version


def usd(**amounts: str) -> Amounts:
    return {("USD", code.lstrip("_")): Decimal(amount) for code, amount in amounts.items()}


def sent(opening: Amounts, closing: Amounts, moved: Amounts, **changed: Any) -> Report:
    values: dict[str, Any] = {"legal_entity": "default", "span": OCTOBER, "targets": OWN_CHART} | changed
    return erp_report(opening, closing, moved, **values)


def test_rounding_of_lines_for_another_ledger_does_not_pile_up() -> None:
    september = usd(_1150="0.004", _4000="-0.004")
    october = usd(_1150="0.008", _4000="-0.008")
    first = sent({}, september, september)
    assert first.rows == []  # less than a cent so far
    moved = usd(_1150="0.004", _4000="-0.004")
    second = sent(september, october, moved)
    assert [(row["account"], row["debit"], row["credit"]) for row in second.rows] == [
        ("1150", Decimal("0.01"), 0), ("4000", 0, Decimal("0.01")),
    ]  # fmt: skip
    assert first.holds
    assert second.holds


def test_lines_carry_the_other_ledgers_accounts_and_balance() -> None:
    closing = usd(_1100="119.00", _2200="-19.00", _4000="-100.004", _5900="0.004")
    targets = read_mapping(
        'accounts: {1100: "120000", 2200: "177600", 4000: {account: "0840", cost_center: llm}, 5900: "4900"}',
        file="erp.yaml",
    )
    found = sent({}, closing, closing, targets=targets)
    assert [(row["account"], row["cost_center"], row["debit"] - row["credit"]) for row in found.rows] == [
        ("120000", "", Decimal("119.00")), ("177600", "", Decimal("-19.00")), ("0840", "llm", Decimal("-100.00")),
    ]  # fmt: skip
    assert found.rows[0]["document"] == "default-2026-10"
    assert str(found.rows[0]["posting_date"]) == "2026-10-31"


def test_postings_that_the_balances_do_not_have_are_told() -> None:
    closing = usd(_1100="1", _4000="-1")
    found = sent({}, closing, usd(_1100="2", _4000="-2"))
    assert [tie.holds for tie in found.ties] == [True, False]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("accounts: {1234: 'x'}", "1234 is no account of ours"),
        ("accounts: {1100: 120000}", "write numbers as texts"),
        ("accounts: {1100: {account: 'x', colour: 'red'}}", "give an account"),
        ("konten: {}", "write `accounts:`"),
        ("accounts: [", "erp.yaml"),
    ],
)
def test_a_mapping_that_cannot_be_used_is_told(text: str, told: str) -> None:
    with pytest.raises(ReportRefused, match=told):
        read_mapping(text, file="erp.yaml")


def test_an_account_without_a_target_is_named_and_books_that_do_not_balance_are_refused() -> None:
    with pytest.raises(ReportRefused, match="no account is given for 4000"):
        sent({}, usd(_1100="1", _4000="-1"), {}, targets={1100: Target("x")})
    with pytest.raises(ReportRefused, match="do not balance in USD"):
        sent({}, usd(_1100="1", _4000="-2"), {})


ONE_EACH = version(charge("in", Metric.INPUT, "1"))


def billed(units: int, tax: TaxRules, account: str = "tenant_1") -> Invoice:
    lines = rated(ONE_EACH, [usage(input_tokens=units)]).lines
    identity = InvoiceIdentity("default", account, InvoiceKind.USAGE, OCTOBER, "USD")
    return draw_up(identity, lines, plan_versions={"p": 1}, tax=tax)


GERMAN = TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal("0.190")})
WITHIN = TaxRules(TaxMode.INCLUSIVE, {"std": Decimal("0.19")})


def test_tax_is_summed_by_country_mode_and_rate_and_documents_without_tax_stand_with_their_net() -> None:
    documents = [
        TaxedDocument(billed(100, GERMAN), "1", "DE"),
        TaxedDocument(billed(50, GERMAN, "b"), "2", "DE"),
        TaxedDocument(billed(119, WITHIN, "c"), "3", "DE"),
        TaxedDocument(billed(10, TaxRules(TaxMode.REVERSE_CHARGE), "d"), "4", "FR", "FR1"),
        TaxedDocument(billed(7, TaxRules(), "e"), "5", "US"),
    ]
    found = tax_report(documents, {("USD", ""): Decimal("47.5")}, by_document=False)
    told = [(row["country"], row["mode"], row["rate"], row["net"], row["tax"]) for row in found.rows]
    assert told == [
        ("DE", "exclusive", Decimal("0.19"), 150, Decimal("28.50")),
        ("DE", "inclusive", Decimal("0.19"), 100, 19),
        ("FR", "reverse_charge", 0, 10, 0),
        ("US", "none", 0, 7, 0),
    ]
    assert found.holds
    listed = tax_report(documents, {}, by_document=True)
    assert [row["tax_id"] for row in listed.rows] == ["", "", "", "FR1", ""]
    assert [tie.holds for tie in listed.ties] == [False, True]


def test_a_document_whose_total_is_not_net_and_tax_is_named() -> None:
    wrong = replace(billed(100, GERMAN), total_minor=11901)
    found = tax_report([TaxedDocument(wrong, "1")], {("USD", ""): Decimal(19)}, by_document=False)
    assert found.ties[1].differences == (("1", Decimal(119), Decimal("119.01")),)


COMMITTED = replace(ONE_EACH, commitment=Commitment(Decimal(310)))


def test_a_commitment_shows_what_is_used_missing_and_still_to_come() -> None:
    # October is half over for the tenant that began on the 16th: 16 of 31 days of 310
    held = subscription(starts_at=OCTOBER.start.replace(day=16), ends_at=NOVEMBER.end)
    (of_month,) = running([held], OCTOBER)
    lines = rated(ONE_EACH, [usage(input_tokens=100)]).lines
    versions = {"p": (COMMITTED,)}
    found = commitment_report([replace(of_month, lines=lines)], versions, OCTOBER.start.replace(day=20), [], {})
    (row,) = found.rows
    assert (row["committed"], row["used"], row["missing"], row["later_periods"]) == (160, 100, 60, 310)
    (over,) = commitment_report([of_month], versions, OCTOBER.end, [], {}).rows
    assert (over["missing"], over["ends_at"]) == (0, NOVEMBER.end)


def test_charges_that_a_commitment_names_count_alone_and_true_ups_tie_to_the_books() -> None:
    named = replace(COMMITTED, commitment=Commitment(Decimal(100), ("other",)))
    lines = rated(ONE_EACH, [usage(input_tokens=30)]).lines
    (line,) = lines
    true_up = replace(line, amount=Decimal(70), identity=replace(line.identity, kind=LineKind.TRUE_UP))
    running_ = RunningCommitment([subscription()], OCTOBER, [line, true_up])
    found = commitment_report([running_], {"p": (named,)}, OCTOBER.end, [line, true_up], {("USD", ""): Decimal(70)})
    (row,) = found.rows
    assert (row["used"], row["true_up"], row["later_periods"]) == (0, 70, None)
    assert found.holds
    assert not commitment_report([running_], {"p": (named,)}, OCTOBER.end, [], {("USD", ""): Decimal(70)}).holds


def test_of_a_prepaid_charge_a_commitment_without_names_counts_what_is_left_of_its_usage() -> None:
    # 100 and 10 less 11 are 99, of which 9 are usage; half of it is more than the maximum
    (line,) = rated(ONE_EACH, [usage(input_tokens=30)]).lines
    amounts = {LineKind.PREPAID_FEE: "100", LineKind.OVERAGE: "10", LineKind.DISCOUNT: "-11", LineKind.MAXIMUM: "-49.5"}
    lines = [replace(line, amount=Decimal(a), identity=replace(line.identity, kind=k)) for k, a in amounts.items()]
    of = RunningCommitment([subscription()], OCTOBER, lines)
    found = commitment_report([of], {"p": (COMMITTED,)}, OCTOBER.end, [], {})
    assert [row["used"] for row in found.rows] == [Decimal("4.5")]


def test_a_tenant_without_a_commitment_is_not_in_the_report() -> None:
    of = RunningCommitment([subscription()], BillingPeriod(OCTOBER.start, OCTOBER.end))
    assert commitment_report([of], {"p": (ONE_EACH,)}, OCTOBER.end, [], {}).rows == []
