"""Credits, tax and carried amounts: what the commands store is what the pure core says, and what the books hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from billing.bills.billing_cycle import Bills, History, bill
from billing.bills.breakage import BreakageEstimate
from billing.bills.credits import Applicability, Grant, GrantKind, TaxTreatment
from billing.bills.documents import Payer
from billing.bills.tax import NO_TAX, TaxMode, TaxRules
from billing.commands.change_subscription import change_subscription
from billing.commands.decide_proposal import decide, propose
from billing.commands.expire_credits import expire_credits
from billing.commands.grant_credit import Recurrence, credits_of, grant_credit, void_credit
from billing.commands.send_invoices import Outcome
from billing.commands.set_breakage import set_breakage
from billing.commands.set_tax import set_tax
from billing.commands.show_invoices import invoice_list
from billing.commands.trial_balance import account_balances, trial_balance
from billing.database import transaction
from billing.errors import CreditRefused, TaxRuleRefused
from billing.invoicing.credit_store import CreditState, GivenCredit
from billing.invoicing.sending import SendingStep
from billing.invoicing.tax_store import DatedTaxRules
from billing.money import currency, plain
from billing.periods import BillingPeriod, parse_period
from billing.plans.plan_file import parse_plan
from billing.posting.breakage_recognition import recognise_breakage
from billing.posting.period_closing import close_book
from billing.posting.proposal_store import ProposalKind
from billing.rating.usage_events import UsageEvent
from billing.stripe.stripe_gateway import StripeGateway
from reconciliation.period import reconcile_period
from tests.billing_builders import NOVEMBER, NOW, OCTOBER, PLAN, SINCE, subscription
from tests.closing import bill_month
from tests.fixtures_stripe_twin import StripeTwin
from tests.integration.billing.conftest import Crash, World, all_done, crash_at
from tests.integration.billing.test_retries import apply, event

VAT = TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal("0.19")})
DAY = timedelta(days=1)


def grant(grant_id: str, amount: str, **changed: Any) -> Grant:
    """A promotional credit in USD from January on."""
    values: dict[str, Any] = {"kind": GrantKind.PROMO, "currency": "USD", "effective": SINCE, "granted_at": SINCE}
    return Grant(grant_id, amount=Decimal(amount), **(values | changed))


def give(world: World, *grants: Grant, account: str = "acme") -> None:
    """Grant credits; a paid one is settled by a second person as of when it was paid."""
    for each in grants:
        given = GivenCredit(replace(each, paid_at=None), account, "because")
        grant_credit(world.engine, given, actor="ada")
        if each.paid_at is not None:
            settle(world, each.grant_id, each.paid_at)


def settle(world: World, grant_id: str, paid_at: datetime) -> None:
    content = {"paid_at": paid_at.isoformat()}
    number = propose(
        world.engine, ProposalKind.SETTLE_CREDIT, grant_id, content, document="bank 7", now=NOW, actor="ada"
    )
    decide(world.engine, number, approved=True, now=NOW, actor="bob")


def used(*usage: tuple[datetime, int]) -> tuple[UsageEvent, ...]:
    """Events of so many output tokens."""
    return tuple(
        UsageEvent(f"e{n}", at, {"output": Decimal(count)}, request_id=f"r{n}", model="llama")
        for n, (at, count) in enumerate(usage)
    )


def core(
    usage: Iterable[tuple[datetime, int]], grants: Sequence[Grant] = (), *, tax: TaxRules = NO_TAX,
    periods: tuple[BillingPeriod, ...] = (OCTOBER,), plan: str = PLAN, events: tuple[UsageEvent, ...] = (),
) -> Bills:  # fmt: skip
    """What the pure core bills for the same history."""
    versions = {"p": parse_plan(plan, file="plan.yaml").versions}
    of = subscription("acme")
    payer = Payer(currency("USD", periods[-1].end.date()), tax)
    return bill(History(payer, of.terms, periods, (of,), versions, events or used(*usage), grants=tuple(grants)))


def stored(world: World) -> list[dict[str, Any]]:
    """Each document of account acme, as its amounts."""
    return [
        {
            "lines": {line["line_key"]: line["amount"] for line in document["lines"]},
            "exact": document["exact_total"],
            "tax": {row["tax_group"]: (row["base"], row["amount"]) for row in document["tax"]},
            "paid": {row["credit_id"]: row["amount"] for row in document["credits"] if row["pays"]},
            "total": document["total"],
            "due": document["amount_due"],
        }
        for document in invoice_list(world.engine, billing_account="acme")
    ]


def said(bills: Bills, *, taxed: bool = False) -> list[dict[str, Any]]:
    """The same of the core's documents."""
    return [
        {
            "lines": {line.key: line.amount_minor for line in document.lines},
            "exact": plain(document.exact_total),
            "tax": {row.group: (row.base_minor, row.tax_minor) for row in document.taxes if taxed},
            "paid": {each.grant_id: each.used_minor for each in document.paid},
            "total": document.total_minor,
            "due": document.due_minor,
        }
        for document in bills.documents
    ]


