"""Billing accounts and subscriptions in the database: who pays, who is on which plan."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from sqlalchemy import ARRAY, Connection, Row, String, any_, cast, func, or_, select
from sqlalchemy.dialects.postgresql import insert

from billing import tables
from billing.errors import SubscriptionRefused
from billing.money import Rounding
from billing.periods import BillingPeriod
from billing.plans.plan_documents import terms_document, terms_of_document
from billing.plans.price_plans import PricePlan
from billing.plans.schedules import has_period, is_billed_in
from billing.plans.subscriptions import Subscription, with_contracts

DEFAULT_LEGAL_ENTITY: Final = "default"
ACCOUNT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,126}")
"""As the database checks it, and as a tenant is named."""
ENTITY_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True, slots=True)
class BillingAccount:
    """Who pays, in one currency, for 1…n tenants."""

    billing_account: str
    legal_entity: str
    name: str
    currency: str
    rounding: Rounding = Rounding.HALF_EVEN
    payment_terms_days: int = 30


def check_plan(account: BillingAccount, plan: PricePlan) -> None:
    """Raises SubscriptionRefused unless an account can pay by a plan: in its currency, rounded as its contract says."""
    if account.currency != plan.currency:
        raise SubscriptionRefused(
            f"billing account {account.billing_account} pays in {account.currency}, plan {plan.name} is in"
            f" {plan.currency}"
        )
    if account.rounding is not plan.terms.rounding:
        raise SubscriptionRefused(
            f"invoices of billing account {account.billing_account} are rounded {account.rounding}, by the terms of"
            f" plan {plan.name} {plan.terms.rounding}: an account rounds one way; `tollbook account add NAME --currency"
            f" {plan.currency} --rounding {plan.terms.rounding}` makes one that does, `--account NAME` pays by it"
        )


def add_account(connection: Connection, account: BillingAccount) -> bool:
    """Make the account; False if one of this name exists."""
    made = connection.execute(
        insert(tables.billing_accounts)
        .values(
            billing_account=account.billing_account,
            legal_entity=account.legal_entity,
            name=account.name,
            currency=account.currency,
            rounding=account.rounding.value,
            payment_terms_days=account.payment_terms_days,
        )
        .on_conflict_do_nothing()
        .returning(tables.billing_accounts.c.billing_account)
    )
    return made.first() is not None


def accounts(connection: Connection, names: Collection[str] | None = None) -> dict[str, BillingAccount]:
    """Billing accounts by name; all of them unless names are given."""
    table = tables.billing_accounts
    query = select(table).order_by(table.c.billing_account)
    if names is not None:
        query = query.where(table.c.billing_account == any_(cast(list(names), ARRAY(String))))
    return {
        row.billing_account: BillingAccount(
            row.billing_account,
            row.legal_entity,
            row.name,
            row.currency,
            Rounding(row.rounding),
            row.payment_terms_days,
        )
        for row in connection.execute(query)
    }


def legal_entities(connection: Connection) -> dict[str, str]:
    """The name of each legal entity by its id."""
    table = tables.legal_entities
    rows = connection.execute(select(table.c.legal_entity, table.c.name).order_by(table.c.legal_entity))
    return {row.legal_entity: row.name for row in rows}


def functional_currency(connection: Connection, legal_entity: str) -> str:
    """In which currency a legal entity's books are kept."""
    table = tables.legal_entities
    query = select(table.c.functional_currency).where(table.c.legal_entity == legal_entity)
    return str(connection.execute(query).scalar_one())


def add_legal_entity(connection: Connection, legal_entity: str, name: str, currency: str) -> None:
    """Add a legal entity: it stays, with its currency."""
    connection.execute(
        tables.legal_entities.insert().values(legal_entity=legal_entity, name=name, functional_currency=currency)
    )


