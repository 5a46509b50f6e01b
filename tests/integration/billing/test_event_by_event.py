"""Credits and explanations where sums do not do: declared metrics, percentages, context lengths, price at start."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

from billing.bills.billing_cycle import History, bill
from billing.bills.credits import Applicability, Grant, GrantKind
from billing.bills.documents import Payer
from billing.commands.explain_invoice import explain_invoice
from billing.money import currency
from billing.plans.price_plans import PriceAt
from billing.usage.event_usage import needs_events
from tests.billing_builders import OCTOBER, SINCE
from tests.integration.billing.conftest import World
from tests.integration.billing.histories import Tenant, as_event, store, tenant_of
from tests.integration.billing.test_credits import give, grant
from tests.integration.billing.test_fees_in_advance import stored, told, told_stored
from tests.integration.billing.test_invoice_evidence import no_archive

SEED, TENANTS = 20261130, 14


def grants_of(tenant: Tenant) -> tuple[Grant, ...]:
    """One that lowers the price until the middle of October, one that pays, fees too."""
    middle = OCTOBER.start + timedelta(days=15, minutes=7)
    return (
        grant(f"{tenant.tenant_id}-promo", "9", expires=middle),
        grant(
            f"{tenant.tenant_id}-paid", "20", kind=GrantKind.PAID, paid_at=SINCE, applies_to=Applicability(fees=True)
        ),
    )


def by_the_core(tenant: Tenant) -> set[tuple[object, ...]]:
    payer = Payer(replace(currency("USD", OCTOBER.end.date()), stripe_minimum=0))
    versions = {plan.name: plan.versions for plan in tenant.plans}
    history = History(
        payer, tenant.terms, (OCTOBER,), tenant.subscriptions, versions, tuple(map(as_event, tenant.events)),
        grants=grants_of(tenant),
    )  # fmt: skip
    return {told(document, taxed=False) for document in bill(history).documents}


def test_credits_are_drawn_and_lines_explained_event_by_event(world: World, own_database_url: str) -> None:
    tenants = [tenant_of(SEED + number) for number in range(TENANTS)]
    store(world, own_database_url, tenants)
    for tenant in tenants:
        give(world, *grants_of(tenant), account=tenant.tenant_id)
    unpriced = {tenant.tenant_id for tenant in tenants if tenant.by_the_core(OCTOBER)[1]}
    assert {usage.tenant_id for usage in world.rate().unpriced} == unpriced
    assert {account for account, _ in world.draft().blocked} == unpriced
    covered = 0
    for tenant in tenants:
        if tenant.tenant_id in unpriced:
            continue
        drafts = stored(world, tenant.tenant_id)
        assert {told_stored(draft) for draft in drafts} == by_the_core(tenant), tenant.tenant_id
        for draft in drafts:
            found = explain_invoice(world.engine, no_archive, str(draft.invoice.invoice_id), lambda share: None)
            assert found.agrees, [(e.counter, e.found, e.counted) for e in found.counters if not e.agrees]
        covered += bool(drafts) and (any(map(needs_events, tenant.plans)) or tenant.terms.price_at is PriceAt.START)
    assert covered > 2
    assert sum((row[0] for row in world.rows("select amount from ledger.invoice_credits")), Decimal(0)) > 0