def customer(world: World, usage: Iterable[tuple[datetime, int]], plan: str = PLAN) -> None:
    world.tenant("acme")
    world.plan(plan)
    world.subscribe("acme")
    for at, count in usage:
        world.use("acme", at=at, output_tokens=count)


def close(world: World, gateway: StripeGateway, period: BillingPeriod = OCTOBER) -> Any:
    assert world.rate(period).ok
    drafted = world.draft(period)
    assert all_done(drafted), drafted.blocked
    sent = world.send(gateway, period)
    assert all_done(sent), sent
    return sent


def balance(world: World) -> dict[int, Decimal]:
    found = trial_balance(world.engine)
    assert found.balanced
    return {row.code: row.debit - row.credit for row in found.rows if row.debit != row.credit}


def left(world: World) -> dict[str, Decimal]:
    return {state.grant.grant_id: state.remaining for state in credits_of(world.engine)}


def assert_the_liability_is_what_is_left(world: World) -> None:
    held = {row.subledger: -row.amount for row in account_balances(world.engine, code=2100, limit=100) if row.amount}
    owed = {s.grant.grant_id: s.remaining for s in credits_of(world.engine) if s.is_liability and s.remaining}
    assert held == owed


def test_a_promotional_credit_reduces_the_price_and_hits_income_when_it_is_used(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    usage = [(OCTOBER.start, 1000), (OCTOBER.start + DAY, 2000)]
    customer(world, usage)
    give(world, promo := grant("welcome", "5"))
    close(world, gateway)
    assert stored(world) == said(core(usage, [promo]))
    assert stored(world)[0]["lines"] == {"credit.welcome": -500, "out": 600}
    assert left(world) == {"welcome": 0}
    assert balance(world) == {1100: 1, 4000: -6, 4900: 5}
    (document,) = invoice_list(world.engine)
    assert document["credits"] == [
        {"credit_id": "welcome", "kind": "promo", "tax_treatment": "price_reduction", "pays": False, "amount": 500,
         "amount_exact": "5", "left": "0"}
    ]  # fmt: skip
    (invoice,) = stripe_twin.client().v1.invoices.list().data
    assert (invoice.total, invoice.amount_due) == (100, 100)


def test_what_is_left_goes_on_to_the_next_invoice(world: World, gateway: StripeGateway) -> None:
    usage = [(OCTOBER.start, 1000), (NOVEMBER.start, 5000)]
    customer(world, usage)
    sla = grant("sla-7", "5.505", kind=GrantKind.SLA)
    give(world, sla)
    close(world, gateway)
    close(world, gateway, NOVEMBER)
    assert stored(world) == said(core(usage, [sla], periods=(OCTOBER, NOVEMBER)))
    assert [document["credits"][0]["left"] for document in invoice_list(world.engine)] == ["3.505", "0"]
    assert balance(world)[4910] == Decimal("5.505")


def test_a_paid_credit_is_owed_once_it_is_settled_and_pays_the_total_with_its_tax(
    world: World, gateway: StripeGateway
) -> None:
    usage = [(OCTOBER.start, 1000), (OCTOBER.start + 5 * DAY, 10_000)]
    customer(world, usage)
    set_tax(world.engine, DatedTaxRules("acme", VAT, SINCE, ""), actor="ada")
    paid_at = OCTOBER.start + DAY
    topped_up = grant("topup", "10", kind=GrantKind.PAID)
    give(world, topped_up)
    assert balance(world) == {}
    settle(world, "topup", paid_at)
    assert balance(world) == {1020: 10, 2100: -10}
    assert_the_liability_is_what_is_left(world)
    close(world, gateway)
    # 22.00 and 4.18 of tax; of the 20 from the second day on 23.80 with tax are covered, of which 10 are there.
    assert stored(world) == said(core(usage, [replace(topped_up, paid_at=paid_at)], tax=VAT), taxed=True)
    assert stored(world)[0]["due"] == 2618 - 1000
    assert balance(world) == {1020: 10, 1100: Decimal("16.18"), 2200: Decimal("-4.18"), 4000: -22}
    assert_the_liability_is_what_is_left(world)


def test_an_invoice_that_credits_pay_whole_stays_here_as_a_zero_statement(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    customer(world, [(OCTOBER.start, 1000)])
    give(world, grant("topup", "10", kind=GrantKind.PAID, paid_at=SINCE))
    (sent,) = close(world, gateway).invoices
    assert sent.outcome is Outcome.ZERO
    assert stripe_twin.client().v1.invoices.list().data == []
    assert balance(world) == {1020: 10, 2100: -8, 4000: -2}


def test_grants_that_cover_different_charges_are_drawn_event_by_event(
    world: World, gateway: StripeGateway, own_database_url: str
) -> None:
    plan = PLAN.replace('price: "0.002"', 'price: "0.002", tax_group: low')
    times = [OCTOBER.start + timedelta(hours=5, minutes=n * 11, microseconds=n) for n in range(5)]
    world.tenant("acme")
    world.plan(plan)
    world.subscribe("acme")
    counted = [{"input_tokens": 600 * n, "output_tokens": 1000 * (6 - n)} for n in range(5)]
    models = ["llama", "mini", "llama", "mini", "llama"]
    apply(
        own_database_url,
        *({"tenant_id": "acme", "request_id": f"r{n}", "timestamp": at.isoformat(), "cache_hit_tokens": 0} | tokens
          | {"model": models[n]} for n, (at, tokens) in enumerate(zip(times, counted, strict=True))),
        # The first of two attempts is not billed.
        event(1, "aborted", times[1].isoformat(), 500, "twice"), event(2, "ok", times[2].isoformat(), 700, "twice"),
    )  # fmt: skip
    tax = TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal("0.19"), "low": Decimal("0.07")})
    set_tax(world.engine, DatedTaxRules("acme", tax, SINCE, ""), actor="ada")
    grants = [
        grant("late", "5.111", expires=times[3]),
        grant("soon", "2.5", expires=times[1] + timedelta(microseconds=1)),
        grant("only-in", "0.9", applies_to=Applicability(frozenset({"in"}))),
        grant("paid", "7", kind=GrantKind.PAID, paid_at=times[2], applies_to=Applicability(frozenset({"out"}))),
        grant("first", "0.5", priority=1, kind=GrantKind.GOODWILL, effective=times[3]),
        grant("mini", "6.1", priority=1, applies_to=Applicability(models=frozenset({"mini"}))),
    ]
    give(world, *grants)
    close(world, gateway)
    used = [
        UsageEvent(
            f"e{n}",
            at,
            {"input": Decimal(tokens["input_tokens"]), "output": Decimal(tokens["output_tokens"])},
            model=models[n],
        )
        for n, (at, tokens) in enumerate(zip(times, counted, strict=True))
    ]
    bills = core((), grants, tax=tax, plan=plan, events=(*used, UsageEvent("t", times[2], {"output": Decimal(700)})))
    assert stored(world) == said(bills, taxed=True)
    assert {g.grant_id: g.amount - bills.drawn[g.grant_id] for g in grants} == left(world)
    assert_the_liability_is_what_is_left(world)


