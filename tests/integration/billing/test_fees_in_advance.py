"""Fees in advance by command: the documents of the pure core, deferred and earned by the second, nothing twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from billing.bills.billing_cycle import Bills, History, bill
from billing.bills.credits import Applicability, GrantKind
from billing.bills.documents import Document, DocumentKind, Payer
from billing.bills.tax import NO_TAX, TaxMode, TaxRules
from billing.commands.bill_in_advance import bill_in_advance
from billing.commands.change_subscription import cancel_subscription, change_subscription
from billing.commands.close_month import MonthClosed
from billing.commands.invoice_in_advance import invoice_in_advance
from billing.commands.send_invoices import send_invoices
from billing.commands.set_tax import set_tax
from billing.commands.trial_balance import trial_balance
from billing.database import transaction
from billing.errors import PlanConflict, SubscriptionRefused, TaxRuleRefused
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_store import listed
from billing.invoicing.tax_store import DatedTaxRules
from billing.money import currency, plain
from billing.periods import INSTANT, BillingPeriod, parse_period
from billing.plans import account_store, plan_store
from billing.plans.charge_models import Flat, OneOff, PerUnit, Prepaid, Pricing, Seat, Timing
from billing.plans.price_plans import Charge, Discount, Filters, InvoiceDiscount, PlanVersion, PricePlan
from billing.posting.period_closing import close_book
from billing.rating import advance
from billing.stripe.stripe_gateway import StripeGateway
from reconciliation.period import reconcile_period
from tests.billing_builders import NOVEMBER, NOW, OCTOBER, SINCE, subscription
from tests.closing import bill_month
from tests.integration.billing.conftest import Crash, World, crash_at
from tests.integration.billing.histories import Wire, as_event, ingest, moment, written
from tests.integration.billing.test_credits import give, grant

PLAN = """\
plan: p
currency: USD
versions:
  - version: v1
    from: 2026-01-01
    charges:
      - {key: base, model: flat, fee: "31", timing: advance}
      - {key: seats, model: seat, fee: "3", timing: advance}
      - {key: out, model: per_unit, metric: output, price: "0.002"}
