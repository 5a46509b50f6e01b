"""Put tenants on a plan. In the common case each tenant pays for itself, under the default legal entity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import IntegrityError

from billing.commands.keep_accounts import describe
from billing.database import raw, transaction
from billing.errors import SubscriptionRefused
from billing.invoicing import billed_until_store
from billing.plans import account_store, plan_store, quota_periods
from billing.plans.account_store import DEFAULT_LEGAL_ENTITY, BillingAccount
from billing.plans.price_plans import PricePlan
from billing.plans.subscriptions import Subscription, check_start, subscription_id, trial_end
from billing.usage import estimates, rating_bands
from streams import audit, tenants
from streams.rules.stale_bands import StaleBands


@dataclass(frozen=True, slots=True)
class SubscriptionStarted:
    """A subscription, and whether it was made now or was there before."""

    subscription: Subscription
    created: bool
    stale: StaleBands | None = None
    """Usage that was there before and is not marked for the plan's prices: `streams rebuild` is due for this time."""


def start_subscription(
    engine: Engine,
    *,
    tenant_id: str,
    plan: str,
    starts_at: datetime,
    actor: str,
    billing_account: str | None = None,
    legal_entity: str = DEFAULT_LEGAL_ENTITY,
    bill_statuses: Sequence[str] | None = None,
    seats: int | None = None,
    email: str = "",
    dry_run: bool = False,
) -> SubscriptionStarted:
    """Put one tenant on a plan from `starts_at` (any moment). Doing it again changes nothing.

    The billing account is the tenant's own unless one is named; a new one takes the plan's currency. `bill_statuses`
    are the plan's unless the contract has others; `seats` is for fees by the seat; `email` is where an account that is
    made here gets its invoices. Raises SubscriptionRefused, PartyRefused, UnknownPlan, streams.errors.UnknownTenant.
    """
    return start_subscriptions(
        engine,
        tenant_ids=[tenant_id],
        plan=plan,
        starts_at=starts_at,
        actor=actor,
        billing_account=billing_account,
        legal_entity=legal_entity,
        bill_statuses=bill_statuses,
        seats=seats,
        email=email,
        dry_run=dry_run,
    )[0]


def start_subscriptions(
    engine: Engine,
    *,
    tenant_ids: Sequence[str],
    plan: str,
    starts_at: datetime,
    actor: str,
    billing_account: str | None = None,
    legal_entity: str = DEFAULT_LEGAL_ENTITY,
    bill_statuses: Sequence[str] | None = None,
    seats: int | None = None,
    email: str = "",
    dry_run: bool = False,
) -> list[SubscriptionStarted]:
    """The same for many tenants in one transaction: all of them or none."""
    if billing_account is not None and not account_store.ACCOUNT_NAME.fullmatch(billing_account):
        raise SubscriptionRefused(
            f"{billing_account!r} is no name of a billing account: letters, digits, and . _ : - (not first), up to 127"
        )
    try:
        with transaction(engine, dry_run=dry_run) as connection:
            priced = plan_store.plan(connection, plan)
            check_start(starts_at, priced.versions, seats)
            terms = priced.terms if bill_statuses is None else replace(priced.terms, bill_statuses=tuple(bill_statuses))
            if problems := terms.problems():
                raise SubscriptionRefused("; ".join(f"{field}: {reason}" for field, reason in problems))
            started = [
                _start(
                    connection,
                    Subscription(
                        subscription_id=subscription_id(tenant_id, starts_at.astimezone(UTC)),
                        tenant_id=tenant_id,
                        billing_account=billing_account or tenant_id,
                        plan=plan,
                        starts_at=starts_at.astimezone(UTC),
                        terms=terms,
                        seats=seats,
                        trial_ends_at=trial_end(starts_at.astimezone(UTC), terms),
                    ),
                    priced,
                    legal_entity,
                    email,
                    actor,
                )
                for tenant_id in tenant_ids
            ]
            created = [each.subscription for each in started if each.created]
            estimates.write_prices(connection, {each.tenant_id for each in created})
            quota_periods.write_anchors(connection, created)
            stale = rating_bands.write_rules(connection, {each.tenant_id for each in created}) if created else []
            by_tenant = {each.tenant_id: each for each in stale}
            return [replace(each, stale=by_tenant.get(each.subscription.tenant_id)) for each in started]
    except IntegrityError as error:
        # Two at once: the database let one of them through.
        raise SubscriptionRefused(f"not started: {str(error.orig).splitlines()[0]}") from None


def _start(
    connection: Connection, wanted: Subscription, plan: PricePlan, legal_entity: str, email: str, actor: str
) -> SubscriptionStarted:
    for other in account_store.subscriptions(connection, tenant_id=wanted.tenant_id):
        if other == wanted:
            return SubscriptionStarted(other, created=False)
        if other.ends_at is None or other.ends_at > wanted.starts_at:
            until = "without end" if other.ends_at is None else f"to {other.ends_at:%Y-%m-%d %H:%M}"
            raise SubscriptionRefused(
                f"tenant {wanted.tenant_id} is on plan {other.plan} from {other.starts_at:%Y-%m-%d %H:%M} {until},"
                f" paid by {other.billing_account}: two subscriptions cannot overlap"
            )
    tenants.get(raw(connection), wanted.tenant_id)
    _account_for(connection, wanted, plan, legal_entity, email, actor)
    account_store.add_subscription(connection, wanted, actor)
    detail = {
        "plan": wanted.plan,
        "starts_at": wanted.starts_at.isoformat(),
        "billing_account": wanted.billing_account,
        "bill_statuses": list(wanted.bill_statuses),
        "seats": wanted.seats,
    }
    audit.record(raw(connection), actor, "subscription.start", wanted.tenant_id, detail)
    return SubscriptionStarted(wanted, created=True)


def _account_for(
    connection: Connection, wanted: Subscription, plan: PricePlan, legal_entity: str, email: str, actor: str
) -> None:
    name = wanted.billing_account
    account = BillingAccount(name, legal_entity, name, plan.currency, plan.terms.rounding)
    if account_store.add_account(connection, account):
        detail = {"legal_entity": legal_entity, "currency": plan.currency}
        audit.record(raw(connection), actor, "account.add", name, detail)
        if email:
            describe(connection, (None, name), name, {"email": email}, actor)
        return
    account_store.check_plan(account_store.accounts(connection, [name])[name], plan)
    billed = billed_until_store.frozen_until(connection, [name])
    if billed is not None and wanted.starts_at < billed:
        raise SubscriptionRefused(
            f"invoices of billing account {name} are frozen up to {billed:%Y-%m-%d}: start there or later"
        )