@pytest.mark.parametrize("step", ["frozen", "draft_created", "compared", "released", "numbered", "finalized"])
def test_a_crash_at_any_step_draws_once(world: World, gateway: StripeGateway, step: str) -> None:
    customer(world, [(OCTOBER.start, 1000)])
    give(world, grant("a", "0.7"), grant("b", "0.5", kind=GrantKind.PAID, paid_at=SINCE))
    world.rate()
    world.draft()
    with pytest.raises(Crash):
        world.send(gateway, checkpoint=crash_at(f"stored {step}"))
    assert_the_liability_is_what_is_left(world)
    close(world, gateway)
    assert left(world) == {"a": 0, "b": 0}
    assert balance(world) == {1020: Decimal("0.5"), 1100: Decimal("0.8"), 4000: -2, 4900: Decimal("0.7")}
    assert_the_liability_is_what_is_left(world)


@pytest.mark.parametrize("treatment", [TaxTreatment.PRICE_REDUCTION, TaxTreatment.PAYMENT])
def test_grants_of_one_kind_of_usage_are_drawn_in_order_by_the_hour(
    world: World, gateway: StripeGateway, treatment: TaxTreatment
) -> None:
    usage = [(OCTOBER.start + n * DAY, 1111 * (n + 1)) for n in range(4)]
    customer(world, usage)
    set_tax(world.engine, DatedTaxRules("acme", VAT, SINCE, ""), actor="ada")
    grants = [
        grant("late", "1.11", expires=OCTOBER.start + 3 * DAY, tax_treatment=treatment),
        grant("soon", "3.5", expires=OCTOBER.start + DAY, tax_treatment=treatment),
        grant("paid", "7", kind=GrantKind.PAID, paid_at=OCTOBER.start + DAY),
        grant("first", "0.5", priority=1, kind=GrantKind.GOODWILL, effective=OCTOBER.start + 2 * DAY),
    ]
    give(world, *grants)
    close(world, gateway)
    bills = core(usage, grants, tax=VAT)
    assert stored(world) == said(bills, taxed=True)
    assert {g.grant_id: g.amount - bills.drawn[g.grant_id] for g in grants} == left(world)
    assert_the_liability_is_what_is_left(world)


