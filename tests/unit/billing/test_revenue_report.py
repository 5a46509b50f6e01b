"""Revenue by tenant, model and region: figures worked by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

from billing.bills.credits import Grant, GrantKind
from billing.bills.tax import TaxMode, TaxRules
from billing.costs.margins import Traffic
from billing.invoicing.invoices import AccountCredits, Invoice, InvoiceIdentity, InvoiceKind, draw_up
from billing.ledger.journal import JournalEntry
from billing.ledger.journal_chain import BookedEntry, BookedLeg
from billing.money import ZERO
from billing.plans.price_plans import Metric
from billing.posting.posting_rules import Booking, accrual, credit_expired, fees_earned, invoice_issued
from billing.rating import RatedLine
from billing.rating.period import Coverable
from billing.reports.report import Report
from billing.reports.revenue import Place, Sources, revenue_report
from tests.billing_builders import NOVEMBER, NOW, OCTOBER, SINCE, charge, rated, usage, version
from tests.unit.billing.test_deferrals import invoice as advance_invoice
from tests.unit.billing.test_deferrals import line as fee

ANY_MODEL = version(charge("in", Metric.INPUT, "0.01"), charge("requests", Metric.REQUEST, "1", model="big"))


def booked(entry: JournalEntry | None, number: int = 1) -> BookedEntry:
    assert entry is not None
    legs = tuple(BookedLeg(p.account.code, p.currency, p.subledger, p.amount) for p in entry.postings)
    return BookedEntry(
        number, entry.idempotency_key, b"", entry.kind, entry.legal_entity, entry.accounting_period, None,
        entry.effective_at, entry.effective_at, None, entry.source, legs,
    )  # fmt: skip


def accrued(lines: Sequence[RatedLine]) -> BookedEntry:
    return booked(accrual(lines, legal_entity="default", period=OCTOBER, rating_no=1, now=NOW))


def report(
    entries: Iterable[BookedEntry], sources: Sources, moved: Mapping[int, str], by: Sequence[str] = ("model", "region")
) -> Report:
    return revenue_report(entries, sources, {("USD", str(code)): Decimal(amount) for code, amount in moved.items()}, by)


def told(found: Report, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in columns) for row in found.rows]


def test_a_line_over_several_models_and_regions_goes_by_what_was_used_there() -> None:
    lines = rated(ANY_MODEL, [usage(input_tokens=1000, model="big"), usage(input_tokens=500, model="small")]).lines
    traffic = {
        Place("tenant_1", "big", region="eu"): Traffic(requests=1, input_tokens=600),
        Place("tenant_1", "big", region="us"): Traffic(requests=0, input_tokens=400),
        Place("tenant_1", "small", region="eu"): Traffic(requests=1, input_tokens=500),
        Place("tenant_2", "small", region="eu"): Traffic(requests=1, input_tokens=9000),
    }
    found = report([accrued(lines)], Sources({1: lines}, {}, traffic), {4000: "16"})
    assert told(found, "model", "region", "usage", "revenue") == [
        ("big", "eu", 7, 7), ("big", "us", 4, 4), ("small", "eu", 5, 5),
    ]  # fmt: skip
    assert found.holds
    by_tenant = report([accrued(lines)], Sources({1: lines}, {}, traffic), {4000: "16"}, ["tenant"])
    assert told(by_tenant, "tenant_id", "revenue") == [("tenant_1", 16)]


def test_a_share_that_does_not_end_is_divided_without_rest() -> None:
    lines = rated(version(charge("in", Metric.INPUT, "1")), [usage(input_tokens=1)]).lines
    traffic = {Place("tenant_1", model): Traffic(input_tokens=1) for model in ("a", "b", "c")}
    found = report([accrued(lines)], Sources({1: lines}, {}, traffic), {4000: "1"})
    assert told(found, "revenue")[1] == (Decimal("0.333333333334"),)
    assert found.holds


def test_rated_lines_that_are_not_what_was_booked_do_not_tie() -> None:
    lines = rated(version(charge("in", Metric.INPUT, "1")), [usage(input_tokens=3)]).lines
    entry = accrued(lines)
    changed = [replace(lines[0], amount=Decimal(2))]
    found = report([entry], Sources({1: changed}), {4000: "3"})
    assert found.ties[0].differences == (("4000", Decimal(2), Decimal(3)),)
    assert not report([entry], Sources(), {4000: "3"}).holds


def test_fees_are_their_tenants_and_what_nobody_is_named_for_is_nobodys() -> None:
    where = Booking("k", "default", "2026-11", NOVEMBER.start)
    earned = fees_earned(advance_invoice(fee("45.5")), NOVEMBER, booking=where)
    grant = Grant("g", GrantKind.PAID, Decimal(9), "USD", SINCE)
    found = report(
        [booked(earned), booked(credit_expired(grant, Decimal(4), booking=where), 2)],
        Sources(), {4010: "30", 4100: "4"}, ["tenant"],
    )  # fmt: skip
    assert told(found, "tenant_id", "fees", "breakage", "revenue") == [("", 0, 4, 4), ("tenant_1", 30, 0, 30)]
    assert found.holds


def inclusive(*used: tuple[str, int], grant: Grant | None = None) -> Invoice:
    prices = version(charge("a", Metric.INPUT, "1", model="a"), charge("b", Metric.INPUT, "1", model="b"))
    lines = rated(prices, [usage(model=model, input_tokens=units) for model, units in used]).lines
    identity = InvoiceIdentity("default", "tenant_1", InvoiceKind.USAGE, OCTOBER, "USD")
    rules = TaxRules(TaxMode.INCLUSIVE, {"std": Decimal("0.19")})
    credits = AccountCredits()
    if grant is not None:
        of = [Coverable(OCTOBER.start, line.identity.charge_key, "std", Fraction(line.amount)) for line in lines]
        credits = AccountCredits([grant], {grant.grant_id: grant.amount}, of, lines[0])
    return draw_up(identity, lines, plan_versions={"p": 1}, tax=rules, credits=credits)


def test_tax_within_prices_is_taken_from_the_models_that_it_is_on() -> None:
    made = inclusive(("a", 119), ("b", 238))
    entry = booked(invoice_issued(made, now=NOW))
    found = report([entry], Sources({}, {str(made.invoice_id): made}), {4000: "-57"})
    assert told(found, "model", "revenue") == [("a", -19), ("b", -38)]
    assert found.holds


def test_a_price_reduction_stands_with_its_tenant_less_the_tax_on_it() -> None:
    promo = Grant("promo", GrantKind.PROMO, Decimal("59.5"), "USD", SINCE, granted_at=SINCE)
    made = inclusive(("a", 119), grant=promo)
    (used,) = made.credits
    assert used.amount == Decimal("59.5")
    entry = booked(invoice_issued(made, now=NOW))
    moved = {code: -sum((leg.amount for leg in entry.legs if leg.code == code), ZERO) for code in (4000, 4900)}
    assert moved == {4000: Decimal(-19), 4900: Decimal("-50")}
    found = report([entry], Sources({}, {str(made.invoice_id): made}), {4000: "-19", 4900: "-50"}, ["tenant"])
    assert told(found, "tenant_id", "usage", "credits", "revenue") == [("tenant_1", -19, -50, -69)]
    assert found.holds
