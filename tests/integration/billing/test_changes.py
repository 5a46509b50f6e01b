"""Changing and cancelling subscriptions: at any moment, once, never into what is billed."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from decimal import Decimal

import pytest

from billing.commands.change_subscription import (
    SubscriptionChanged,
    cancel_subscription,
    change_subscription,
    resume_subscription,
)
from billing.database import raw, transaction
from billing.errors import SubscriptionRefused
from billing.money import plain, total
from billing.plans import account_store
from serving_adapter.identity import Identity, event_id_of
from streams.quotas import definition_store
from streams.quotas.calendar import Anchor, microseconds
from tests.billing_builders import NOVEMBER, OCTOBER, PLAN, SINCE
from tests.integration.billing.conftest import World, all_done
from tests.integration.billing.histories import ingest

MIDDLE = datetime(2026, 10, 16, 12, 30, 15, 250_000, tzinfo=UTC)
DEAR = PLAN.replace("plan: p", "plan: dear").replace('"0.002"', '"2"')
SEATS = PLAN.replace("plan: p", "plan: seats") + '      - {key: seat, model: seat, fee: "31"}\n'
SEATS += '      - {key: setup, model: one_off, fee: "5"}\n'


def change(world: World, plan: str = "dear", at: datetime = MIDDLE, **more: int) -> SubscriptionChanged:
    return change_subscription(world.engine, tenant_id="acme", plan=plan, at=at, actor="ada", **more)


def cancel(world: World, at: datetime = MIDDLE) -> SubscriptionChanged:
    return cancel_subscription(world.engine, tenant_id="acme", at=at, actor="ada")


def event(number: int, at: datetime) -> dict[str, object]:
    return {
        "tenant_id": "acme", "request_id": f"r{number}", "model": "llama", "input_tokens": 0, "output_tokens": 1,
        "timestamp": at.isoformat(),
    }  # fmt: skip


def test_a_change_in_mid_hour_prices_each_microsecond_by_its_plan(world: World, own_database_url: str) -> None:
    world.customers("acme")
    world.plan(DEAR)
    moments = (MIDDLE - timedelta(microseconds=1), MIDDLE, MIDDLE + timedelta(hours=3))
    ingest(own_database_url, [event(n, at) for n, at in enumerate(moments)])
    (tenant,) = world.rate().tenants
    assert plain(tenant.amount) == "0.006"
    assert change(world).changed
    assert not change(world).changed
    (tenant,) = world.rate().tenants
    assert plain(tenant.amount) == "4.002"
    assert world.rate().lines_posted == 0
    assert all_done(world.draft())
    with transaction(world.engine) as connection:
        first, second = account_store.subscriptions(connection, tenant_id="acme")
    assert (first.plan, first.starts_at, first.ends_at) == ("p", SINCE, MIDDLE)
    assert (second.plan, second.starts_at, second.ends_at, second.begins_plan) == ("dear", MIDDLE, None, True)
    assert world.rows("select action, actor from usage.audit_log order by audit_no desc limit 1") == [
        ("subscription.change", "ada")
    ]


def test_seats_change_by_the_second_and_one_off_fees_are_not_due_again(world: World) -> None:
    world.tenant("acme")
    world.plan(SEATS)
    world.subscribe("acme", plan="seats", starts_at=OCTOBER.start, seats=2)
    half = OCTOBER.start + timedelta(days=15, hours=12)
    assert change(world, "seats", half, seats=4).changed
    with pytest.raises(SubscriptionRefused, match="on plan seats at 2026-10-20 00:00 already"):
        change(world, "seats", datetime(2026, 10, 20, tzinfo=UTC), seats=4)
    (tenant,) = world.rate().tenants
    found = {(line.identity.charge_key, line.identity.segment_no): plain(line.amount) for line in tenant.lines}
    assert found == {("seat", 1): "31", ("seat", 2): "62", ("setup", 1): "5"}


def test_after_a_cancellation_nothing_is_due_and_usage_has_no_subscription(world: World, own_database_url: str) -> None:
    world.customers("acme")
    ingest(own_database_url, [event(1, MIDDLE - timedelta(microseconds=1)), event(2, MIDDLE)])
    assert cancel(world).changed
    assert not cancel(world).changed
    found = world.rate()
    (tenant,) = found.tenants
    assert plain(tenant.amount) == "0.002"
    assert [(each.tenant_id, each.requests) for each in found.unsubscribed] == [("acme", 1)]
    assert world.subscribe("acme", starts_at=MIDDLE).created
    assert world.rate().ok


def test_after_a_pause_the_plan_goes_on_without_another_one_off_fee_or_trial(world: World) -> None:
    world.tenant("acme")
    world.plan(SEATS.replace("currency: USD", "currency: USD\nterms: {trial_days: 5, anchor: anniversary}"))
    world.subscribe("acme", plan="seats", seats=2, starts_at=OCTOBER.start)

    def resume(at: datetime) -> SubscriptionChanged:
        return resume_subscription(world.engine, tenant_id="acme", at=at, actor="ada")

    with pytest.raises(SubscriptionRefused, match="no subscription that ended by 2026-10-12"):
        resume(OCTOBER.start + timedelta(days=11))
    cancel(world, OCTOBER.start + timedelta(days=10))
    with pytest.raises(SubscriptionRefused, match="no subscription that ended by 2026-10-10"):
        resume(OCTOBER.start + timedelta(days=9))
    at = OCTOBER.start + timedelta(days=21)
    assert (resume(at).changed, resume(at).changed) == (True, False)
    (tenant,) = world.rate().tenants
    found = {(line.identity.charge_key, line.identity.segment_no): line.amount for line in tenant.lines}
    # 31 of 31 days each of 2 seats: 5 of the first ten after the trial, then the last ten.
    assert found == {("setup", 1): 5, ("seat", 1): 10, ("seat", 2): 20}
    with transaction(world.engine) as connection:
        first, second = account_store.subscriptions(connection, tenant_id="acme")
    assert (second.anchor, second.seats, second.terms, second.ends_at) == (OCTOBER.start, 2, first.terms, None)


def test_what_was_posted_is_taken_back_when_the_subscription_ended_before_it(world: World) -> None:
    world.customers("acme")
    world.use("acme", at=NOVEMBER.start, output_tokens=1)
    world.rate(NOVEMBER)
    world.draft(NOVEMBER)
    cancel(world)
    (tenant,) = world.rate(NOVEMBER).tenants
    assert (tenant.lines, total(line.amount for line in tenant.posted)) == ((), Decimal("-0.002"))
    drafted = world.draft(NOVEMBER)
    assert [invoice.total_minor for invoice in drafted.changed] == [0]


def test_what_does_not_fit_is_refused(world: World) -> None:
    world.customers("acme")
    world.plan(DEAR)
    with pytest.raises(SubscriptionRefused, match="has no subscription at 2025"):
        cancel(world, datetime(2025, 1, 1, tzinfo=UTC))
    with pytest.raises(SubscriptionRefused, match="begins then"):
        cancel(world, SINCE)
    world.plan(DEAR.replace("plan: dear", "plan: young").replace("2026-01-01", "2026-11-01"))
    with pytest.raises(SubscriptionRefused, match="no version"):
        change(world, "young")
    world.plan(SEATS)
    with pytest.raises(SubscriptionRefused, match=r"seat of the plan is by the seat: say how many \(--seats\)"):
        change(world, "seats")
    world.plan(DEAR.replace("plan: dear", "plan: euro").replace("USD", "EUR"))
    with pytest.raises(SubscriptionRefused, match="acme pays in USD, plan euro is in EUR"):
        change(world, "euro")
    change(world)
    with pytest.raises(SubscriptionRefused, match="on plan dear from 2026-10-16"):
        cancel(world, datetime(2026, 6, 1, tzinfo=UTC))


def test_what_is_billed_cannot_be_changed_under_it(world: World) -> None:
    world.customers("acme")
    world.plan(DEAR)
    world.use("acme", output_tokens=1)
    world.rate()
    world.draft()
    world.execute("update ledger.invoices set frozen_at = now()")
    for act in (change, cancel):
        with pytest.raises(SubscriptionRefused, match="frozen up to 2026-11-01"):
            act(world)
    assert change(world, at=NOVEMBER.start).changed


def test_a_trial_costs_nothing_and_its_usage_misses_no_subscription(world: World) -> None:
    world.tenant("acme")
    world.plan(PLAN.replace("currency: USD", "currency: USD\nterms: {trial_days: 14, bill_statuses: [ok, error]}"))
    world.subscribe("acme", starts_at=OCTOBER.start)
    world.use("acme", at=OCTOBER.start + timedelta(days=13, hours=23), output_tokens=1000)
    world.use("acme", at=OCTOBER.start + timedelta(days=14), output_tokens=10)
    world.use("acme", at=OCTOBER.start + timedelta(days=14), output_tokens=100, status="error")
    found = world.rate()
    assert found.ok
    assert plain(found.tenants[0].amount) == "0.22"


def test_a_price_that_is_told_late_says_what_must_be_rebuilt(world: World, own_database_url: str) -> None:
    world.customers("acme")
    ingest(own_database_url, [event(1, MIDDLE)])
    steps = '      - {key: long, model: per_unit, metric: output, price: "7", where: {context_over: 100}}\n'
    applied = world.plan(PLAN + "  - version: v2\n    from: 2026-10-16T12:30:00Z\n    charges:\n" + steps)
    (stale,) = applied.stale
    assert (stale.tenant_id, stale.start) == ("acme", datetime(2026, 10, 16, 12, tzinfo=UTC))
    (why,) = world.rate().unratable
    assert "`tollbook streams rebuild --from 2026-10-16T12:00:00Z --to 2026-10-16T13:00:00Z --apply`" in why
    assert change(world, "p", at=NOVEMBER.start, seats=1).stale == (stale,)


def test_a_label_that_is_billed_and_no_number_keeps_its_tenant_out_by_name(world: World, own_database_url: str) -> None:
    world.tenant("acme")
    world.plan(
        "plan: p\ncurrency: USD\nmetrics: [pages]\nversions:\n  - version: v1\n    from: 2026-01-01\n    charges:\n"
        '      - {key: pages, model: percentage, base: pages, rate: "0.5", min_per_event: "1"}\n'
    )
    world.subscribe("acme")
    ingest(
        own_database_url, [event(1, MIDDLE) | {"labels": {"pages": "7"}}, event(2, MIDDLE) | {"labels": {"team": "a"}}]
    )
    (tenant,) = world.rate().tenants
    assert plain(tenant.amount) == "3.5"
    many = event(3, MIDDLE) | {"labels": {"pages": "many"}}
    ingest(own_database_url, [many, many | {"request_id": "r4", "status": "error"}], first=2)
    (problem,) = world.rate().unratable
    assert "request r3: label pages, which its plan bills: 'many' is no decimal number" in problem
    # r4 bills nothing, whatever it says. What r3 counts is said by a correction: 8 pages more.
    corrects = str(event_id_of(Identity("acme", "r3", 1, "usage", 0)))
    assert f"that corrects {corrects} says" in problem
    said = {
        "kind": "correction",
        "correction_no": 1,
        "corrects": corrects,
        "output_tokens": 0,
        "labels": {"pages": "8"},
    }
    ingest(own_database_url, [event(3, MIDDLE) | said], first=4)
    (tenant,) = world.rate().tenants
    assert plain(tenant.amount) == "7.5"


def test_a_metric_that_a_later_version_declares_is_billed(world: World, own_database_url: str) -> None:
    world.customers("acme")
    pages = '      - {key: pages, model: per_unit, metric: pages, price: "5"}\n'
    later = PLAN + "  - version: v2\n    from: 2026-10-16\n    charges:\n" + pages
    world.plan(later.replace("currency: USD", "currency: USD\nmetrics: [pages]"))
    ingest(own_database_url, [event(1, MIDDLE) | {"labels": {"pages": "7"}}])
    (tenant,) = world.rate().tenants
    assert plain(tenant.amount) == "35"


def test_quotas_learn_periods_and_prices_from_subscriptions(world: World) -> None:
    world.customers("acme")
    world.plan(DEAR + "terms: {period: quarter, anchor: anniversary}\n")
    change(world)
    end = MIDDLE + timedelta(days=1)
    cancel(world, end)
    with transaction(world.engine) as connection:
        definitions = definition_store.read(raw(connection))
        prices = definition_store.price_lists(raw(connection), ["acme"])["acme"]
    before = MIDDLE - timedelta(days=1)
    assert definitions.anchor_of("acme", before).months == 1
    assert definitions.anchor_of("acme", MIDDLE) == Anchor(datetime.combine(MIDDLE.date(), time(), UTC), 3)
    assert [prices.at("llama", microseconds(at)).output for at in (before, MIDDLE, end)] == [
        2 * 10**15,
        2 * 10**18,
        0,
    ]