def test_credits_reach_a_month_in_which_another_plan_lets_other_attempts_bill(
    world: World, own_database_url: str
) -> None:
    world.tenant("acme")
    world.plan(PLAN)
    world.plan(PLAN.replace("plan: p", "plan: q\nterms: {bill_attempts: all}"))
    world.subscribe("acme", plan="q")
    change_subscription(world.engine, tenant_id="acme", plan="p", at=OCTOBER.start + 15 * DAY, actor="ada")
    attempts = [(n, status, f"2026-10-{day}T10:00:0{n}Z", r) for r, day in (("a", "05"), ("b", "20"))
                for n, status in ((1, "aborted"), (2, "ok"))]  # fmt: skip
    apply(own_database_url, *(event(n, status, at, n * 100, request) for n, status, at, request in attempts))
    give(world, grant("g", "0.1"))
    assert world.rate().ok
    drafted = world.draft()
    assert all_done(drafted), drafted.blocked
    assert [document["exact"] for document in stored(world)] == ["0.9"]  # (100 + 200 + 200) x 0.002 - 0.1


def test_drawing_up_and_closing_again_changes_nothing(world: World, gateway: StripeGateway) -> None:
    customer(world, [(OCTOBER.start, 1000)])
    give(world, grant("a", "0.7"), grant("b", "0.5", kind=GrantKind.PAID, paid_at=SINCE))
    tables = ("credit_grants", "credit_movements", "invoice_credits", "journal_entries", "invoices", "invoice_lines")
    counts = []
    for _ in range(3):
        close(world, gateway)
        expire_credits(world.engine, up_to=NOW, now=NOW, actor="ada")
        counts.append([world.count(f"ledger.{table}") for table in tables])
    assert counts[0] == counts[1] == counts[2]
    assert len(world.draft().frozen) == 1


