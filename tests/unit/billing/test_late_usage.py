"""What a billed period still needs, in values: nets by tax group, keys, rates of an earlier day, what is given back."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from billing.bills.credit_notes import Remaining, credit_note
from billing.bills.credits import Grant, GrantKind
from billing.bills.documents import PaidByCredit, Payer
from billing.bills.late_usage import Waiting, adjusted, changed_key, plain_group
from billing.bills.payment_credits import given_back
from billing.bills.tax import NO_TAX, TaxMode, TaxRules
from billing.invoicing.billed_documents import Bearer, billed_on, billed_period
from billing.invoicing.invoices import CreditUsed, Invoice, InvoiceIdentity, InvoiceKind, draw_up
from billing.invoicing.reversing import cancelling_note
from billing.money import currency, plain
from billing.plans.price_plans import Metric
from billing.rating import LineKind, RatedLine
from billing.rating.period import period_line
from tests.billing_builders import NOVEMBER, OCTOBER, SINCE, bill, charge, cut, invoice, rated, usage, version

PLAN = version(charge("in", Metric.INPUT, "0.01"), charge("out", Metric.OUTPUT, "0.1"))


def lines(**used: int) -> tuple[RatedLine, ...]:
    return rated(PLAN, [usage(**used)]).lines


def changes(before: tuple[RatedLine, ...], now: tuple[RatedLine, ...]) -> tuple[list[str], list[str]]:
    found = adjusted(now, before, lambda of: of.charge_key)
    more, less = ([f"{key} {plain(line.amount)}" for key, line in each.items()] for each in (found.more, found.less))
    return more, less


def test_more_and_less_of_one_tax_group_are_netted_and_of_two_are_not() -> None:
    before, now = lines(input_tokens=100, output_tokens=50), lines(input_tokens=300, output_tokens=20)
    assert changes(before, now) == ([], ["adj.in 2", "adj.out -3"])
    parted = [tuple(replace(of, tax_group=of.identity.charge_key) for of in each) for each in (before, now)]
    assert changes(*parted) == (["adj.in 2"], ["adj.out -3"])


def test_what_comes_to_nothing_is_on_no_document() -> None:
    before = lines(input_tokens=100, output_tokens=50)
    even = lines(input_tokens=150, output_tokens=45)
    assert changes(before, even) == ([], [])
    assert changes(before, before) == ([], [])


def test_a_last_digit_of_free_units_that_moved_to_another_line_is_on_no_document() -> None:
    """Where pools are weighted, free units of several lines are quantised so that they add up."""
    (inputs, outputs), more = lines(input_tokens=100, output_tokens=50), lines(input_tokens=100, output_tokens=80)
    digit = replace(inputs, free=inputs.free + Decimal("0.000000000001"))
    assert changes((digit, outputs), more) == (["adj.out 3"], [])
    unit = replace(inputs, free=inputs.free + 1)
    assert changes((unit, outputs), more) == (["adj.in 0", "adj.out 3"], [])


def test_what_credits_take_off_whole_is_on_a_document() -> None:
    before, now = lines(output_tokens=50), lines(output_tokens=80)
    off = period_line(cut([PLAN]), "credit.g", LineKind.CREDIT, Decimal(-3), "std")
    assert changes(before, (*now, off)) == (["adj.credit.g -3", "adj.out 3"], [])


def test_what_one_grant_takes_off_in_place_of_another_goes_with_the_other_changes() -> None:
    def off(key: str, amount: int, group: str = "low") -> RatedLine:
        return period_line(cut([PLAN]), f"credit.{key}", LineKind.CREDIT, Decimal(amount), group)

    before, dearer, cheaper = lines(output_tokens=50), lines(output_tokens=80), lines(output_tokens=20)
    was, now = off("g", -5), (off("g.low", -2), off("h", -3))
    moved = ["adj.credit.g 5", "adj.credit.g.low -2", "adj.credit.h -3"]
    assert changes((*before, was), (*dearer, *now)) == ([*moved, "adj.out 3"], [])
    assert changes((*before, was), (*cheaper, *now)) == ([], [*moved, "adj.out -3"])
    assert changes((*before, was), (*before, *now)) == ([], [])
    assert changes((*before, was), (*dearer, off("g.low", -5))) == (["adj.out 3"], []), "its name alone changed"


def test_a_note_over_what_one_document_billed_charges_nobody() -> None:
    back = {
        f"adj.credit.{name}": period_line(cut([PLAN]), f"credit.{name}", LineKind.CREDIT, Decimal(amount), "low")
        for name, amount in (("g", -4), ("h", 4))
    }
    left = Remaining({"credit.g": (Decimal(-4), -400), "credit.h": (Decimal(-6), -600), "out": (Decimal(3), 300)})
    less = lines(output_tokens=30)[0]
    taken = {"adj.out": replace(less, amount=-less.amount, quantity=-less.quantity)}
    assert billed_on(Bearer(invoice(lines(output_tokens=30)), left, ()), back | taken) == taken


@pytest.mark.parametrize("kind", [LineKind.INVOICE_DISCOUNT, LineKind.TRUE_UP, LineKind.CREDIT, LineKind.MINIMUM])
def test_a_line_that_is_of_another_tax_group_by_now_is_two_changes_under_two_keys(kind: LineKind) -> None:
    was, now = (period_line(cut([PLAN]), "x", kind, Decimal(amount), group) for amount, group in ((7, "b"), (4, "a")))
    assert changes((was,), (now,)) == (["adj.x.a 4"], ["adj.x -7"])


def test_a_line_at_another_price_is_reversed_and_billed_anew() -> None:
    dearer = version(charge("in", Metric.INPUT, "0.01"), charge("out", Metric.OUTPUT, "0.2"))
    now = rated(dearer, [usage(output_tokens=50)]).lines
    assert changes(lines(output_tokens=50), now) == (["adj.out -5", "adj.out.repriced 10"], [])
    assert changed_key("adj.out") == "out"


def test_a_rate_that_changed_since_keeps_its_own_row_and_an_equal_one_does_not() -> None:
    then = TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal("0.19"), "low": Decimal("0.07")})
    now = TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal("0.16"), "low": Decimal("0.07")})
    late = {"adj.out": lines(output_tokens=100)[0], "adj.in": replace(lines(input_tokens=100)[0], tax_group="low")}
    waiting = Waiting(OCTOBER, late, tax=then)
    assert waiting.fits(now)
    assert not waiting.fits(NO_TAX)
    identity = InvoiceIdentity("default", "tenant_1", InvoiceKind.USAGE, NOVEMBER, "USD")
    own = rated(PLAN, [usage(output_tokens=200)], NOVEMBER).lines
    made = draw_up(identity, own, plan_versions={"p": 1}, tax=now, late=[waiting])
    assert {row.group: (row.base_minor, row.tax_minor) for row in made.taxes} == {
        "low": (100, 7), "std": (2000, 320), "std@2026-10": (1000, 190),
    }  # fmt: skip
    shown = {line.line_key: (line.tax_group, line.rated.tax_group, line.original_period) for line in made.lines}
    assert shown == {
        "adj.in": ("low", "low", OCTOBER), "adj.out": ("std@2026-10", "std", OCTOBER), "out": ("std", "std", None),
    }  # fmt: skip
    assert plain_group("std@2026-10") == "std"


def test_lines_of_two_periods_under_one_key_are_told_apart() -> None:
    late = lines(output_tokens=10)[0]
    september = replace(OCTOBER, start=OCTOBER.start.replace(month=9), end=OCTOBER.start)
    made = draw_up(
        InvoiceIdentity("default", "tenant_1", InvoiceKind.USAGE, NOVEMBER, "USD"), [], plan_versions={"p": 1},
        late=[Waiting(OCTOBER, {"adj.out": late}), Waiting(september, {"adj.out": late})],
    )  # fmt: skip
    assert {line.line_key: line.original_period for line in made.lines} == {
        "adj.out": september,
        "adj.out@2026-10-01": OCTOBER,
    }
    assert made.rated_totals == {september: 1, OCTOBER: 1}


def test_an_invoice_is_taken_back_period_by_period_also_where_two_have_a_line_of_one_key() -> None:
    late, note = lines(output_tokens=10)[0], lines(output_tokens=3)[0]
    identity = InvoiceIdentity("default", "tenant_1", InvoiceKind.USAGE, NOVEMBER, "USD")
    own = rated(PLAN, [usage(output_tokens=50)], NOVEMBER).lines
    made = draw_up(identity, own, plan_versions={"p": 1}, late=[Waiting(OCTOBER, {"adj.out": late})])
    less = replace(note, amount=-note.amount, quantity=-note.quantity)
    noted = draw_up(replace(identity, kind=InvoiceKind.CREDIT_NOTE), [], plan_versions={},
                    late=[Waiting(NOVEMBER, {"adj.out": less})])  # fmt: skip
    back = cancelling_note(made, [noted], revision=1, tax=NO_TAX)
    taken = [
        (of.line_key, of.original_period, of.rated.quantity, of.rated.amount, of.amount_minor) for of in back.lines
    ]
    assert taken == [
        ("adj.out", OCTOBER, -10, Decimal(-1), -100),
        ("adj.out@2026-11-01", NOVEMBER, -47, Decimal("-4.7"), -470),
    ]


GRANTS = {
    name: Grant(name, GrantKind.PAID, Decimal(100), "USD", SINCE, priority=priority)
    for name, priority in (("b", 1), ("a", 2))
}


def paying(of: Invoice, **used: int) -> Invoice:
    credits = tuple(
        CreditUsed(name, GrantKind.PAID, GRANTS[name].treatment, Decimal(minor) / 100, minor, Decimal(0))
        for name, minor in sorted(used.items())
    )
    return replace(of, credits=credits)


def test_what_is_billed_of_a_period_is_summed_over_its_documents() -> None:
    own = paying(bill(PLAN, [usage(output_tokens=100)]), a=300, b=200)
    identity = replace(own.identity, kind=InvoiceKind.CREDIT_NOTE)
    back = [replace(of, amount=-of.amount, quantity=-of.quantity) for of in lines(output_tokens=30)]
    made = paying(draw_up(identity, [], plan_versions={}, late=[Waiting(OCTOBER, {"adj.out": back[0]})]), a=-100)
    note = replace(made, credits_invoice_id=own.invoice_id)
    found = billed_period([own, note], OCTOBER, GRANTS)
    assert found is not None
    assert found.remaining.lines == {"out": (Decimal(7), 700)}
    assert found.remaining.groups == {"std": (700, 0)}
    assert sum(line.quantity for line in found.lines) == 70
    assert found.paid == (PaidByCredit("b", 200), PaidByCredit("a", 200))
    assert billed_period([invoice([], period=NOVEMBER)], OCTOBER, GRANTS) is None


def test_what_was_drawn_last_is_given_back_first_and_never_more_than_was_paid() -> None:
    paid = (PaidByCredit("b", 200), PaidByCredit("a", 300))
    assert given_back(paid, 350) == (PaidByCredit("a", -300), PaidByCredit("b", -50))
    assert given_back(paid, 900) == (PaidByCredit("a", -300), PaidByCredit("b", -200))
    assert given_back(paid, 0) == ()


def test_fees_that_give_way_to_others_at_no_difference_and_on_no_document_round_each_by_itself() -> None:
    (line,) = lines(output_tokens=50)
    amounts = {"a": "-0.994", "b": "0.497", "c": "0.497"}
    fees = {key: replace(line, amount=Decimal(amount)) for key, amount in amounts.items()}
    before = Remaining({"a": (Decimal(1), 100)}, {"std": (100, 0)})
    _, after = credit_note(OCTOBER, fees, {}, before, Payer(currency("USD", SINCE.date())))
    assert [minor for _, minor in after.lines.values()] == [1, 50, 50]
