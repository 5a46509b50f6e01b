"""Quarters, years and anniversaries by command: billed by the month that they end in, accrued where they go on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from billing.bills.billing_cycle import History, bill
from billing.bills.documents import DocumentKind, Payer
from billing.commands.change_subscription import cancel_subscription, change_subscription
from billing.commands.preview_invoice import preview_invoice
from billing.database import transaction
from billing.errors import PreviewRefused
from billing.invoicing import adjustment_store
from billing.money import currency, plain
from billing.periods import BillingPeriod, parse_period
from billing.plans import account_store, plan_store
from billing.plans.charge_models import Flat, Graduated, PerUnit, Prepaid, Pricing, Tier, Timing, Volume
from billing.plans.price_plans import (
    Anchor,
    Charge,
    Commitment,
    Cycle,
    Discount,
    Filters,
    InvoiceDiscount,
    PlanVersion,
    PricePlan,
    Terms,
)  # fmt: skip
from billing.plans.schedules import periods_in, schedule_of
from billing.posting.period_closing import close_book
from billing.stripe.stripe_gateway import StripeGateway
from reconciliation.period import reconcile_period
from tests.billing_builders import NOVEMBER, OCTOBER, SINCE, subscription
from tests.integration.billing.conftest import World
from tests.integration.billing.histories import Wire, as_event, ingest
from tests.integration.billing.test_fees_in_advance import balances, close, request, stored, told, told_stored

DECEMBER, QUARTER = parse_period("2026-12"), parse_period("2026-Q4")
DAY = timedelta(days=1)
AFTER = datetime(2027, 1, 2, 1, tzinfo=UTC)
SEED, TENANTS = 20261121, 10
TENTH = Discount(percent=Decimal("0.1"))
PLAN = """\
plan: p
currency: USD
terms: {period: quarter}
versions:
  - version: v1
    from: 2026-01-01
    charges:
      - {key: base, model: flat, fee: "92"}
      - {key: out, model: per_unit, metric: output, price: "0.5", discount: "0.2", minimum: "100"}
"""


def customer(world: World, plan: str = PLAN, **changed: Any) -> None:
    world.tenant("acme")
    world.plan(plan)
    world.subscribe("acme", **({"starts_at": OCTOBER.start} | changed))


def use(world: World, *at: datetime) -> None:
    for each in at:
        world.use("acme", at=each, output_tokens=10)


def test_a_quarter_that_goes_on_is_accrued_month_by_month_and_billed_at_its_end(
    world: World, gateway: StripeGateway
) -> None:
    customer(world)
    use(world, OCTOBER.start, NOVEMBER.start, DECEMBER.start)
    assert close(world, gateway, OCTOBER).problems == []
    # 31 of 92 days of the fee; 10 x 0.5 less a fifth.
    assert balances(world) == {1150: "35", 4000: "-4", 4010: "-31"}
    assert close(world, gateway, NOVEMBER).problems == []
    assert balances(world) == {1150: "69", 4000: "-8", 4010: "-61"}
    assert stored(world) == []
    assert close(world, gateway, DECEMBER).problems == []
    (invoice,) = stored(world)
    assert (invoice.invoice.identity.period, invoice.invoice.total_minor) == (QUARTER, 19200)
    # The minimum of 100 is for the whole quarter.
    assert balances(world) == {1100: "192", 4000: "-100", 4010: "-92"}
    months = world.rows(
        "select accounting_period, sum(p.amount) from ledger.journal_entries join ledger.postings p using (entry_id)"
        " where kind = 'accrual' and p.amount > 0 group by 1 order by 1"
    )
    assert [(month, plain(amount)) for month, amount in months] == [
        ("2026-10", "35"), ("2026-11", "34"), ("2026-12", "123"),
    ]  # fmt: skip
    before = world.count("ledger.journal_entries"), world.count("ledger.rated_lines")
    for month in (OCTOBER, NOVEMBER, DECEMBER):
        assert close(world, gateway, month, now=AFTER).problems == []
    assert (world.count("ledger.journal_entries"), world.count("ledger.rated_lines")) == before


def test_what_ended_within_a_quarter_is_billed_with_it(world: World, gateway: StripeGateway) -> None:
    """Though nothing of it holds in the quarter's last month, and nobody else is billed by quarters."""
    customer(world)
    use(world, OCTOBER.start)
    cancel_subscription(world.engine, tenant_id="acme", at=OCTOBER.start + 46 * DAY, actor="ada")
    for month in (OCTOBER, NOVEMBER, DECEMBER):
        assert close(world, gateway, month).problems == []
    # 46 of 92 days of the fee of 92, and of the minimum of 100
    assert [(s.invoice.identity.period, s.invoice.total_minor) for s in stored(world)] == [(QUARTER, 9600)]
    assert balances(world) == {1100: "96", 4000: "-50", 4010: "-46"}