"""
SEED, TENANTS = 20261121, 8
DECEMBER = parse_period("2026-12")
DAY = timedelta(days=1)
CHANGE = NOVEMBER.start + 9 * DAY


def close(world: World, gateway: StripeGateway, period: BillingPeriod = OCTOBER, **changed: Any) -> MonthClosed:
    """Close a month a day and an hour after it."""
    values: dict[str, Any] = {"now": period.end + timedelta(hours=25), "actor": "ada"}
    return bill_month(world.engine, period=period, gateway=gateway, **(values | changed))


def in_advance(world: World, gateway: StripeGateway, at: datetime, adjust: Collection[str] = ()) -> list[str]:
    return invoice_in_advance(world.engine, until=at, gateway=gateway, now=at, actor="ada", adjust=adjust).problems


def stored(world: World, account: str = "acme") -> list[StoredInvoice]:
    with transaction(world.engine) as connection:
        return listed(connection, billing_account=account)


def told_stored(found: StoredInvoice) -> tuple[Any, ...]:
    invoice = found.invoice
    lines = Counter((line.rated.identity, line.rated.amount, line.amount_minor) for line in invoice.lines)
    taxes = tuple((row.group, row.base_minor, row.tax_minor) for row in invoice.taxes)
    paid = tuple(sorted((c.grant_id, c.amount_minor) for c in invoice.credits if c.pays))
    identity = invoice.identity
    return (identity.kind.value, identity.period, frozenset(lines.items()), taxes, paid, invoice.total_minor,
            invoice.amount_due_minor)  # fmt: skip


def told(document: Document, *, taxed: bool) -> tuple[Any, ...]:
    lines = Counter((line.rated.identity, line.rated.amount, line.amount_minor) for line in document.lines)
    taxes = tuple((row.group, row.base_minor, row.tax_minor) for row in document.taxes) if taxed else ()
    paid = tuple(sorted((each.grant_id, each.used_minor) for each in document.paid))
    return (document.kind.value, document.service, frozenset(lines.items()), taxes, paid, document.total_minor,
            document.due_minor)  # fmt: skip


def balances(world: World) -> dict[int, str]:
    found = trial_balance(world.engine)
    assert found.balanced
    return {row.code: plain(row.debit - row.credit) for row in found.rows if row.debit != row.credit}


def assert_it_reconciles(world: World, gateway: StripeGateway, period: BillingPeriod) -> None:
    report = reconcile_period(world.engine, period=period, now=NOW, gateway=gateway, log=None)
    differing = {check.name: check.differences for check in report.checks if not check.agrees}
    # Usage is put into the hourly windows without events.
    assert differing.keys() <= {"events are in their hour", "usage is rated"}, differing


def customer(world: World, plan: str = PLAN, **changed: Any) -> None:
    world.tenant("acme")
    world.plan(plan)
    world.subscribe("acme", **({"starts_at": OCTOBER.start, "seats": 10} | changed))


def test_a_fee_in_advance_is_invoiced_when_its_time_begins_and_earned_by_the_second(
    world: World, gateway: StripeGateway
) -> None:
    customer(world, starts_at=OCTOBER.start + timedelta(days=15, hours=12))
    middle = OCTOBER.start + timedelta(days=15, hours=12)
    assert in_advance(world, gateway, middle) == []
    (first,) = stored(world)
    # Half of October: 15.5 of 31 days of 31 + 30.
    assert (first.invoice.identity.period, first.invoice.total_minor) == (BillingPeriod(middle, OCTOBER.end), 3050)
    assert balances(world) == {1100: "30.5", 2110: "-30.5"}
    assert close(world, gateway).problems == []
    # By now November's is invoiced, too, and October's is earned.
    assert [s.invoice.identity.period for s in stored(world)] == [BillingPeriod(middle, OCTOBER.end), NOVEMBER]
    assert balances(world) == {1100: "91.5", 2110: "-61", 4010: "-30.5"}
    before = world.count("ledger.journal_entries"), len(stored(world))
    assert close(world, gateway).problems == []
    assert (world.count("ledger.journal_entries"), len(stored(world))) == before
    assert_it_reconciles(world, gateway, OCTOBER)


def test_a_change_in_mid_period_is_one_invoice_with_credit_and_new_fee(world: World, gateway: StripeGateway) -> None:
    customer(world)
    close(world, gateway)
    change_subscription(world.engine, tenant_id="acme", plan="p", at=CHANGE, seats=20, actor="ada")
    assert in_advance(world, gateway, CHANGE + DAY) == []
    *_, change = stored(world)
    amounts = {line.line_key: line.amount_minor for line in change.invoice.lines}
    # 21 of 30 days of November are left: of 31 + 30 is credited 42.70, 31 + 60 are 63.70.
    assert amounts == {"base.s1.unused": -2170, "seats.s1.unused": -2100, "base.s2": 2170, "seats.s2": 4200}
    assert (change.invoice.identity.period, change.invoice.total_minor) == (BillingPeriod(CHANGE, NOVEMBER.end), 2100)
    assert in_advance(world, gateway, CHANGE + 2 * DAY) == []
    assert close(world, gateway, NOVEMBER).problems == []
    # October 61, November 61 + 21 are earned, December's 91 not yet.
    assert balances(world) == {1100: "234", 2110: "-91", 4010: "-143"}
    assert_it_reconciles(world, gateway, NOVEMBER)


def test_what_comes_to_less_by_a_cancellation_is_a_credit_note_against_the_invoice(
    world: World, gateway: StripeGateway
) -> None:
    customer(world)
    close(world, gateway)
    original = stored(world)[-1]
    cancel_subscription(world.engine, tenant_id="acme", at=CHANGE, actor="ada")
    assert in_advance(world, gateway, CHANGE + DAY) == []
    *before, note = stored(world)
    assert before[-1].invoice == original.invoice
    # Of 31 + 30, invoiced for November, 21 of 30 days are unused.
    amounts = {line.line_key: line.amount_minor for line in note.invoice.lines}
    assert amounts == {"base.unused": -2170, "seats.unused": -2100}
    assert note.invoice.credits_invoice_id == original.invoice.invoice_id
    assert (note.state.value, note.number) == ("issued_locally", "CN-000001")
    # Nothing of November is deferred beyond what of it is used: 61 for October, 91 - 42.7 for November.
    assert in_advance(world, gateway, CHANGE + 2 * DAY) == []
    assert close(world, gateway, NOVEMBER).problems == []
    assert len(stored(world)) == 3
    assert balances(world) == {1100: "79.3", 4010: "-79.3"}
    assert_it_reconciles(world, gateway, NOVEMBER)
    assert world.reports_tie(OCTOBER, NOVEMBER, DECEMBER)


def test_a_smaller_fee_is_on_the_credit_note_and_a_later_end_takes_back_what_remains(
    world: World, gateway: StripeGateway
) -> None:
    customer(world, billing_account="group")
    world.tenant("beta")
    world.subscribe("beta", starts_at=OCTOBER.start, seats=1, billing_account="group")
    close(world, gateway)
    change_subscription(world.engine, tenant_id="acme", plan="p", at=CHANGE, seats=1, actor="ada")
    cancel_subscription(world.engine, tenant_id="acme", at=CHANGE + 7 * DAY, actor="ada")
    cancel_subscription(world.engine, tenant_id="beta", at=CHANGE + 7 * DAY, actor="ada")
    assert in_advance(world, gateway, CHANGE + 8 * DAY) == []
    *_, first, second = stored(world, "group")
    # 21 of 30 days: back go 31 + 30, due are 31 + 3; of that 14 of 21 are unused, and of the other tenant's 31 + 3.
    assert (first.invoice.total_minor, second.invoice.total_minor) == (2380 - 4270, -2 * 1587)
    assert first.invoice.credits_invoice_id == second.invoice.credits_invoice_id
    assert close(world, gateway, NOVEMBER).problems == []
    assert_it_reconciles(world, gateway, NOVEMBER)


def test_a_fee_that_moves_to_another_tax_group_is_credited_in_the_old_one_and_invoiced_in_the_new(
    world: World, gateway: StripeGateway
) -> None:
    low = PLAN[PLAN.index("  - version") :].replace("v1", "v2").replace("2026-01-01", f"{CHANGE:%Y-%m-%d}")
    customer(world, PLAN + low.replace('fee: "31", timing', 'fee: "31", tax_group: low, timing'))
    rules = TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal("0.2"), "low": Decimal("0.1")})
    set_tax(world.engine, DatedTaxRules("acme", rules, NOVEMBER.start, ""), actor="ada")
    close(world, gateway)
    cancel_subscription(world.engine, tenant_id="acme", at=CHANGE + 7 * DAY, actor="ada")
    for at in (CHANGE, CHANGE + DAY, CHANGE + 8 * DAY, CHANGE + 9 * DAY):
        assert in_advance(world, gateway, at) == []
    _, november, *changes = (s.invoice for s in stored(world))
    back, anew, of_std, of_low = sorted(changes, key=lambda each: (each.identity.period.start, each.total_minor))
    # 21 of 30 days: of 31 come back 21.70 (std) and are due (low), the seats go on. Then 14 of 21 are unused.
    assert [each.total_minor for each in (november, back, anew, of_low, of_std)] == [7320, -2604, 2387, -1592, -1680]
    assert back.credits_invoice_id == of_std.credits_invoice_id == november.invoice_id
    assert of_low.credits_invoice_id == anew.invoice_id
    assert close(world, gateway, NOVEMBER).problems == []
    assert_it_reconciles(world, gateway, NOVEMBER)


def test_a_grant_for_fees_lowers_fees_in_advance_and_gets_back_what_it_took_off_beyond_what_is_left_of_them(
    world: World, gateway: StripeGateway
) -> None:
    customer(world)
    give(world, grant("welcome", "40", applies_to=Applicability(fees=True)))
    assert in_advance(world, gateway, OCTOBER.start + DAY) == []
    assert balances(world) == {1100: "21", 2110: "-61", 4900: "40"}
    # 10 of 31 days: of 31 + 30 are left 10 + 9.68, all of which the grant takes off: the rest of its 40 comes back.
    cancel_subscription(world.engine, tenant_id="acme", at=OCTOBER.start + 10 * DAY, actor="ada")
    assert in_advance(world, gateway, OCTOBER.start + 11 * DAY) == []
    note = stored(world)[-1].invoice
    amounts = {line.line_key: line.amount_minor for line in note.lines}
    assert amounts == {"base.unused": -2100, "seats.unused": -2032, "credit.welcome": 2032}
    assert note.total_minor == -2100
    assert close(world, gateway).problems == []
    assert balances(world) == {4010: "-19.677419354839", 4900: "19.677419354839"}
    assert_it_reconciles(world, gateway, OCTOBER)
    assert world.reports_tie(OCTOBER, NOVEMBER)


def test_what_is_invoiced_otherwise_than_it_is_due_by_other_rules_is_billed_when_somebody_says_so(
    world: World, gateway: StripeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer(world, PLAN + '    invoice_discount: {percent: "0.1"}\n')
    with monkeypatch.context() as before:
        before.setattr(advance, "_less_of_invoice", lambda piece, begun, *_: begun)  # as it was before decision 38
        assert in_advance(world, gateway, OCTOBER.start) == []
    (problem,) = in_advance(world, gateway, OCTOBER.start + DAY)
    assert "base (invoice_discount) -3.1, seats (invoice_discount) -3 USD" in problem
    assert "tollbook invoice advance --adjust acme" in problem
    assert len(stored(world)) == 1
    for _ in range(2):
        assert in_advance(world, gateway, OCTOBER.start + DAY, adjust=["acme"]) == []
    assert in_advance(world, gateway, OCTOBER.start + 2 * DAY) == []
    assert [s.invoice.total_minor for s in stored(world)] == [6100, -610]
    # What is unused of a fee is of what it came to by then: 21 of 31 days of 54.90.
    cancel_subscription(world.engine, tenant_id="acme", at=OCTOBER.start + 10 * DAY, actor="ada")
    assert in_advance(world, gateway, OCTOBER.start + 11 * DAY) == []
    assert stored(world)[-1].invoice.total_minor == -3719
    assert close(world, gateway).problems == []
    assert_it_reconciles(world, gateway, OCTOBER)
    assert world.rows("select count(*) from usage.audit_log where action = 'invoice.advance.adjust'") == [(1,)]


def test_a_change_that_comes_to_less_waits_until_its_invoice_is_issued(world: World, gateway: StripeGateway) -> None:
    customer(world)
    cancel_subscription(world.engine, tenant_id="acme", at=OCTOBER.start + 9 * DAY, actor="ada")
    at = OCTOBER.start + 20 * DAY
    assert bill_in_advance(world.engine, until=at, now=at, actor="ada").notes == ()
    assert in_advance(world, gateway, at) == []
    assert [s.invoice.total_minor for s in stored(world)] == [6100, -4329]


def test_a_tax_rule_from_the_moment_of_an_issued_invoice_is_refused(world: World, gateway: StripeGateway) -> None:
    customer(world)
    rules = DatedTaxRules("acme", TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal("0.2")}), OCTOBER.start, "")
    assert in_advance(world, gateway, OCTOBER.start) == []
    with pytest.raises(TaxRuleRefused, match="taxed as of 2026-10-01: tax rules can hold from later on"):
        set_tax(world.engine, rules, actor="ada")
    assert set_tax(world.engine, replace(rules, valid_from=OCTOBER.start + INSTANT), actor="ada")
    assert close(world, gateway).problems == []
    assert [(s.invoice.identity.period, s.invoice.tax_minor) for s in stored(world)] == [(OCTOBER, 0), (NOVEMBER, 1220)]


def test_a_change_at_the_moment_that_is_invoiced_is_refused(world: World, gateway: StripeGateway) -> None:
    customer(world)
    close(world, gateway)
    with pytest.raises(SubscriptionRefused, match="fees in advance"):
        cancel_subscription(world.engine, tenant_id="acme", at=NOVEMBER.start, actor="ada")
    later = PLAN + PLAN[PLAN.index("  - version") :].replace("v1", "v2").replace("2026-01-01", "2026-11-01")
    with pytest.raises(PlanConflict, match="fees in advance"):
        world.plan(later)


def test_a_tenant_that_comes_to_the_same_moment_later_gets_a_revision(world: World, gateway: StripeGateway) -> None:
    customer(world, billing_account="group")
    assert in_advance(world, gateway, OCTOBER.start + DAY) == []
    world.tenant("beta")
    world.subscribe("beta", starts_at=OCTOBER.start, seats=1, billing_account="group")
    assert in_advance(world, gateway, OCTOBER.start + DAY) == []
    found = {s.invoice.identity.revision: s.invoice.total_minor for s in stored(world, "group")}
    assert found == {0: 6100, 1: 3400}


def test_drafts_follow_a_change_until_they_are_frozen(world: World, gateway: StripeGateway) -> None:
    customer(world)
    at = OCTOBER.start + 20 * DAY
    bill_in_advance(world.engine, until=at, now=at, actor="ada")
    change_subscription(world.engine, tenant_id="acme", plan="p", at=OCTOBER.start + DAY, seats=20, actor="ada")
    assert in_advance(world, gateway, at) == []
    assert [s.invoice.total_minor for s in stored(world)] == [6100, 2903]


@pytest.mark.parametrize("step", ["frozen", "draft_created", "released", "finalized"])
def test_a_kill_between_steps_bills_nothing_twice(world: World, gateway: StripeGateway, step: str) -> None:
    customer(world)
    at = OCTOBER.start + DAY
    drafts = bill_in_advance(world.engine, until=at, now=at, actor="ada").drafts
    with pytest.raises(Crash):
        send_invoices(
            world.engine, invoice_ids=[d.invoice_id for d in drafts], gateway=gateway, now=at, pause_s=0.01,
            checkpoint=crash_at(f"stored {step}"),
        )  # fmt: skip
    assert in_advance(world, gateway, at) == []
    assert in_advance(world, gateway, at) == []
    assert balances(world) == {1100: "61", 2110: "-61"}
    assert [s.state.value for s in stored(world)] == ["finalized"]


def test_a_book_is_closed_with_what_its_month_earned(world: World, gateway: StripeGateway) -> None:
    customer(world)
    assert in_advance(world, gateway, OCTOBER.start + DAY) == []
    with transaction(world.engine) as connection:
        close_book(connection, "default", OCTOBER.name, NOW)
    assert balances(world) == {1100: "61", 4010: "-61"}


# -- random tenants -----------------------------------------------------------------------------------------------


def fee(random: Random) -> Pricing:
    money = Decimal(random.randrange(1, 10**6)).scaleb(-4)
    return random.choice([Flat(money), Seat(money), OneOff(money), Prepaid(Decimal(50), money, Decimal("0.01"))])


def plan_of(random: Random, name: str) -> PricePlan:
    dates = sorted({SINCE, *(moment(random) for _ in range(random.randint(0, 1)))})
    versions = []
    for number, since in enumerate(dates, start=1):
        charges = [Charge("out", "output", Filters(), PerUnit(Decimal(random.randrange(10**6)).scaleb(-6)))]
        for key in random.sample("abc", random.randint(1, 3)):
            pricing = fee(random)
            charges.append(
                Charge(
                    key, "request" if isinstance(pricing, Prepaid) else "", Filters(), pricing,
                    timing=random.choice([Timing.ADVANCE, Timing.ADVANCE, Timing.ARREARS]),
                    prorated=random.random() < 0.8,
                    discount=random.choice([None, Discount(percent=Decimal("0.15"))]),
                    tax_group=random.choice(["std", "low"]),
                )
            )  # fmt: skip
        less = random.choice([None, InvoiceDiscount(percent=Decimal("0.1")), InvoiceDiscount(amount=Decimal(9))])
        versions.append(PlanVersion(name, f"v{number}", "USD", since, tuple(charges), (), less))
    return PricePlan(name, "USD", tuple(versions))


def request(random: Random, tenant: str, number: int) -> Wire:
    return {
        "tenant_id": tenant, "request_id": f"r{number}", "attempt": 1, "model": "llama", "input_tokens": 0,
        "cache_hit_tokens": 0, "output_tokens": random.randint(1, 2000), "gpu_us": 0, "status": "ok", "tier": "",
        "labels": {}, "fault": "none", "timestamp": written(at := moment(random)), "started_at": written(at),
    }  # fmt: skip


def random_tenant(world: World, seed: int) -> tuple[History, list[Wire]]:
    """A tenant with fees in advance, stored; its history for the core, and its events as they are sent."""
    random = Random(seed)
    name = f"t{seed}"
    plans = [plan_of(random, f"{name}.{letter}") for letter in "pq"]
    changes = sorted({OCTOBER.start, *(moment(random) for _ in range(random.randint(0, 2)))})
    ends = [*changes[1:], None]
    subscriptions = tuple(
        subscription(name, starts_at=since, ends_at=until, plan=plans[n % 2].name, seats=random.randint(1, 9))
        for n, (since, until) in enumerate(zip(changes, ends, strict=True))
    )
    wire = [request(random, name, number) for number in range(random.randint(0, 6))]
    rates = {"std": Decimal("0.19"), "low": Decimal("0.07")}
    rules = random.choice([NO_TAX, TaxRules(TaxMode.EXCLUSIVE, rates), TaxRules(TaxMode.INCLUSIVE, rates)])
    grants = (
        grant(f"{name}-paid", "40", kind=GrantKind.PAID, paid_at=SINCE, applies_to=Applicability(fees=True)),
        grant(f"{name}-promo", "25", applies_to=Applicability(fees=True)),
    )
    world.tenant(name)
    world.account(name)
    with transaction(world.engine) as connection:
        for plan in plans:
            plan_store.add_versions(connection, plan, plan.versions, "test")
        for each in subscriptions:
            account_store.add_subscription(connection, each, "test")
    set_tax(world.engine, DatedTaxRules(name, rules, SINCE, ""), actor="ada")
    give(world, *grants, account=name)
    payer = Payer(currency("USD", NOVEMBER.end.date()), rules)
    versions = {plan.name: plan.versions for plan in plans}
    periods, events = (OCTOBER, NOVEMBER, DECEMBER), tuple(map(as_event, wire))
    return History(payer, subscriptions[0].terms, periods, subscriptions, versions, events, grants=grants), wire


def until_december(bills: Bills) -> list[Document]:
    """What is issued when November is closed. Nothing comes late: each credit note is over fees in advance."""
    return [
        document
        for document in bills.documents
        if (document.service.end <= NOVEMBER.end or document.kind is not DocumentKind.USAGE)
        and document.service.start < DECEMBER.start + DAY
    ]


def test_stored_documents_are_those_of_the_core(world: World, gateway: StripeGateway, own_database_url: str) -> None:
    made = [random_tenant(world, seed) for seed in range(SEED, SEED + TENANTS)]
    ingest(own_database_url, [event for _, wire in made for event in wire])
    for period in (OCTOBER, NOVEMBER):
        assert close(world, gateway, period).problems == []
    notes = invoices = 0
    for history, _ in made:
        name = history.subscriptions[0].tenant_id
        bills = bill(history)
        notes += sum(document.kind is DocumentKind.CREDIT_NOTE for document in bills.documents)
        invoices += sum(document.kind is DocumentKind.ADVANCE for document in bills.documents)
        expected = [told(each, taxed=history.payer.tax.mode is not TaxMode.NONE) for each in until_december(bills)]
        assert sorted(map(told_stored, stored(world, name)), key=str) == sorted(expected, key=str), name
    assert 0 < notes < invoices
    assert_it_reconciles(world, gateway, OCTOBER)
    assert_it_reconciles(world, gateway, NOVEMBER)
    before = world.count("ledger.journal_entries"), world.count("ledger.invoices")
    close(world, gateway, OCTOBER)
    close(world, gateway, NOVEMBER)
    assert (world.count("ledger.journal_entries"), world.count("ledger.invoices")) == before


def test_a_fee_beyond_any_amount_stops_its_own_account_and_no_other(world: World, gateway: StripeGateway) -> None:
    customer(world)
    world.tenant("big")
    world.plan(PLAN.replace("plan: p", "plan: q").replace('fee: "31"', 'fee: "999999999999999999"'))
    world.subscribe("big", plan="q", starts_at=OCTOBER.start, seats=1)
    (problem,) = in_advance(world, gateway, OCTOBER.start + DAY)
    assert "more than 1000000000000" in problem
    assert stored(world, "big") == []
    assert [each.invoice.total_minor for each in stored(world)] == [6100]