def test_a_draft_follows_what_is_granted_and_voided_before_it_is_frozen(world: World, gateway: StripeGateway) -> None:
    customer(world, [(OCTOBER.start, 1000)])
    world.rate()
    world.draft()
    give(world, grant("a", "0.7"))
    assert len(world.draft().changed) == 1
    assert void_credit(world.engine, "a", reason="mistake", now=NOW, actor="ada") == Decimal("0.7")
    assert void_credit(world.engine, "a", reason="mistake", now=NOW, actor="ada") == 0
    (parked,) = world.send(gateway).invoices
    assert (parked.outcome, "draw the invoices up again" in str(parked.reason)) == (Outcome.PARKED, True)
    close(world, gateway)
    assert stored(world)[0]["due"] == 200
    assert left(world) == {"a": 0}


def test_two_months_drafted_at_once_do_not_draw_the_same_credit_twice(world: World, gateway: StripeGateway) -> None:
    usage = [(OCTOBER.start, 1000), (NOVEMBER.start, 1000)]
    customer(world, usage)
    give(world, promo := grant("a", "3"))
    for period in (OCTOBER, NOVEMBER):
        world.rate(period)
        world.draft(period)
    for period in (OCTOBER, NOVEMBER):
        assert all_done(world.send(gateway, period))
    assert stored(world) == said(core(usage, [promo], periods=(OCTOBER, NOVEMBER)))


def test_breakage_goes_with_use_where_an_entity_estimates_it_and_is_what_was_left_in_the_end(
    world: World, gateway: StripeGateway
) -> None:
    december, january = parse_period("2026-12"), parse_period("2027-01")
    customer(world, [(OCTOBER.start + 5 * DAY, 4500)])  # 9.00
    paid = grant("prepaid", "100", kind=GrantKind.PAID, expires=january.start + 14 * DAY)
    give(world, replace(paid, paid_at=OCTOBER.start))
    close(world, gateway)  # on 2 December

    def estimated(share: str | None, since: datetime = OCTOBER.start, entity: str = "default") -> bool:
        given = BreakageEstimate(entity, None if share is None else Decimal(share), since, "study of 2026")
        return set_breakage(world.engine, given, actor="ada")

    def closed(month: BillingPeriod) -> dict[int, Decimal]:
        bill_month(world.engine, period=month, gateway=gateway, now=month.end + DAY, actor="ada")
        assert_the_liability_is_what_is_left(world)
        return {code: amount for code, amount in balance(world).items() if code in (2100, 2105, 4100)}

    def damaged() -> set[str]:
        report = reconcile_period(world.engine, period=december, now=january.end, gateway=gateway, log=None)
        (check,) = (each for each in report.checks if each.name == "breakage is as estimated")
        return {each.key for each in check.differences}

    assert [estimated("0.1"), estimated("0.1")] == [True, False]
    for share, entity, told in (("1", "default", "no share"), ("0.1", "mars", "no legal entity")):
        with pytest.raises(CreditRefused, match=told):
            estimated(share, entity=entity)
    with transaction(world.engine) as connection:
        assert recognise_breakage(connection, NOVEMBER, now=NOW) == 0  # nothing was drawn by its end
    # 9 of the 90 that will be used bring a tenth of the 10 that will not.
    assert closed(december) == {2100: -91, 2105: 1, 4100: -1}
    assert damaged() == set()
    assert estimated("0.2", december.start)
    assert damaged() == set()  # December's next booking takes it in
    with transaction(world.engine) as connection:
        booked = [recognise_breakage(connection, of, now=NOW) for of in (december, december, NOVEMBER)]
    assert booked == [1, 0, 0]
    assert damaged() == set()
    of_2105 = "account_id in (select account_id from ledger.accounts where code = 2105)"
    guards = ("alter table ledger.postings disable trigger user", "alter table ledger.postings enable trigger user")
    for change, found in (("+", {"prepaid/USD"}), ("-", set[str]())):
        world.as_owner(guards[0], f"update ledger.postings set amount = amount {change} 1 where {of_2105}", guards[1])
        assert damaged() == found
    assert {code: balance(world)[code] for code in (2100, 2105, 4100)} == {
        2100: -91, 2105: Decimal("2.25"), 4100: Decimal("-2.25"),
    }  # fmt: skip
    assert closed(january) == {4100: -91}
    assert world.reports_tie(december, january)
    with transaction(world.engine) as connection:
        close_book(connection, "default", OCTOBER.name, NOW)
    with pytest.raises(CreditRefused, match="from 2026-11-01 on"):
        estimated(None)
    with pytest.raises(DBAPIError, match=r"append-only|permission denied"):
        world.execute("update ledger.breakage_estimates set share = 0.5")


