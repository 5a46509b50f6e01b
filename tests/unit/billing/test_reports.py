"""Roll-forwards and ageing: figures worked by hand, and ties that say where they do not hold."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing.bills.credits import Grant, GrantKind
from billing.errors import NotAnAmount
from billing.invoicing.credit_store import MovementKind
from billing.money import total
from billing.periods import BillingPeriod
from billing.reports.ageing import UNAPPLIED, Receivable, Settled, ageing_report
from billing.reports.credit_rollforward import GrantHistory, Moved, credit_report
from billing.reports.deferred import AdvanceInvoice, deferred_report
from billing.reports.report import Report, grouped, pivoted, table, ties
from tests.billing_builders import NOVEMBER, OCTOBER, SINCE
from tests.unit.billing.test_deferrals import TAXED, invoice, line

ACME = ("USD", "acme")
DAY = timedelta(days=1)


def amounts(report: Report, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in columns) for row in report.rows]


def test_sums_are_exact_where_a_float_or_28_digits_would_not_be() -> None:
    parts = [Decimal("123456789012345678.000000000001"), Decimal("0.1"), Decimal("0.2"), Decimal("-0.3")]
    frame = table([{"of": "a", "amount": part} for part in parts], ("of", "amount"))
    assert grouped(frame, ["of"], ["amount"]).to_dict("records") == [{"of": "a", "amount": parts[0]}]
    wide = pivoted(frame.assign(what="x"), ["of"], "what", "amount", ["x", "y"])
    assert wide.to_dict("records") == [{"of": "a", "x": parts[0], "y": 0, "amount": parts[0]}]
    with pytest.raises(NotAnAmount, match="float"):
        table([{"amount": 0.1}], ("amount",))


def test_a_tie_holds_part_by_part_not_in_sum() -> None:
    (tie,) = ties("t", {("USD", "a"): Decimal(1), ("USD", "b"): Decimal(2)}, {("USD", "a"): Decimal(3)})
    assert (tie.reported, tie.recorded, tie.holds) == (3, 3, False)
    assert tie.differences == (("a", Decimal(1), Decimal(3)), ("b", Decimal(2), Decimal(0)))
    assert [tie.holds for tie in ties("t", {}, {})] == [True]
    assert [tie.currency for tie in ties("t", {ACME: Decimal(1)}, {("EUR", "acme"): Decimal(1)})] == ["EUR", "USD"]


def advance(amount: str, booked_at: datetime, number: str = "1", taxed: bool = False) -> AdvanceInvoice:
    """15.5 days of October and all 30 of November."""
    return AdvanceInvoice(invoice(line(amount), tax=TAXED if taxed else None), number, booked_at)


def test_fees_in_advance_are_rolled_forward_over_two_months() -> None:
    sold = advance("45.5", OCTOBER.start + 15 * DAY)
    october = deferred_report([sold], OCTOBER, {}, {("USD", "tenant_1"): Decimal(30)})
    columns = ("opening", "invoiced", "earned", "closing", "within_12_months", "later")
    assert amounts(october, *columns) == [(0, Decimal("45.5"), Decimal("-15.5"), 30, 30, 0)]
    november = deferred_report([sold], NOVEMBER, {("USD", "tenant_1"): Decimal(30)}, {})
    assert amounts(november, *columns) == [(30, 0, -30, 0, 0, 0)]
    assert october.holds
    assert november.holds


def test_a_credit_note_against_fees_lowers_what_is_left_and_tax_is_not_deferred() -> None:
    note = advance("-9.1", OCTOBER.start + 20 * DAY, "2")
    found = deferred_report([advance("54.145", OCTOBER.start, taxed=True), note], OCTOBER, {}, {})
    # 54.145 gross hold 8.64 of tax (rounded); 45.505 are deferred
    assert amounts(found, "document", "invoiced") == [("1", Decimal("45.505")), ("2", Decimal("-9.1"))]
    assert amounts(found, "document", "closing")[1] == ("2", Decimal(-6))
    assert [tie.holds for tie in found.ties] == [True, False]
    assert found.ties[1].differences[0][0] == "tenant_1"


def test_in_the_middle_of_a_month_what_was_earned_by_the_last_one_is() -> None:
    half = BillingPeriod(NOVEMBER.start, NOVEMBER.start + 15 * DAY)
    found = deferred_report([advance("45.5", OCTOBER.start)], half, {}, {})
    assert amounts(found, "opening", "earned", "closing") == [(30, 0, 30)]


def test_a_document_that_was_booked_after_its_time_began_is_less_than_nothing_before() -> None:
    late = advance("45.5", NOVEMBER.end + DAY)
    october = deferred_report([late], OCTOBER, {}, {("USD", "tenant_1"): Decimal("-15.5")})
    assert amounts(october, "invoiced", "earned", "closing") == [(0, Decimal("-15.5"), Decimal("-15.5"))]
    assert october.holds
    # where the book of October is closed, what it earned is booked with the document
    closed = replace(late, earned_at={"2026-10": NOVEMBER.end + DAY})
    assert deferred_report([closed], OCTOBER, {}, {}).rows == []
    assert amounts(deferred_report([closed], NOVEMBER, {}, {}), "earned") == [(-30,)]


def history(*moved: tuple[MovementKind, str, datetime], **changed: Any) -> GrantHistory:
    values: dict[str, Any] = {
        "grant_id": "g", "kind": GrantKind.PAID, "amount": Decimal(100), "currency": "USD", "effective": SINCE,
        "granted_at": SINCE,
    }  # fmt: skip
    return GrantHistory(Grant(**(values | changed)), "acme", [Moved(k, Decimal(a), at) for k, a, at in moved])


def test_what_is_owed_for_credits_is_rolled_forward() -> None:
    inside = OCTOBER.start + DAY
    found = credit_report(
        [
            history(
                (MovementKind.SETTLED, "0", SINCE),
                (MovementKind.DRAWN, "-20", SINCE + DAY),
                (MovementKind.DRAWN, "-30.5", inside),
                (MovementKind.RESTORED, "0.5", inside),
                (MovementKind.EXPIRED, "-50", OCTOBER.end - DAY),
                (MovementKind.REINSTATED, "10", OCTOBER.end - DAY),
                (MovementKind.DRAWN, "-10", OCTOBER.end),
            ),
            history((MovementKind.SETTLED, "0", inside), (MovementKind.REFUNDED, "-40", inside), grant_id="h"),
            history((MovementKind.VOIDED, "-100", inside), grant_id="never paid"),
            history((MovementKind.VOIDED, "-25", inside), grant_id="p", kind=GrantKind.PROMO),
        ],
        OCTOBER,
        {("USD", "g"): Decimal(80)},
        {("USD", "g"): Decimal(10), ("USD", "h"): Decimal(60)},
    )
    columns = ("grant_id", "opening", "granted", "drawn", "expired", "refunded", "voided", "closing")
    assert amounts(found, *columns) == [
        ("g", 80, 0, -30, -40, 0, 0, 10),
        ("h", 0, 100, 0, 0, -40, 0, 60),
        ("p", 100, 0, 0, 0, 0, -25, 75),
    ]
    assert found.holds


def test_a_credit_that_the_books_owe_otherwise_is_named() -> None:
    found = credit_report([history((MovementKind.SETTLED, "0", SINCE))], OCTOBER, {("USD", "g"): Decimal(100)}, {})
    assert [tie.holds for tie in found.ties] == [True, False]
    assert found.ties[1].differences == (("g", Decimal(100), Decimal(0)),)


TODAY = date(2026, 10, 31)


def owes(name: str, amount: str, days_overdue: int, **changed: Any) -> Receivable:
    made = Receivable(name, "acme", "USD", Decimal(amount), name, due=TODAY - timedelta(days=days_overdue))
    return replace(made, **changed)


def aged(documents: list[Receivable], *settled: Settled, booked: str = "0") -> Report:
    balance = {ACME: Decimal(booked)} if Decimal(booked) else {}
    return ageing_report(documents, settled, TODAY, balance, by_document=True)


@pytest.mark.parametrize(
    ("days", "bucket"),
    [(-5, "not_due"), (0, "not_due"), (1, "days_1_30"), (30, "days_1_30"), (31, "days_31_60"), (60, "days_31_60"),
     (61, "days_61_90"), (90, "days_61_90"), (91, "days_over_90"), (400, "days_over_90")],
)  # fmt: skip
def test_the_buckets_of_ageing(days: int, bucket: str) -> None:
    (row,) = aged([owes("a", "7", days)], booked="7").rows
    assert {name for name, value in row.items() if name in ("not_due",) or name.startswith("days_") if value == 7} == {
        bucket
    }


def test_a_payment_pays_what_stripe_says_is_paid_and_then_what_was_due_first() -> None:
    documents = [owes("old", "10", 40), owes("new", "30", 5), owes("known", "50", 1, is_paid=True)]
    found = aged(documents, Settled("acme", "USD", Decimal(-54)), booked="36")
    assert amounts(found, "document", "open") == [("old", 6), ("new", 30)]
    assert found.holds


def test_notes_and_what_was_written_off_lower_the_document_that_they_name() -> None:
    note = owes("note", "-4", 0, against="a")
    off = Settled("acme", "USD", Decimal(-3), "b")
    found = aged([owes("a", "10", 2), owes("b", "3", 90), note], off, booked="6")
    assert amounts(found, "document", "open", "days_1_30") == [("a", 6, 6)]
    assert found.holds


def test_what_is_paid_beyond_all_documents_is_unapplied() -> None:
    found = aged([owes("a", "10", 2)], Settled("acme", "USD", Decimal(-12)), booked="-2")
    assert amounts(found, "document", "open", "not_due") == [(UNAPPLIED, -2, -2)]
    # a note over more than was left of its document is there to pay others with
    more = aged([owes("a", "10", 2), owes("n", "-13", 0, against="a"), owes("b", "8", 1)], booked="5")
    assert amounts(more, "document", "open") == [("b", 5)]
    assert found.holds
    assert more.holds


def test_ageing_by_account_sums_up_and_tells_what_the_books_have_otherwise() -> None:
    documents = [owes("a", "10", 2), owes("b", "5.5", 200), replace(owes("c", "1", 0), billing_account="beta")]
    found = ageing_report(documents, [], TODAY, {ACME: Decimal("15.5")}, by_document=False)
    assert amounts(found, "billing_account", "open", "days_1_30", "days_over_90") == [
        ("acme", Decimal("15.5"), 10, Decimal("5.5")),
        ("beta", 1, 0, 0),
    ]
    assert total(row["open"] for row in found.rows) == Decimal("16.5")
    assert found.ties[0].differences == (("beta", Decimal(1), Decimal(0)),)
