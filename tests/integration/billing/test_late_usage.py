"""Usage that comes after its invoice was frozen: adjustment lines, credit notes, adjustment invoices, by command."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from billing.commands.change_subscription import cancel_subscription
from billing.commands.show_invoices import invoice_document, invoice_list
from billing.stripe_gateway import StripeGateway
from tests.billing_builders import NOVEMBER, OCTOBER, subscription
from tests.fixtures_stripe_twin import StripeTwin
from tests.integration.billing.conftest import World
from tests.integration.billing.late_months import DECEMBER, Arrivals, Months, correction, said, used

DAY = timedelta(days=1)
FIRST = used("first", OCTOBER.start + DAY, 50_000)
LATE = used("late", OCTOBER.start + 20 * DAY, 30_000)


@pytest.fixture
def months(world: World, gateway: StripeGateway, own_database_url: str) -> Months:
    """Acme on a plan of 0.002 an output token, with 50,000 of them in October."""
    world.customers("acme")
    found = Months(world, gateway, Arrivals(own_database_url))
    found.comes(FIRST)
    return found


def entries(world: World, kind: str) -> list[tuple[str, str | None, dict[int, Decimal]]]:
    """Accounting period, original period and legs of each entry of a kind."""
    rows = world.rows(
        "select e.entry_id, e.accounting_period, e.original_period, a.code, p.amount from ledger.journal_entries e"
        " join ledger.postings p using (entry_id) join ledger.accounts a using (account_id)"
        " where e.kind = :kind order by e.entry_id, a.code",
        kind=kind,
    )
    found: dict[int, tuple[str, str | None, dict[int, Decimal]]] = {}
    for entry_id, month, original, code, amount in rows:
        found.setdefault(entry_id, (month, original, {}))[2][code] = amount
    return list(found.values())


def test_what_is_owed_more_is_a_line_on_the_next_invoice_with_its_original_period(
    months: Months, stripe_twin: StripeTwin
) -> None:
    months.close(OCTOBER)
    months.comes(LATE, used("second", NOVEMBER.start, 10_000))
    assert months.differences(OCTOBER) == {"2026-10 usage is rated": ["acme/output"]}
    closed = months.close(NOVEMBER)
    (late,) = closed.earlier[0].late
    assert (late.tenant_id, late.amount) == ("acme", 60)
    assert months.stored() == said(months.core((OCTOBER, NOVEMBER)))
    (document,) = invoice_list(months.world.engine, period=NOVEMBER)
    assert {line["line_key"]: (line["original_period"], line["amount"]) for line in document["lines"]} == {
        "adj.out": ("2026-10", 6000),
        "out": ("2026-11", 2000),
    }
    assert entries(months.world, "accrual")[1] == ("2026-10", None, {1150: 60, 4000: -60})
    assert months.balance() == {1100: 180, 4000: -180}
    assert months.differences(OCTOBER, NOVEMBER) == {}
    (latest, _) = stripe_twin.client().v1.invoices.list().data
    assert {line.metadata["line_key"]: line.amount for line in latest.lines.data} == {"adj.out": 6000, "out": 2000}


def test_late_usage_waits_for_the_next_invoice_and_is_worked_out_anew_with_what_comes_then(months: Months) -> None:
    months.close(OCTOBER)
    months.comes(LATE)
    again = months.close(OCTOBER)
    assert (again.drafted.changed, again.notes.notes) == ((), ())
    assert months.balance() == {1100: 100, 1150: 60, 4000: -160}
    assert months.differences(OCTOBER) == {}
    months.comes(used("later", OCTOBER.end - DAY, 1), correction(LATE, -10_000))
    months.close(NOVEMBER)
    assert months.stored() == said(months.core((OCTOBER, NOVEMBER)))
    assert months.stored()[1]["lines"] == {"adj.out": (4000, "40.002")}
    assert months.differences(OCTOBER, NOVEMBER) == {}


def test_what_is_owed_less_is_a_credit_note_in_a_series_of_its_own(months: Months, stripe_twin: StripeTwin) -> None:
    months.close(OCTOBER)
    months.comes(correction(FIRST, -12_345))
    closed = months.close(OCTOBER)
    (note,) = closed.notes.notes
    assert (note.number, note.state.value, note.invoice.total_minor) == ("CN-000001", "issued_locally", -2469)
    assert months.stored() == said(months.core((OCTOBER,)))
    assert entries(months.world, "accrual")[1] == ("2026-10", None, {1150: Decimal("-24.69"), 4000: Decimal("24.69")})
    assert entries(months.world, "credit_note") == [
        ("2026-11", "2026-10", {1100: Decimal("-24.69"), 1150: Decimal("24.69")})
    ]
    assert months.balance() == {1100: Decimal("75.31"), 4000: Decimal("-75.31")}
    assert months.differences(OCTOBER) == {}
    document = invoice_document(months.world.engine, "CN-000001")
    assert document["reason_not_in_stripe"] == "issued here: credit notes are not sent to Stripe yet"
    assert len(stripe_twin.client().v1.invoices.list().data) == 1


def test_closing_again_changes_nothing(months: Months) -> None:
    months.close(OCTOBER)
    months.comes(LATE, correction(FIRST, -50_000))
    months.close(OCTOBER)
    months.close(NOVEMBER)
    tables = ("rated_lines", "journal_entries", "invoices", "invoice_lines", "issued_numbers", "billed_coverables")
    before = [months.world.count(f"ledger.{table}") for table in tables]
    for period in (OCTOBER, NOVEMBER, OCTOBER):
        closed = months.close(period)
        assert (closed.rated.lines_posted, closed.drafted.changed, closed.notes.notes) == (0, (), ())
    assert [months.world.count(f"ledger.{table}") for table in tables] == before


def test_an_account_without_a_next_invoice_gets_one_of_its_own(months: Months) -> None:
    months.subscriptions = (replace(subscription("acme"), ends_at=OCTOBER.end - DAY),)
    cancel_subscription(months.world.engine, tenant_id="acme", at=OCTOBER.end - DAY, actor="test")
    months.close(OCTOBER)
    months.comes(LATE)
    months.close(OCTOBER)
    assert [(d["kind"], d["lines"]) for d in months.stored()] == [
        ("adjustment", {"adj.out": (6000, "60")}),
        ("usage", {"out": (10_000, "100")}),
    ]
    assert months.stored() == said(months.core((OCTOBER, NOVEMBER)))
    months.comes(used("later", OCTOBER.start + 2 * DAY, 7_000))
    months.close(NOVEMBER)
    kinds = [(d["kind"], d["revision"], d["total"]) for d in invoice_list(months.world.engine)]
    assert kinds == [("adjustment", 0, 6000), ("adjustment", 1, 1400), ("usage", 0, 10_000)]
    assert months.balance() == {1100: 174, 4000: -174}
    assert months.differences(OCTOBER, NOVEMBER) == {}


def test_three_months_with_late_usage_of_two(months: Months) -> None:
    months.comes(used("second", NOVEMBER.start, 10_000))
    months.close(OCTOBER)
    months.comes(LATE)
    months.close(NOVEMBER)
    months.comes(correction(LATE, -15_000), used("third", NOVEMBER.end - DAY, 123_456))
    months.close(DECEMBER)
    assert months.stored() == said(months.core((OCTOBER, NOVEMBER, DECEMBER)))
    assert [d["kind"] for d in months.stored()] == ["credit_note", "usage", "usage", "usage"]
    assert months.differences(OCTOBER, NOVEMBER, DECEMBER) == {}
