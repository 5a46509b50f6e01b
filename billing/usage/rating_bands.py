"""What streams must mark requests with so that they can be rated from sums: steps of context length, price versions.

Billing writes these rules whenever a plan or a subscription changes; streams mark each event by them when it is
ingested (streams/rules/rating_bands.py). A price version is named by the moment from which it is in force, so that the
name holds for whatever plan the tenant is on when the request completes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, func, select

from billing.database import raw
from billing.plans import account_store, plan_store
from billing.plans.price_plans import PlanVersion, PriceAt, version_at
from billing.plans.subscriptions import Subscription, version_name
from streams.rules import ingest_rules
from streams.rules.rating_bands import ANY_MODEL, BandKind, BandRule
from streams.rules.stale_bands import StaleBands, stale_bands

Versions = Mapping[str, Sequence[PlanVersion]]
_EVER: Final = (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))


def needs_bands(subscription: Subscription, versions: Versions) -> bool:
    """Whether its usage cannot be priced from sums over all requests."""
    dated = versions[subscription.plan]
    priced_at_start = subscription.terms.price_at is PriceAt.START and len(dated) > 1
    return priced_at_start or any(map(context_steps, dated))


def context_steps(version: PlanVersion) -> frozenset[int]:
    """Input tokens at which a request falls to another charge: `context_over` and `context_up_to` end below them."""
    bounds = (b for c in version.charges for b in (c.where.context_over, c.where.context_up_to))
    return frozenset(bound + 1 for bound in bounds if bound is not None)


def rules_of(tenant_id: str, subscriptions: Iterable[Subscription], versions: Versions) -> list[BandRule]:
    """The rules that a tenant's subscriptions ask for."""
    found: list[BandRule] = []
    started: set[datetime] = set()
    in_force: tuple[int, ...] = ()
    for each in sorted(subscriptions, key=lambda subscription: subscription.starts_at):
        dated = sorted(versions[each.plan], key=lambda version: version.valid_from)
        at_start = each.terms.price_at is PriceAt.START
        if at_start:
            started |= {version.valid_from for version in dated[1:]}
        bounds = sorted({each.starts_at, *(v.valid_from for v in dated if each.starts_at < v.valid_from)})
        for bound in bounds:
            if each.ends_at is not None and bound >= each.ends_at:
                break
            begun = [v for v in dated if v.valid_from <= bound] if at_start else [version_at(dated, bound)]
            steps = tuple(sorted(frozenset().union(*map(context_steps, begun))))
            if steps != in_force:
                found.append(BandRule(tenant_id, ANY_MODEL, BandKind.CONTEXT, bound, steps=steps))
                in_force = steps
    found += [
        BandRule(tenant_id, ANY_MODEL, BandKind.STARTED, bound, price_version=version_name(bound))
        for bound in sorted(started)
    ]
    return found


def write_rules(connection: Connection, tenants: Collection[str]) -> list[StaleBands]:
    """Write the rules of tenants in the caller's transaction, one caller after another; what must be rebuilt now."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("rating bands", 0))))
    by_tenant: dict[str, list[Subscription]] = {tenant_id: [] for tenant_id in tenants}
    for subscription in account_store.subscriptions(connection):
        if subscription.tenant_id in by_tenant:
            by_tenant[subscription.tenant_id].append(subscription)
    names = {subscription.plan for listed in by_tenant.values() for subscription in listed}
    versions = {name: plan.versions for name, plan in plan_store.plans(connection, names).items()}
    marked = {rule.tenant_id for rule in ingest_rules.band_rules(raw(connection))}
    for tenant_id, listed in sorted(by_tenant.items()):
        rules = rules_of(tenant_id, listed, versions)
        if rules or tenant_id in marked:
            needed = [s.starts_at for s in listed if needs_bands(s, versions)]
            ingest_rules.set_band_rules(raw(connection), tenant_id, rules, matter_from=min(needed, default=None))
    return [stale for stale in stale_bands(raw(connection), *_EVER) if stale.tenant_id in by_tenant]
