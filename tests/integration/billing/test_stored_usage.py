"""What is rated from stored usage is what the pure core rates from the events, whatever cuts a period."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from billing.database import transaction
from billing.invoicing import rated_line_store
from billing.periods import BillingPeriod
from billing.rating import RatedLine, net
from billing.usage import rating_bands
from billing.usage.event_usage import needs_events
from reconciliation.period import reconcile_period
from streams.database import connect
from streams.usage.rebuild import rebuild
from tests.billing_builders import NOVEMBER, NOW, OCTOBER
from tests.integration.billing.conftest import World
from tests.integration.billing.histories import Tenant, store, tenant_of

SEED = 20261121
TENANTS = 40
Told = dict[tuple[object, ...], tuple[Decimal | None, ...]]


def told(lines: Iterable[RatedLine]) -> Told:
    """Lines by all that names them, with their figures."""
    return {
        (line.identity, line.unit_price, line.service_start, line.service_end): (
            line.quantity, line.amount, line.units, line.free, line.included,
        )
        for line in net(lines).values()
    }  # fmt: skip


def stored(world: World, period: BillingPeriod) -> dict[str, Told]:
    with transaction(world.engine) as connection:
        return {tenant: told(lines) for tenant, lines in rated_line_store.posted(connection, period).items()}


def check(world: World, tenants: Iterable[Tenant], period: BillingPeriod) -> None:
    found = world.rate(period)
    assert found.unratable == ()
    lines, unpriced = stored(world, period), []
    report = reconcile_period(world.engine, period=period, now=NOW, gateway=None, log=None)
    (agreed,) = [check for check in report.checks if check.name == "usage is rated"]
    differing = {d.key.split("/")[0] for d in agreed.differences if "without a subscription" not in d.key}
    for tenant in tenants:
        expected, missing = tenant.by_the_core(period)
        unpriced += missing
        assert (tenant.tenant_id in differing) == bool(missing), agreed.differences
        if not missing:
            assert lines.get(tenant.tenant_id, {}) == told(expected), tenant.tenant_id
    assert sorted(found.unpriced) == sorted(unpriced)
    assert world.rate(period).lines_posted == 0


def test_stored_usage_is_rated_as_the_core_rates_events(world: World, own_database_url: str) -> None:
    tenants = [tenant_of(SEED + n) for n in range(TENANTS)]
    store(world, own_database_url, tenants)
    check(world, tenants, OCTOBER)
    check(world, tenants, NOVEMBER)


def test_usage_that_was_not_marked_for_its_prices_is_rated_after_a_rebuild(world: World, own_database_url: str) -> None:
    tenants = [tenant_of(SEED + n) for n in range(15)]
    tenants = [tenant for tenant in tenants if not any(map(needs_events, tenant.plans))]
    store(world, own_database_url, tenants, late_bands=True)
    with transaction(world.engine) as connection:
        stale = rating_bands.write_rules(connection, [tenant.tenant_id for tenant in tenants])
        assert rating_bands.write_rules(connection, [tenant.tenant_id for tenant in tenants]) == stale
    of_october = {each.tenant_id for each in stale if each.start < OCTOBER.end}
    assert {text.split()[1].rstrip(":") for text in world.rate(OCTOBER).unratable} == of_october != set()
    with connect(own_database_url) as connection:
        rebuild(connection, OCTOBER.start, OCTOBER.end, actor="test", apply=True)
    check(world, tenants, OCTOBER)
    assert world.rate(NOVEMBER).unratable
    with connect(own_database_url) as connection:
        rebuild(connection, NOVEMBER.start, NOVEMBER.end, actor="test", apply=True)
    check(world, tenants, NOVEMBER)
    assert world.count("usage.stale_bands") == 0
