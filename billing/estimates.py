"""What streams may estimate a refused message at: the highest price of a plan that may apply, per model and metric.

Billing writes these prices into streams' own table whenever a plan or a subscription changes; streams only read them.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from billing import plan_store
from billing.charge_models import highest_unit_price
from billing.database import raw
from billing.price_plans import TOKEN_CLASSES, Metric, PlanVersion
from billing.subscriptions import Subscription
from streams.rules import estimates
from streams.rules.estimates import EstimatePrice


def highest_prices(versions: Iterable[PlanVersion]) -> list[EstimatePrice]:
    """For each version, model ('' for any) and metric the highest unit price. A total counts for each token class.

    A metric that the plan declares has none: what a refused message says of it is not read.
    """
    highest: dict[tuple[str, str, str], EstimatePrice] = {}
    for version in versions:
        for charge in version.charges:
            for metric in _counted(charge.metric):
                model, price = charge.where.model or "", highest_unit_price(charge.pricing)
                key = (version.version, model, metric)
                if key not in highest or price > highest[key].unit_price:
                    highest[key] = EstimatePrice(model, metric, price, version.currency, version.valid_from)
    return list(highest.values())


def write_prices(connection: Connection, subscriptions: Iterable[Subscription]) -> None:
    """Write the prices of each tenant's plans, in the caller's transaction."""
    plans = plan_store.plans(connection)
    by_tenant: dict[str, set[str]] = {}
    for subscription in subscriptions:
        by_tenant.setdefault(subscription.tenant_id, set()).add(subscription.plan)
    priced = {name: highest_prices(plan.versions) for name, plan in plans.items()}
    for tenant_id, names in sorted(by_tenant.items()):
        prices = {(p.model, p.metric, p.valid_from): p for name in sorted(names) for p in priced[name]}
        estimates.set_prices(raw(connection), tenant_id, prices.values())


def _counted(metric: str) -> tuple[str, ...]:
    if metric == Metric.TOTAL_TOKENS:
        return tuple(str(each) for each in TOKEN_CLASSES)
    return (str(metric),) if metric in set(Metric) else ()