def test_expiry_is_breakage_and_a_late_draw_takes_it_back(world: World, gateway: StripeGateway) -> None:
    customer(world, [(OCTOBER.start, 1000)])
    paid = grant("topup", "10", kind=GrantKind.PAID, paid_at=SINCE, expires=OCTOBER.end)
    give(world, paid, grant("promo", "1", expires=OCTOBER.end + DAY, effective=NOVEMBER.start))
    with pytest.raises(CreditRefused, match="still hold"):
        expire_credits(world.engine, up_to=OCTOBER.end, now=OCTOBER.end - DAY, actor="ada")
    assert left(world) == {"topup": 10, "promo": 1}
    found = expire_credits(world.engine, up_to=NOW, now=NOW, actor="ada")
    assert {each.grant_id: each.amount for each in found} == {"topup": 10, "promo": 1}
    assert expire_credits(world.engine, up_to=NOW, now=NOW, actor="ada") == []
    assert balance(world) == {1020: 10, 4100: -10}
    close(world, gateway)
    assert stored(world)[0]["paid"] == {"topup": 200}
    assert balance(world) == {1020: 10, 4000: -2, 4100: -8}
    assert_the_liability_is_what_is_left(world)
    (entry,) = world.rows("select accounting_period from ledger.journal_entries where kind = 'credit_expired'")
    assert entry == ("2026-11",)  # the first instant of November: [effective, expires)


def test_what_is_paid_in_advance_and_left_can_be_refunded_by_two(world: World) -> None:
    customer(world, [])
    give(world, grant("topup", "10", kind=GrantKind.PAID, paid_at=SINCE))
    with pytest.raises(CreditRefused, match="refunded"):
        void_credit(world.engine, "topup", reason="r", now=NOW, actor="ada")
    number = propose(world.engine, ProposalKind.REFUND_CREDIT, "topup", {}, document="letter", now=NOW, actor="ada")
    decide(world.engine, number, approved=True, now=NOW, actor="bob")
    assert balance(world) == {1020: 10, 2300: -10}
    assert_the_liability_is_what_is_left(world)


