"""A close rates an earlier month again as long as something may come to it, and no longer."""

from __future__ import annotations

from datetime import datetime, timedelta

from billing.commands.change_subscription import cancel_subscription
from billing.periods import BillingPeriod, parse_period
from billing.stripe.stripe_gateway import StripeGateway
from tests.billing_builders import NOVEMBER, OCTOBER
from tests.closing import bill_month
from tests.integration.billing.conftest import World

DECEMBER, JANUARY = parse_period("2026-12"), parse_period("2027-01")
DAY = timedelta(days=1)


def rated_again(world: World, gateway: StripeGateway, month: BillingPeriod) -> list[BillingPeriod]:
    """Close a month: which earlier ones that rated."""
    closed = bill_month(world.engine, period=month, gateway=gateway, now=month.end + DAY, actor="ada")
    assert closed.problems == []
    return [rated.period for rated in closed.earlier]


def forget(world: World, before: datetime) -> None:
    world.execute("update usage.ingest_rules set closed_before = :at", at=DECEMBER.start)
    world.execute("update usage.ingest_rules set forgotten_before = :at", at=before)


def test_a_month_is_rated_again_until_nothing_can_come_to_it_any_more(world: World, gateway: StripeGateway) -> None:
    world.customers("acme", "beta")
    assert rated_again(world, gateway, OCTOBER) == []
    assert rated_again(world, gateway, NOVEMBER) == [OCTOBER]
    forget(world, OCTOBER.end + DAY)
    assert rated_again(world, gateway, DECEMBER) == [OCTOBER, NOVEMBER]
    # October is settled: nothing that completed then is taken in.
    assert rated_again(world, gateway, DECEMBER) == [NOVEMBER]
    # What is recorded now for later leaves it so; a tenant that turns out to have been there does not.
    cancel_subscription(world.engine, tenant_id="acme", at=JANUARY.start + 10 * DAY, actor="ada")
    assert rated_again(world, gateway, JANUARY) == [NOVEMBER, DECEMBER]
    world.tenant("gamma")
    world.subscribe("gamma", starts_at=OCTOBER.start + 20 * DAY)
    assert rated_again(world, gateway, JANUARY) == [OCTOBER, NOVEMBER, DECEMBER]