def add_subscription(connection: Connection, subscription: Subscription, actor: str) -> None:
    """Append a subscription. The database refuses one that overlaps another of the tenant (IntegrityError)."""
    connection.execute(
        tables.subscriptions.insert().values(
            subscription_id=subscription.subscription_id,
            tenant_id=subscription.tenant_id,
            billing_account=subscription.billing_account,
            plan=subscription.plan,
            starts_at=subscription.starts_at,
            ends_at=subscription.ends_at,
            bill_statuses=list(subscription.bill_statuses),
            terms=terms_document(subscription.terms),
            seats=subscription.seats,
            begins_plan=subscription.begins_plan,
            trial_ends_at=subscription.trial_ends_at,
            anchored_at=subscription.anchored_at,
            recorded_by=actor,
        )
    )


def supersede(connection: Connection, subscription: Subscription) -> None:
    """Let what is known of a subscription be the past: another row takes its place."""
    table = tables.subscriptions
    connection.execute(
        table.update()
        .where(table.c.subscription_id == subscription.subscription_id, table.c.superseded_at.is_(None))
        .values(superseded_at=func.clock_timestamp())
    )


def lock_tenant(connection: Connection, tenant_id: str) -> None:
    """Let changes of one tenant's subscriptions go one after another, until the transaction ends."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"subscription/{tenant_id}", 0))))


def subscriptions(
    connection: Connection,
    *,
    tenant_id: str | None = None,
    of_payers: Collection[str] | None = None,
    as_of: datetime | None = None,
) -> list[Subscription]:
    """Subscriptions as they are known now, or were at a moment, by tenant and start.

    `of_payers`: every one of the tenants that some billing accounts pay for at some time.
    """
    table = tables.subscriptions
    query = select(table).order_by(table.c.tenant_id, table.c.starts_at)
    if as_of is None:
        query = query.where(table.c.superseded_at.is_(None))
    else:
        still = or_(table.c.superseded_at.is_(None), table.c.superseded_at > as_of)
        query = query.where(table.c.recorded_at <= as_of, still)
    if tenant_id is not None:
        query = query.where(table.c.tenant_id == tenant_id)
    if of_payers is not None:
        paid_for = select(table.c.tenant_id).where(
            table.c.superseded_at.is_(None), table.c.billing_account == any_(cast(list(of_payers), ARRAY(String)))
        )
        query = query.where(table.c.tenant_id.in_(paid_for))
    return with_contracts(_subscription(row) for row in connection.execute(query))


def subscriptions_in(connection: Connection, period: BillingPeriod) -> dict[str, list[Subscription]]:
    """Subscriptions of which it is a billing period, and which hold at some time of it, by tenant."""
    return _by_tenant(each for each in subscriptions(connection) if has_period(each, period))


def subscriptions_during(connection: Connection, span: BillingPeriod) -> dict[str, list[Subscription]]:
    """Subscriptions that hold at some time, whatever periods they are billed by, by tenant."""
    return _by_tenant(
        each
        for each in subscriptions(connection)
        if each.starts_at < span.end and (each.ends_at is None or each.ends_at > span.start)
    )


def subscriptions_billed_in(connection: Connection, month: BillingPeriod) -> dict[str, list[Subscription]]:
    """Subscriptions that began before a month's end and of which a billing period has time in it, by tenant.

    Also those that ended before it, within a period that goes on.
    """
    return _by_tenant(each for each in subscriptions(connection) if is_billed_in(each, month))


def _by_tenant(listed: Iterable[Subscription]) -> dict[str, list[Subscription]]:
    found: dict[str, list[Subscription]] = {}
    for subscription in listed:
        found.setdefault(subscription.tenant_id, []).append(subscription)
    return found


def _subscription(row: Row[tuple[object, ...]]) -> Subscription:
    return Subscription(
        subscription_id=row.subscription_id,
        tenant_id=row.tenant_id,
        billing_account=row.billing_account,
        plan=row.plan,
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        terms=replace(terms_of_document(row.terms), bill_statuses=tuple(row.bill_statuses)),
        seats=row.seats,
        begins_plan=row.begins_plan,
        trial_ends_at=row.trial_ends_at,
        anchored_at=row.anchored_at,
    )