def test_a_credit_recurs_each_month_with_its_validity(world: World) -> None:
    customer(world, [])
    given = GivenCredit(grant("m", "5", effective=OCTOBER.start, expires=OCTOBER.end), "acme", "plan")
    for created in (True, False):
        done = grant_credit(world.engine, given, actor="ada", recurrence=Recurrence(months=1, times=2))
        assert [each.created for each in done] == [created, created]
    assert [(s.grant.grant_id, s.grant.effective, s.grant.expires) for s in credits_of(world.engine)] == [
        ("m-1", OCTOBER.start, OCTOBER.end),
        ("m-2", NOVEMBER.start, NOVEMBER.end),
    ]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"currency": "EUR"}, "pays in USD"),
        ({"amount": Decimal(0)}, "more than nothing"),
        ({"amount": Decimal("1.005"), "kind": GrantKind.PAID}, "can be paid"),
        ({"expires": SINCE}, "before it holds"),
        ({"grant_id": "a.b"}, "no name"),
        ({"applies_to": Applicability(frozenset({"typo"}))}, "has a charge typo"),
    ],
)
def test_a_credit_that_makes_no_sense_is_refused(world: World, changed: dict[str, Any], told: str) -> None:
    customer(world, [])
    with pytest.raises(CreditRefused, match=told):
        give(world, replace(grant("a", "5"), **changed))


def test_the_database_itself_takes_no_more_than_is_left_and_nothing_unsettled(
    world: World, gateway: StripeGateway
) -> None:
    customer(world, [(OCTOBER.start, 1000), (NOVEMBER.start, 1000)])
    give(world, grant("a", "3"), grant("unpaid", "3", kind=GrantKind.PAID))
    close(world, gateway)
    move = "insert into ledger.credit_movements (idempotency_key, grant_id, kind, amount, at, recorded_by) values "
    for values in (
        "('k', 'a', 'voided', -1.000000000001, now(), 'x')",  # 1 is left
        "('k', 'a', 'reinstated', 2.000000000001, now(), 'x')",
        "('k', 'unpaid', 'expired', -1, now(), 'x')",
        "('k', 'a', 'settled', 0, now(), 'x')",
        "('k', 'a', 'expired', 1, now(), 'x')",
    ):
        with pytest.raises(DBAPIError, match=r"refused|check constraint"):
            world.execute(move + values)
    for statement in (
        "update ledger.credit_movements set amount = 0",
        "delete from ledger.credit_grants",
        "update ledger.invoice_credits set amount = 1",
        "delete from ledger.invoice_credits",
        "update ledger.tax_rules set mode = 'none'",
    ):
        with pytest.raises(DBAPIError, match=r"append-only|permission denied|frozen"):
            world.execute(statement)
    # Nor does an invoice draw what is not there any more as if it had expired.
    world.rate(NOVEMBER)
    world.draft(NOVEMBER)
    world.send(gateway, NOVEMBER, until=SendingStep.FROZEN)
    world.execute(move + "('k', 'a', 'voided', -1, now(), 'x')")
    (parked,) = world.send(gateway, NOVEMBER).invoices
    assert (parked.outcome, "of credit a, which has 0" in str(parked.reason)) == (Outcome.PARKED, True)
    assert left(world) == {"a": 0, "unpaid": 3}


@pytest.mark.parametrize("mode", [TaxMode.EXCLUSIVE, TaxMode.INCLUSIVE])
def test_tax_is_the_cores_and_goes_to_stripe_as_an_amount(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, mode: TaxMode
) -> None:
    usage = [(OCTOBER.start, 12_345)]
    customer(world, usage)
    rules = TaxRules(mode, {"std": Decimal("0.19")})
    assert set_tax(world.engine, DatedTaxRules("acme", rules, SINCE, ""), actor="ada")
    assert not set_tax(world.engine, DatedTaxRules("acme", rules, SINCE, ""), actor="ada")
    close(world, gateway)
    (document,) = stored(world)
    assert [document] == said(core(usage, tax=rules), taxed=True)
    exact = {TaxMode.EXCLUSIVE: {"out": 2469, "tax:std": 469}, TaxMode.INCLUSIVE: {"out": 2469}}[mode]
    (invoice,) = stripe_twin.client().v1.invoices.list().data
    assert {line.metadata["line_key"]: line.amount for line in invoice.lines.data} == exact
    assert (invoice.total, invoice.automatic_tax.enabled) == (document["total"], False)
    tax = Decimal(document["tax"]["std"][1]) / 100
    within = tax if mode is TaxMode.INCLUSIVE else 0
    assert balance(world) == {1100: Decimal(document["total"]) / 100, 2200: -tax, 4000: Decimal("-24.69") + within}


