"""The highest prices that may apply to a tenant's usage, per model and metric, from when on: for streams.

Quotas in money are counted at them, and what a refused message may be worth is estimated at them. Billing writes them
into streams' own table whenever a plan or a subscription changes; streams only read them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection

from billing.database import raw
from billing.plans import account_store, plan_store
from billing.plans.charge_models import highest_unit_price
from billing.plans.price_plans import TOKEN_CLASSES, Charge, Filters, Metric, PlanVersion
from billing.plans.subscriptions import Subscription
from streams.rules import estimates
from streams.rules.estimates import EstimatePrice


def highest_prices(version: PlanVersion) -> dict[tuple[str, str], Decimal]:
    """For each model ('' for any) and metric the highest unit price. A total counts for each token class, beside what
    the class costs itself.

    A metric that the plan declares has none: what a refused message says of it is not read.
    """
    highest: dict[tuple[str, str], Decimal] = {}
    for model in {charge.where.model or "" for charge in version.charges}:
        found: dict[str, Decimal] = {}
        named: set[str] = set()
        for charge in version.charges:
            if _may_price(charge, model, version.charges):
                found[charge.metric] = max(highest_unit_price(charge.pricing), found.get(charge.metric, Decimal(0)))
                named.update(_counted(charge.metric) if (charge.where.model or "") == model else ())
        for metric in named:
            of_total = found.get(Metric.TOTAL_TOKENS, Decimal(0)) if metric in TOKEN_CLASSES else Decimal(0)
            highest[model, metric] = found.get(metric, Decimal(0)) + of_total
    return highest


def _may_price(charge: Charge, model: str, charges: Iterable[Charge]) -> bool:
    """Whether some usage of a model can be priced by a charge: none whose model alone tells of a better one does."""
    if charge.where.model is not None:
        return charge.where.model == model
    return not any(
        other.metric == charge.metric and other.where == Filters(model=model) and other.where.rank > charge.where.rank
        for other in charges
    )


def prices_over_time(
    subscriptions: Iterable[Subscription], plans: Mapping[str, Sequence[PlanVersion]]
) -> list[EstimatePrice]:
    """A tenant's highest prices: each version's from when it is in force in a subscription of its plan that bills.

    What a version does not price, and the one before it did, costs nothing from then on; after a subscription's end
    nothing does, until the next one bills.
    """
    found: dict[tuple[str, str, datetime], EstimatePrice] = {}
    priced: set[tuple[str, str]] = set()
    for each in sorted(subscriptions, key=lambda subscription: subscription.starts_at):
        for version in sorted(plans[each.plan], key=lambda version: version.valid_from):
            since = max(version.valid_from, each.bills_from)
            if each.ends_at is not None and since >= each.ends_at:
                continue
            for key in [key for key in found if key[2] == since]:  # a version that was over before the start
                del found[key]
            highest = highest_prices(version)
            priced |= set(highest)
            for model, metric in priced:
                price = highest.get((model, metric))
                if price is None and (model == "" or ("", metric) not in highest):
                    price = Decimal(0)
                if price is not None:
                    found[model, metric, since] = EstimatePrice(model, metric, price, version.currency, since)
        if each.ends_at is not None and found:
            currency = next(reversed(found.values())).currency
            for model, metric in priced:
                found[model, metric, each.ends_at] = EstimatePrice(model, metric, Decimal(0), currency, each.ends_at)
    return list(found.values())


def statuses_that_bill(subscriptions: Collection[Subscription]) -> set[str]:
    """Of usage that bills in any of the subscriptions that go on, or, where none does, in any that there was."""
    going_on = [each for each in subscriptions if each.ends_at is None] or subscriptions
    return {status for each in going_on for status in each.bill_statuses} or set(estimates.BILL_STATUSES)


def write_prices(connection: Connection, tenant_ids: Collection[str]) -> None:
    """Write the prices of each of these tenants' subscriptions, in the caller's transaction."""
    if not tenant_ids:
        return
    plans = {name: plan.versions for name, plan in plan_store.plans(connection).items()}
    by_tenant: dict[str, list[Subscription]] = {tenant_id: [] for tenant_id in sorted(tenant_ids)}
    for each in account_store.subscriptions(connection):
        if each.tenant_id in by_tenant:
            by_tenant[each.tenant_id].append(each)
    for tenant_id, held in by_tenant.items():
        estimates.set_prices(raw(connection), tenant_id, prices_over_time(held, plans), statuses_that_bill(held))


def _counted(metric: str) -> tuple[str, ...]:
    if metric == Metric.TOTAL_TOKENS:
        return tuple(str(each) for each in TOKEN_CLASSES)
    return (str(metric),) if metric in set(Metric) else ()
