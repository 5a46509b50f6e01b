"""Which fees in advance are due by when: worked out from subscriptions and prices as they are known now.

What is due at one moment for one period is on one invoice of the billing account, for all its tenants, but the tax
groups that come to less: they are credited.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection

from billing.invoicing import invoice_store
from billing.invoicing.invoices import Invoice
from billing.money import ZERO
from billing.periods import INSTANT, BillingPeriod
from billing.plans import account_store, plan_store
from billing.plans.charge_models import Timing
from billing.plans.price_plans import PlanVersion, PricePlan
from billing.plans.schedules import by_schedule
from billing.plans.subscriptions import Subscription, pieces
from billing.rating import LineKind, RatedLine, net
from billing.rating.advance import advance_bills

Service = tuple[str, BillingPeriod]
"""A billing account, and what becomes due at the start of a period for all of it."""


Share = tuple[str, str]
"""A tenant and a tax group: what is netted, and so invoiced or credited, by itself (docs/decisions/0037)."""
ByShare = dict[Share, list[RatedLine]]


def fees_due(
    connection: Connection,
    until: datetime,
    accounts: Collection[str] | None = None,
    *,
    since: datetime | None = None,
) -> dict[Service, ByShare]:
    """Everything due until a moment (included) by tenant and tax group, in order of time, of periods that end after
    `since`.

    A tenant's subscriptions to plans without a fee in advance are looked at too: with them begins what is unused.
    """
    by_tenant: dict[str, list[Subscription]] = defaultdict(list)
    for subscription in account_store.subscriptions(connection, of_payers=accounts):
        by_tenant[subscription.tenant_id].append(subscription)
    plans = plan_store.plans(connection, {s.plan for listed in by_tenant.values() for s in listed})
    in_advance = {name for name, plan in plans.items() if bills_in_advance(plan)}
    versions = {name: plan.versions for name, plan in plans.items()}
    found: dict[Service, ByShare] = {}
    for tenant_id, listed in sorted(by_tenant.items()):
        if any(each.plan in in_advance for each in listed):
            _add(found, tenant_id, listed, versions, since, until)
    return {
        service: due
        for service, due in sorted(found.items(), key=lambda item: (item[0][1], item[0][0]))
        if accounts is None or service[0] in accounts
    }


def changed_tenants(connection: Connection, document: Invoice) -> list[str]:
    """Tenants whose fees on a document, with those that others have of the same time, are not those due by now. Neither
    changes until the transaction ends."""
    identity = document.identity
    account, start = identity.billing_account, identity.period.start
    on_it = by_share(line.rated for line in document.lines)
    for tenant_id in sorted({tenant_id for tenant_id, _ in on_it}):
        account_store.lock_tenant(connection, tenant_id)
    due = fees_due(connection, start, [account], since=start).get((account, identity.period), {})
    billed = by_share(
        line.rated
        for each in invoice_store.fees_of(connection, account, identity.period)
        if each.frozen_at is not None and each.invoice.invoice_id != document.invoice_id
        for line in each.invoice.lines
    )
    return sorted(
        {share[0] for share, lines in on_it.items() if differ([*billed.get(share, ()), *lines], due.get(share, []))}
    )


def bills_in_advance(plan: PricePlan) -> bool:
    """Whether a plan has a fee in advance."""
    return any(charge.timing is Timing.ADVANCE for version in plan.versions for charge in version.charges)


def by_share(lines: Iterable[RatedLine]) -> ByShare:
    """Fees by tenant and tax group; lines of credit, which are the account's, are none."""
    found: ByShare = defaultdict(list)
    for line in lines:
        if line.identity.kind != LineKind.CREDIT:
            found[line.identity.tenant_id, line.tax_group].append(line)
    return dict(found)


def differ(lines: Sequence[RatedLine], others: Sequence[RatedLine]) -> bool:
    """Whether lines bill something else than others: by identity, unit price and tax group, to the last digit."""
    one, other = ({key: line.amount for key, line in net(each).items()} for each in (lines, others))
    return one != other


def _add(
    found: dict[Service, ByShare],
    tenant_id: str,
    listed: Sequence[Subscription],
    versions: Mapping[str, Sequence[PlanVersion]],
    since: datetime | None,
    until: datetime,
) -> None:
    for schedule, subscriptions in by_schedule(listed).items():
        first = min(each.starts_at for each in subscriptions)
        for period in schedule.periods(first if since is None else max(first, since), until + INSTANT):
            cut = pieces(subscriptions, versions, period)
            for bill in advance_bills(cut, period, lambda of, at: ZERO):
                if bill.service.start <= until:
                    for line in bill.lines:
                        due = found.setdefault((line.billing_account, bill.service), {})
                        due.setdefault((tenant_id, line.tax_group), []).append(line)