def test_tax_rules_hold_from_their_day_and_never_for_what_is_frozen(world: World, gateway: StripeGateway) -> None:
    customer(world, [(OCTOBER.start, 1000), (NOVEMBER.start, 1000)])
    set_tax(world.engine, DatedTaxRules("acme", VAT, SINCE, ""), actor="ada")
    reverse = DatedTaxRules("acme", TaxRules(TaxMode.REVERSE_CHARGE), NOVEMBER.start, "DE123")
    set_tax(world.engine, reverse, actor="ada")
    close(world, gateway)
    close(world, gateway, NOVEMBER)
    assert [(d["tax"], d["total"]) for d in stored(world)] == [({"std": (200, 38)}, 238), ({"std": (200, 0)}, 200)]
    with pytest.raises(TaxRuleRefused, match="taxed as of 2026-11-30T23:59:59Z"):
        set_tax(world.engine, replace(reverse, valid_from=OCTOBER.start), actor="ada")
    with pytest.raises(TaxRuleRefused, match="evidence"):
        set_tax(world.engine, replace(reverse, evidence="", valid_from=NOW), actor="ada")


def test_a_tax_group_without_a_rate_keeps_its_account_out(world: World) -> None:
    customer(world, [(OCTOBER.start, 1000)])
    set_tax(world.engine, DatedTaxRules("acme", TaxRules(TaxMode.EXCLUSIVE, {"low": Decimal(0)}), SINCE, ""), actor="a")
    world.rate()
    assert world.draft().blocked == (("acme", "no rate for tax group std: known are low"),)


def test_an_amount_below_the_minimum_is_carried_to_the_next_invoice_once(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    december = BillingPeriod(NOVEMBER.end, datetime(2027, 1, 1, tzinfo=UTC))
    usage = [(OCTOBER.start, 100), (NOVEMBER.start, 120), (december.start, 500)]
    customer(world, usage)
    later = datetime(2027, 1, 2, tzinfo=UTC)
    for period in (OCTOBER, NOVEMBER, december):
        world.rate(period, now=later)
        world.draft(period, now=later)
        assert all_done(world.send(gateway, period, now=later))
    assert stored(world) == said(core(usage, periods=(OCTOBER, NOVEMBER, december)))
    assert [d["due"] for d in stored(world)] == [20, 44, 144]
    (invoice,) = stripe_twin.client().v1.invoices.list().data
    lines = {line.metadata["line_key"]: line.amount for line in invoice.lines.data}
    assert lines == {"out": 100, "carried:INV-000002": 44}
    assert balance(world) == {1100: Decimal("1.44"), 4000: Decimal("-1.44")}
    assert [d["carried"] for d in invoice_list(world.engine)] == [
        [], [{"number": "INV-000001", "amount": 20}], [{"number": "INV-000002", "amount": 44}],
    ]  # fmt: skip


def test_credits_as_of_a_moment(world: World) -> None:
    customer(world, [])
    give(world, grant("topup", "10", kind=GrantKind.PAID, paid_at=OCTOBER.start))

    def as_of(at: datetime) -> CreditState:
        (state,) = credits_of(world.engine, as_of=at)
        return state

    assert not as_of(OCTOBER.start).is_liability
    assert as_of(OCTOBER.start + DAY).is_liability