def test_usage_that_comes_while_the_quarter_goes_on_is_accrued_in_its_own_month(
    world: World, gateway: StripeGateway
) -> None:
    customer(world)
    close(world, gateway, OCTOBER)
    use(world, OCTOBER.start + DAY)
    close(world, gateway, NOVEMBER)
    accrued = world.rows(
        "select accounting_period, p.amount from ledger.journal_entries join ledger.postings p using (entry_id)"
        " join ledger.accounts a using (account_id) where a.code = 4000"
    )
    assert [(month, plain(amount)) for month, amount in accrued] == [("2026-10", "-4")]


def test_a_quarter_that_goes_on_beside_an_invoiced_month_of_the_same_account_has_nothing_late(
    world: World, gateway: StripeGateway
) -> None:
    customer(world)
    world.tenant("beta")
    world.plan(PLAN.replace("plan: p", "plan: monthly").replace("quarter", "month"))
    world.subscribe("beta", plan="monthly", billing_account="acme", starts_at=OCTOBER.start)
    close(world, gateway, OCTOBER)
    assert [s.invoice.identity.period for s in stored(world)] == [OCTOBER]
    use(world, NOVEMBER.start)
    close(world, gateway, NOVEMBER)
    with transaction(world.engine) as connection:
        assert adjustment_store.late_lines(connection, QUARTER) == []


def test_an_anniversary_on_the_31st_uses_the_last_day_and_returns(world: World, gateway: StripeGateway) -> None:
    start = datetime(2026, 8, 31, 15, tzinfo=UTC)
    customer(world, PLAN.replace("period: quarter", "anchor: anniversary"), starts_at=start)
    for month in ("2026-09", "2026-10", "2026-11"):
        assert close(world, gateway, parse_period(month)).problems == []
    assert [s.invoice.identity.period.name for s in stored(world)] == [
        "2026-08-31..2026-09-30", "2026-09-30..2026-10-31", "2026-10-31..2026-11-30",
    ]  # fmt: skip
    # Its first day began at 15:00.
    assert [s.invoice.total_minor for s in stored(world)][1:] == [19200, 19200]


def test_a_change_of_seats_or_plan_keeps_the_anniversary(world: World) -> None:
    plan = PLAN.replace("period: quarter", "anchor: anniversary")
    customer(world, plan, starts_at=OCTOBER.start + 16 * DAY)
    world.plan(plan.replace("plan: p", "plan: q"))
    changed = change_subscription(world.engine, tenant_id="acme", plan="q", at=NOVEMBER.start + DAY, actor="ada").after
    assert changed is not None
    assert schedule_of(changed).period_of(NOVEMBER.start + DAY).name == "2026-10-17..2026-11-17"


def test_a_change_from_months_to_quarters_bills_each_its_own_time(world: World, gateway: StripeGateway) -> None:
    monthly = (
        PLAN.replace("terms: {period: quarter}\n", "").replace('fee: "92"', 'fee: "30"').replace(', minimum: "100"', "")
    )
    customer(world, monthly)
    world.plan(PLAN.replace("plan: p", "plan: q").replace(', minimum: "100"', ""))
    use(world, NOVEMBER.start, NOVEMBER.start + 20 * DAY)
    change_subscription(world.engine, tenant_id="acme", plan="q", at=NOVEMBER.start + 15 * DAY, actor="ada")
    for month in (OCTOBER, NOVEMBER, DECEMBER):
        assert close(world, gateway, month).problems == []
    found = {s.invoice.identity.period.name: s.invoice.total_minor for s in stored(world)}
    # Half of November of 30, and 4 of usage; 46 of 92 days, and 4 of usage.
    assert found == {"2026-10": 3000, "2026-11": 1900, "2026-Q4": 5000}


def test_a_quarter_can_be_previewed_and_a_month_of_it_names_the_quarter(world: World) -> None:
    customer(world)
    use(world, OCTOBER.start)
    found = preview_invoice(world.engine, tenant_id="acme", period=QUARTER, now=NOVEMBER.start)
    assert found is not None
    assert found["total"] == 19200
    with pytest.raises(PreviewRefused, match="2026-Q4"):
        preview_invoice(world.engine, tenant_id="acme", period=OCTOBER, now=NOVEMBER.start)


def test_what_comes_for_a_closed_month_is_booked_in_the_open_one_under_its_name(
    world: World, gateway: StripeGateway
) -> None:
    customer(world, PLAN.replace('fee: "92"', 'fee: "92", timing: advance'))
    close(world, gateway, OCTOBER)
    with transaction(world.engine) as connection:
        close_book(connection, "default", OCTOBER.name, NOVEMBER.start + DAY)
    use(world, OCTOBER.start + DAY)
    close(world, gateway, NOVEMBER)
    booked = world.rows(
        "select kind, accounting_period, original_period, max(p.amount) from ledger.journal_entries"
        " join ledger.postings p using (entry_id) where kind <> 'invoice' group by 1, 2, 3 order by 1, 2"
    )
    assert [(*row[:3], plain(row[3])) for row in booked] == [
        ("accrual", "2026-12", "2026-10", "4"),
        ("fees_earned", "2026-10", None, "31"),
        ("fees_earned", "2026-11", None, "30"),
    ]


# -- random tenants -----------------------------------------------------------------------------------------------


