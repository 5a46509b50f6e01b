"""Usage that comes after its invoice was frozen: adjustment lines, credit notes, adjustment invoices, by command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from types import ModuleType
from typing import Any

import pytest

from billing.bills.credits import Applicability, Grant, GrantKind
from billing.bills.tax import TaxMode, TaxRules
from billing.commands import close_month
from billing.commands.change_subscription import cancel_subscription
from billing.commands.expire_credits import expire_credits
from billing.commands.explain_invoice import explain_invoice
from billing.commands.keep_accounts import add_account, add_entity
from billing.commands.set_tax import set_tax
from billing.commands.show_invoices import invoice_document, invoice_list
from billing.commands.unbillable_usage import approve_unbillable, unbillable_usage
from billing.database import transaction
from billing.invoicing import invoice_store, number_store
from billing.invoicing.explained import Share
from billing.invoicing.invoice_check import check_document
from billing.invoicing.invoice_file import invoice_file
from billing.invoicing.sending import SendingStep
from billing.invoicing.tax_store import DatedTaxRules
from billing.plans.plan_file import parse_plan
from billing.posting.period_closing import close_book
from billing.presentation.pages import html_of
from billing.presentation.ubl import ubl_of
from billing.stripe.stripe_gateway import StripeGateway
from reconciliation.close import close_store
from reconciliation.close.states import Event
from tests.billing_builders import NOVEMBER, OCTOBER, PLAN, SINCE, subscription
from tests.fixtures_stripe_twin import StripeTwin
from tests.integration.billing.conftest import Crash, World
from tests.integration.billing.late_months import DECEMBER, Arrivals, Months, correction, said, used
from tests.integration.billing.test_credits import assert_the_liability_is_what_is_left, give, grant, left
from tests.ubl_rules import broken_rules

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


def two_groups(world: World, gateway: StripeGateway, url: str, *grants: Grant) -> Months:
    """Acme on a plan of two tax groups: output at 0.002 and input at 0.001, which is `low`."""
    plan = PLAN.replace('metric: input, price: "0.001"', 'metric: input, price: "0.001", tax_group: low')
    world.tenant("acme")
    world.plan(plan)
    world.subscribe("acme")
    give(world, *grants)
    return Months(world, gateway, Arrivals(url), plan, grants=grants)


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
    assert document["reason_not_in_stripe"] == (
        "issued here: Stripe is not told of it yet, or has no invoice that it could lower"
    )
    assert len(stripe_twin.client().v1.invoices.list().data) == 1
    assert_what_was_billed_since_is_compared(months, "credit_note", booked="1150/acme/USD")


def assert_what_was_billed_since_is_compared(months: Months, kind: str, *, booked: str) -> None:
    """With the next month: of its own month nobody asks any more."""
    of = f"where invoice_id in (select invoice_id from ledger.invoices where kind = '{kind}')"
    for table, change, check in (
        ("ledger.invoice_lines", "amount_minor = amount_minor + {0}", "invoices add up"),
        ("ledger.invoices", "(tax_minor, total_minor) = (tax_minor + {0}, total_minor + {0})", "invoices add up"),
        ("ledger.invoice_lines", "amount_exact = amount_exact + {0}", "issued invoices are booked"),
    ):
        guards = [f"alter table {table} {each} trigger user" for each in ("disable", "enable")]
        damage, mended = (f"update {table} set {change.format(by)} {of}" for by in (7, -7))
        months.world.as_owner(guards[0], damage)
        keys = months.differences(NOVEMBER)[f"2026-11 {check}"]
        months.world.as_owner(mended, guards[1])
        ids = [str(row[0]) for row in months.world.rows(f"select invoice_id from ledger.invoices {of}")]
        assert booked in keys or any(key.startswith(tuple(ids)) for key in keys)
    assert months.differences(NOVEMBER) == {}


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
    assert_what_was_billed_since_is_compared(months, "adjustment", booked="1150/acme/USD")
    months.world.as_owner(
        "alter table ledger.invoices disable trigger user",
        "update ledger.invoices set state = 'void' where kind = 'adjustment'",
    )
    in_stripe = months.differences(NOVEMBER)["2026-11 finalized invoices are in Stripe"]
    assert [key.partition("/")[2] for key in in_stripe] == ["status", "status"]


def test_of_who_was_closed_without_an_invoice_what_comes_late_is_on_the_next_one(months: Months) -> None:
    """There was nothing to bill, so that no invoice is there to be adjusted."""
    world, late = months.world, used("late-of-beta", OCTOBER.start + DAY, 30_000, "beta")
    world.tenant("beta")
    world.subscribe("beta")
    months.close(OCTOBER)
    with transaction(world.engine) as connection:
        standing = close_store.Standing(OCTOBER.name, "default", "beta")
        for each in (Event.COLLECT, Event.FREEZE, Event.DRAFT, Event.RECONCILE, Event.APPROVE, Event.FINALIZE):
            (standing,) = close_store.move(connection, [standing], each, "ada")
        close_store.move(connection, [standing], Event.CLOSE, "ada")
    months.comes(late)
    months.close(OCTOBER)
    assert months.balance() == {1100: 100, 1150: 60, 4000: -160}
    assert months.differences(OCTOBER) == {}
    months.close(NOVEMBER)
    (document,) = invoice_list(world.engine, billing_account="beta")
    assert [(line["line_key"], line["original_period"], line["amount"]) for line in document["lines"]] == [
        ("adj.out", "2026-10", 6000)
    ]
    explained = explain_invoice(world.engine, _no_archive, document["number"], lambda _: None)
    assert ([of.counted for of in explained.counters], explained.agrees) == ([30_000], True)
    months.comes(correction(late, -10_000))
    months.close(NOVEMBER)
    assert [(d["kind"], d["total"]) for d in invoice_list(world.engine, billing_account="beta")] == [
        ("credit_note", -2000), ("usage", 6000)
    ]  # fmt: skip
    assert months.balance() == {1100: 140, 4000: -140}
    assert months.differences(OCTOBER, NOVEMBER) == {}


STEPS = ("issue_credit_notes", "draft_invoices", "send_invoices", "expire_credits", "seal_journals")


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_between_any_two_steps_changes_nothing_in_the_end(
    months: Months, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    months.comes(used("low", OCTOBER.start + 2 * DAY, 100))
    months.close(OCTOBER)
    months.comes(LATE, correction(FIRST, -45_000), used("second", NOVEMBER.start, 10_000))
    with monkeypatch.context() as killed:
        killed.setattr(close_month, step, _killed)
        with pytest.raises(Crash):
            months.run(NOVEMBER)
    months.close(NOVEMBER)
    assert months.stored() == said(months.core((OCTOBER, NOVEMBER)))
    assert len(entries(months.world, "credit_note")) == 1
    assert months.differences(OCTOBER, NOVEMBER) == {}


@pytest.mark.parametrize(
    ("store", "inside"), [(invoice_store, "save_draft"), (number_store, "issue_number"), (invoice_store, "move")]
)
def test_a_kill_while_a_credit_note_is_issued_leaves_nothing_of_it(
    months: Months, monkeypatch: pytest.MonkeyPatch, store: ModuleType, inside: str
) -> None:
    months.close(OCTOBER)
    months.comes(correction(FIRST, -45_000))
    with monkeypatch.context() as killed:
        killed.setattr(store, inside, _after(getattr(store, inside)))
        with pytest.raises(Crash):
            months.run(OCTOBER)
    assert [d["kind"] for d in months.stored()] == ["usage"]
    months.close(OCTOBER)
    assert months.world.rows("select written from ledger.issued_numbers where series = 'credit_note'") == [
        ("CN-000001",)
    ]
    assert months.stored() == said(months.core((OCTOBER,)))
    assert months.differences(OCTOBER) == {}


def _killed(*_: Any, **__: Any) -> None:
    raise Crash("between two steps")


def _after(done: Callable[..., Any]) -> Callable[..., None]:
    def run(*given: Any, **named: Any) -> None:
        done(*given, **named)
        raise Crash("done, not committed")

    return run


def test_what_credits_paid_goes_back_to_them_first(months: Months) -> None:
    months.grants = (grant("topup", "30", kind=GrantKind.PAID, paid_at=SINCE),)
    give(months.world, *months.grants)
    months.close(OCTOBER)
    months.comes(correction(FIRST, -20_000))
    months.close(OCTOBER)
    # 100 - 30 by credit; of the 40 that come back 30 go to the credit, 10 to the payer.
    assert months.stored() == said(months.core((OCTOBER,)))
    note = months.stored()[0]
    assert (note["total"], note["paid"], note["due"]) == (-4000, {"topup": -3000}, -1000)
    assert entries(months.world, "credit_note")[0][2] == {1100: -10, 1150: 40, 2100: -30}
    assert left(months.world) == {"topup": 30}
    assert_the_liability_is_what_is_left(months.world)
    assert months.differences(OCTOBER) == {}


def test_late_usage_draws_on_what_was_valid_at_its_time_though_it_expired_since(months: Months) -> None:
    months.grants = (grant("topup", "130", kind=GrantKind.PAID, paid_at=SINCE, expires=OCTOBER.end),)
    give(months.world, *months.grants)
    months.close(OCTOBER)
    assert months.balance()[4100] == -30
    months.comes(used("late", OCTOBER.start + DAY, 10_000), used("second", NOVEMBER.start, 1000))
    months.close(NOVEMBER)
    assert months.stored() == said(months.core((OCTOBER, NOVEMBER)))
    assert months.stored()[1]["paid"] == {"topup": 2000}
    assert months.balance()[4100] == -10
    assert_the_liability_is_what_is_left(months.world)
    assert months.differences(OCTOBER, NOVEMBER) == {}


def test_what_an_invoice_gives_back_that_is_not_issued_yet_is_not_there_to_expire(months: Months) -> None:
    ends = NOVEMBER.start + 20 * DAY
    promo = grant("promo", "50", expires=ends, applies_to=Applicability(charges=frozenset({"in"})))
    give(months.world, promo)
    asked = used("input", OCTOBER.start + DAY, 0, input_tokens=20_000)
    months.comes(asked)
    months.close(OCTOBER)
    months.comes(correction(asked, 0) | {"input_tokens": -5_000}, LATE)
    at, world = NOVEMBER.end + 2 * DAY, months.world
    for period in (OCTOBER, NOVEMBER):
        assert world.rate(period, at).ok
    assert world.draft(NOVEMBER, at).blocked == ()
    world.send(months.gateway, NOVEMBER, now=at, until=SendingStep.FROZEN)
    # 30 are left. The invoice will give back 5: not before it is issued.
    assert [each.amount for each in expire_credits(world.engine, up_to=NOVEMBER.end, now=at, actor="ada")] == [30]
    months.close(NOVEMBER)
    assert left(world) == {"promo": 0}
    assert world.rows("select kind, amount from ledger.credit_movements order by movement_no") == [
        ("drawn", -20), ("expired", -30), ("restored", 5), ("expired", -5),
    ]  # fmt: skip


def test_who_draws_what_a_note_that_is_not_issued_yet_gives_back_waits_alone(
    world: World, gateway: StripeGateway, own_database_url: str
) -> None:
    months = two_groups(world, gateway, own_database_url, grant("promo", "10"))
    world.tenant("beta")
    world.subscribe("beta")
    first = used("first", OCTOBER.start + DAY, 3_000)
    months.comes(first, used("input", OCTOBER.start + 9 * DAY, 0, input_tokens=10_000))
    at = OCTOBER.end + 2 * DAY
    world.rate(OCTOBER, at)
    world.draft(OCTOBER, at)
    world.send(gateway, OCTOBER, now=at, until=SendingStep.FROZEN)
    more = used("more", OCTOBER.start + 10 * DAY, 0, input_tokens=10_000)
    months.comes(correction(first, -2_000), more, used("other", NOVEMBER.start, 1_000, tenant_id="beta"))
    at = NOVEMBER.end + 2 * DAY
    world.rate(OCTOBER, at)
    world.rate(NOVEMBER, at)
    drafted = world.draft(NOVEMBER, at)
    # The credit that the note for the output gives back is drawn for the input.
    assert [name for name, _ in drafted.blocked] == ["acme"]
    assert [invoice.identity.billing_account for invoice in drafted.changed] == ["beta"]
    world.send(gateway, OCTOBER, now=at)
    months.close(NOVEMBER)
    assert left(world) == {"promo": 0}
    assert [(each["kind"], each["total"]) for each in months.stored()] == [
        ("credit_note", 0), ("usage", 600), ("usage", 600),
    ]  # fmt: skip
    assert months.differences(OCTOBER, NOVEMBER) == {}


def test_what_promotions_take_off_what_came_late_and_then_off_other_usage_in_its_place_is_shown(
    world: World, gateway: StripeGateway, own_database_url: str
) -> None:
    grants = grant("first", "110", priority=10), grant("second", "100")
    months = two_groups(world, gateway, own_database_url, *grants)
    months.comes(FIRST, used("input", OCTOBER.start + 9 * DAY, 0, input_tokens=20_000))
    months.close(OCTOBER)
    months.comes(used("late", OCTOBER.start + 2 * DAY, 2_500))
    months.close(NOVEMBER)
    # The first has no more than 110: the 5 that it takes off what came late, it takes off the input no more.
    assert months.stored()[1]["lines"] == {
        "adj.credit.first.low": (500, "5"), "adj.credit.first.std": (-500, "-5"), "adj.credit.second": (-500, "-5"),
        "adj.out": (500, "5"),
    }  # fmt: skip
    assert months.stored() == said(months.core((OCTOBER, NOVEMBER)))
    assert left(world) == {"first": 0, "second": 85}
    assert months.balance() == {4000: -125, 4900: 125}
    assert months.differences(OCTOBER, NOVEMBER) == {}


def test_late_usage_is_taxed_at_the_rate_of_its_own_period(months: Months) -> None:
    then = TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal("0.19")})
    now = TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal("0.16")})
    set_tax(months.world.engine, DatedTaxRules("acme", then, SINCE, ""), actor="ada")
    set_tax(months.world.engine, DatedTaxRules("acme", now, NOVEMBER.start, ""), actor="ada")
    months.close(OCTOBER)
    months.comes(LATE, used("second", NOVEMBER.start, 10_000))
    months.close(NOVEMBER)
    assert months.stored()[1]["tax"] == {"std": (2000, 320), "std@2026-10": (6000, 1140)}
    months.comes(correction(LATE, -10_000))
    months.close(NOVEMBER)
    (note, *_) = months.stored()
    assert (note["tax"], note["total"]) == ({"std": (-2000, -380)}, -2380)
    assert months.differences(OCTOBER, NOVEMBER) == {}


def test_under_another_mode_of_tax_late_usage_gets_an_adjustment_invoice(months: Months) -> None:
    then = TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal("0.19")})
    set_tax(months.world.engine, DatedTaxRules("acme", then, SINCE, ""), actor="ada")
    abroad = TaxRules(TaxMode.REVERSE_CHARGE)
    set_tax(months.world.engine, DatedTaxRules("acme", abroad, NOVEMBER.start, "DE123456789"), actor="ada")
    months.close(OCTOBER)
    months.comes(LATE, used("second", NOVEMBER.start, 10_000))
    months.close(NOVEMBER)
    shown = [(d["kind"], d["period"], d["tax"], d["total"]) for d in months.stored()]
    assert shown == [
        ("adjustment", "2026-10", {"std": (6000, 1140)}, 7140),
        ("usage", "2026-10", {"std": (10_000, 1900)}, 11_900),
        ("usage", "2026-11", {"std": (2000, 0)}, 2000),
    ]
    assert months.differences(OCTOBER, NOVEMBER) == {}


def test_usage_in_a_closed_book_is_booked_in_the_open_one_with_its_original_period(months: Months) -> None:
    months.close(OCTOBER)
    with transaction(months.world.engine) as connection:
        close_book(connection, "default", "2026-10", OCTOBER.end + 2 * DAY)
    months.comes(LATE)
    months.close(OCTOBER)
    assert entries(months.world, "accrual")[1] == ("2026-11", "2026-10", {1150: 60, 4000: -60})
    months.close(NOVEMBER)
    assert months.stored() == said(months.core((OCTOBER, NOVEMBER)))
    assert months.differences(OCTOBER, NOVEMBER) == {}


def test_usage_that_disappears_parks_the_tenant_and_credits_nothing(months: Months) -> None:
    months.comes(used("other", OCTOBER.start + 2 * DAY, 5_000))
    months.close(OCTOBER)
    guards = months.world.rows(
        "select tgname from pg_trigger where tgrelid = 'usage.events'::regclass and not tgisinternal"
    )
    months.world.as_owner(
        *(f"drop trigger {guard} on usage.events" for (guard,) in guards),
        "delete from usage.events where request_id = 'other'",
        "update usage.windows_1h set output_tokens = 0, requests = 0, events = 0 where output_tokens = 5000",
    )
    months.comes(used("second", NOVEMBER.start, 10_000))
    closed = months.run(NOVEMBER)
    (said_first, blocked) = closed.problems
    assert "2 events of 2026-10 were billed, of these 1 are there now" in said_first
    assert blocked.startswith("billing account acme has no invoice: tenant acme, 2026-10: ")
    assert months.balance() == {1100: 110, 1150: 20, 4000: -130}


def test_windows_that_lost_usage_park_the_tenant(months: Months) -> None:
    months.close(OCTOBER)
    months.world.execute("update usage.windows_1h set output_tokens = 1000")
    (problem, *_) = months.run(OCTOBER).problems
    assert "hourly windows of 2026-10 are not what its events come to" in problem
    assert months.balance() == {1100: 100, 4000: -100}


def test_what_is_older_than_the_contract_bills_waits_for_a_named_person(world: World, gateway: StripeGateway,
                                                                       own_database_url: str) -> None:  # fmt: skip
    plan = PLAN.replace("currency: USD", "currency: USD\nterms: {late_usage_days: 10}")
    world.tenant("acme")
    world.plan(plan)
    world.subscribe("acme")
    terms = parse_plan(plan, file="plan.yaml").terms
    months = Months(
        world, gateway, Arrivals(own_database_url), plan, subscriptions=(subscription("acme", terms=terms),)
    )
    months.comes(FIRST)
    months.close(OCTOBER)
    old, young = used("old", OCTOBER.end - 11 * DAY, 7_000), used("young", OCTOBER.end - 9 * DAY, 30_000)
    months.comes(old, young, correction(FIRST, -1))
    (problem,) = months.run(OCTOBER).problems
    assert problem.startswith("2026-10: 2 events of acme came later than its contract bills")
    assert approve_unbillable(world.engine, OCTOBER, reason="contract 7", actor="bob") == 2
    # Half a month on it would be too old; it was judged when it came.
    months.comes(used("second", NOVEMBER.start, 10_000))
    months.close(NOVEMBER)
    months.close(DECEMBER)
    found = {e.usage.request_id: (e.approved_by, e.reason) for e in unbillable_usage(world.engine, OCTOBER)["acme"]}
    assert found == {"old": ("bob", "contract 7"), "first": ("bob", "contract 7")}
    bills = months.core((OCTOBER, NOVEMBER, DECEMBER))
    assert [event.request_id for event in bills.unbillable] == ["old", "first"]
    assert months.stored() == said(bills)
    assert months.stored()[1]["lines"] == {"adj.out": (6000, "60"), "out": (2000, "20")}
    assert months.differences(OCTOBER, NOVEMBER, DECEMBER) == {}


def test_a_credit_note_is_a_document_that_adds_up_in_every_form(months: Months) -> None:
    set_tax(
        months.world.engine,
        DatedTaxRules("acme", TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal("0.19")}), SINCE, ""),
        actor="ada",
    )
    for name, entity in (("default", True), ("acme", False)):
        values = {"name": f"{name} Ltd", "country": "DE", "tax_id": "DE123456789"}
        if entity:
            add_entity(months.world.engine, name=name, actor="ada", values=values)
        else:
            add_account(months.world.engine, name=name, actor="ada", values=values)
    months.close(OCTOBER)
    months.comes(correction(FIRST, -12_345))
    months.close(OCTOBER)
    for reference in ("CN-000001", "INV-000001"):
        document = invoice_document(months.world.engine, reference)
        invoice = invoice_file(json.loads(json.dumps(document)))
        assert check_document(invoice) == []
        assert broken_rules(ubl_of(invoice)) == []
    note = invoice_file(invoice_document(months.world.engine, "CN-000001"))
    assert note.credits_invoice is not None
    assert note.credits_invoice.number == "INV-000001"
    text = ubl_of(note)
    for expected in ("<cbc:CreditNoteTypeCode>381<", ">24.69<", ">4.69<", "INV-000001", ">12345<"):
        assert expected in text
    page = html_of(note)
    for expected in ("Credit note CN-000001", "INV-000001 of 3 Nov 2026", "Amount in your favour", "USD 29.38"):
        assert expected in page
    shares: list[Share] = []
    explained = explain_invoice(months.world.engine, _no_archive, "CN-000001", shares.append)
    assert [(share.event.request_id, share.event.kind, share.quantity) for share in shares] == [
        ("first", "correction", -12_345)
    ]
    assert [(of.counter.period, of.lines, of.counted, of.waits) for of in explained.counters] == [
        ("2026-10", ("adj.out",), -12_345, 0)
    ]
    assert explained.agrees
    months.comes(LATE)
    unrated = explain_invoice(months.world.engine, _no_archive, "CN-000001", shares.append)
    assert (unrated.agrees, [of.found for of in unrated.counters]) == (False, [17_655])
    months.world.rate(OCTOBER)
    waiting = explain_invoice(months.world.engine, _no_archive, "CN-000001", shares.append)
    assert (waiting.agrees, [of.waits for of in waiting.counters]) == (True, [30_000])


def _no_archive() -> Any:
    raise AssertionError("nothing is archived")


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