def pricing(random: Random) -> Pricing:
    money, price = Decimal(random.randrange(10**5)).scaleb(-3), Decimal(random.randrange(10**6)).scaleb(-6)
    tiers = (Tier(price, Decimal(random.randint(1, 2000)), money), Tier(price / 2))
    return random.choice([PerUnit(price), Graduated(tiers), Volume(tiers), Prepaid(Decimal(500), money, price)])


def moment(random: Random) -> datetime:
    return OCTOBER.start + timedelta(seconds=random.randrange(92 * 86400))


def version(random: Random, plan: str, name: str, since: datetime, over: Cycle | None) -> PlanVersion:
    money = Decimal(random.randrange(10**6)).scaleb(-4)
    charges = [
        Charge(
            "out",
            "output",
            Filters(),
            pricing(random),
            discount=random.choice([None, Discount(percent=Decimal("0.1"))]),
            tier_period=over,
        ),
        Charge("base", "", Filters(), Flat(money), prorated=random.random() < 0.8),
    ]
    if random.random() < 0.5:
        charges.append(Charge("early", "", Filters(), Flat(money * 2), timing=Timing.ADVANCE))
    less = random.choice([None, InvoiceDiscount(percent=Decimal("0.25"))])
    return PlanVersion(plan, name, "USD", since, tuple(charges), (), less, random.choice([None, Commitment(money)]))


def random_tenant(world: World, seed: int) -> tuple[History, list[Wire]]:
    """A tenant that is billed by quarters, years or from a day on; with a price version, perhaps a change of plan."""
    random = Random(seed)
    name = f"t{seed}"
    terms = Terms(
        period=random.choice([Cycle.QUARTER, Cycle.MONTH, Cycle.YEAR]),
        anchor=random.choice([Anchor.ANNIVERSARY, Anchor.CALENDAR]),
    )
    over = random.choice([None, Cycle.MONTH]) if terms.period is not Cycle.MONTH else None
    start = datetime(2026, random.randint(1, 9), random.choice([1, 15, 28, 30]), random.randrange(24), tzinfo=UTC)
    plans = [
        PricePlan(f"{name}.{p}", "USD", (version(random, f"{name}.{p}", "v1", SINCE, over),
                  version(random, f"{name}.{p}", "v2", moment(random), over)), terms)
        for p in "pq"
    ]  # fmt: skip
    change = random.choice([None, moment(random)])
    first = subscription(name, starts_at=start, ends_at=change, plan=plans[0].name, terms=terms)
    subscriptions = (first,)
    if change is not None:
        anchored = start if terms.anchor is Anchor.ANNIVERSARY else None
        subscriptions += (subscription(name, starts_at=change, plan=plans[1].name, terms=terms, anchored_at=anchored),)
    wire = [request(random, name, number) for number in range(random.randint(0, 8))]
    world.tenant(name)
    world.account(name)
    with transaction(world.engine) as connection:
        for plan in plans:
            plan_store.add_versions(connection, plan, plan.versions, "test")
        for each in subscriptions:
            account_store.add_subscription(connection, each, "test")
    payer = Payer(replace(currency("USD", DECEMBER.end.date()), stripe_minimum=0))
    periods = tuple(periods_in(subscriptions, BillingPeriod(start, DECEMBER.end)))
    versions = {plan.name: plan.versions for plan in plans}
    return History(payer, terms, periods, subscriptions, versions, tuple(map(as_event, wire))), wire


def test_stored_documents_are_those_of_the_core(world: World, gateway: StripeGateway, own_database_url: str) -> None:
    made = [random_tenant(world, seed) for seed in range(SEED, SEED + TENANTS)]
    ingest(own_database_url, [event for _, wire in made for event in wire])
    months = [parse_period(f"2026-{month:02}") for month in range(1, 13)]
    for month in months:
        assert close(world, gateway, month).problems == []
    for history, _ in made:
        name = history.subscriptions[0].tenant_id
        expected = [
            (told(each, taxed=False)[:3])
            for each in bill(history).documents
            if (each.service.start <= DECEMBER.end if each.kind in (DocumentKind.ADVANCE, DocumentKind.CREDIT_NOTE) else
                each.service.end <= DECEMBER.end)
        ]  # fmt: skip
        found = [told_stored(each)[:3] for each in stored(world, name)]
        # Fees in advance that begin right after the year are there, too.
        found = [each for each in found if each[1].start < DECEMBER.end]
        assert Counter(found) == Counter(each for each in expected if each[1].start < DECEMBER.end), name
    for month in (OCTOBER, NOVEMBER, DECEMBER):
        report = reconcile_period(world.engine, period=month, now=AFTER, gateway=gateway, log=None)
        differing = {check.name: check.differences for check in report.checks if not check.agrees}
        assert differing == {}
    before = world.count("ledger.journal_entries"), world.count("ledger.rated_lines"), world.count("ledger.invoices")
    for month in months[8:]:
        close(world, gateway, month, now=AFTER)
    after = world.count("ledger.journal_entries"), world.count("ledger.rated_lines"), world.count("ledger.invoices")
    assert after == before
