"""Move a tenant to another plan or number of seats, end its subscription, or go on with it, at any moment of a period.

A subscription is never edited: its row is superseded by one that ends, and what follows is a subscription of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import IntegrityError

from billing.database import raw, transaction
from billing.errors import SubscriptionRefused
from billing.invoicing import billed_until_store
from billing.plans import account_store, plan_store, quota_periods
from billing.plans.price_plans import Anchor
from billing.plans.subscriptions import Subscription, check_start, subscription_id
from billing.usage import estimates, rating_bands
from streams import audit
from streams.rules.stale_bands import StaleBands


@dataclass(frozen=True, slots=True)
class SubscriptionChanged:
    """What held before, now with its end; what follows, None after a cancellation; and whether this run changed it."""

    before: Subscription
    after: Subscription | None
    changed: bool
    stale: tuple[StaleBands, ...] = ()
    """Usage that is not marked for the prices that now hold: `streams rebuild` is due for these times."""


def change_subscription(
    engine: Engine,
    *,
    tenant_id: str,
    plan: str,
    at: datetime,
    actor: str,
    seats: int | None = None,
    dry_run: bool = False,
) -> SubscriptionChanged:
    """Let another plan, or other seats of the same, hold from `at` on (any moment). Doing it again changes nothing.

    The payer stays, and so does the end, if there is one. On the same plan the contract's terms stay too, and one-off
    fees are not due again. Raises SubscriptionRefused, UnknownPlan.
    """
    try:
        with transaction(engine, dry_run=dry_run) as connection:
            priced = plan_store.plan(connection, plan)
            at = _utc(at)
            held = _held(connection, tenant_id, at)
            goes_on = held.plan == plan
            wanted_seats = held.seats if seats is None and goes_on else seats
            check_start(at, priced.versions, wanted_seats)
            if held.starts_at == at and goes_on and held.seats == wanted_seats:
                return SubscriptionChanged(_before(connection, held), held, False)
            if goes_on and held.seats == wanted_seats:
                raise SubscriptionRefused(f"tenant {tenant_id} is on plan {plan} at {at:%Y-%m-%d %H:%M} already")
            payer = account_store.accounts(connection, [held.billing_account])[held.billing_account]
            account_store.check_plan(payer, priced)
            in_trial = held.bills_from > at
            after = replace(
                held,
                subscription_id=subscription_id(tenant_id, at),
                plan=plan,
                starts_at=at,
                terms=held.terms if goes_on else priced.terms,
                seats=wanted_seats,
                begins_plan=not goes_on or (held.begins_plan and in_trial),
                trial_ends_at=held.trial_ends_at if in_trial else None,
                anchored_at=held.anchor if held.terms.anchor is Anchor.ANNIVERSARY else None,
            )
            before = _end(connection, held, at, actor)
            account_store.add_subscription(connection, after, actor)
            estimates.write_prices(connection, [tenant_id])
            quota_periods.write_anchors(connection, [after])
            detail = {"plan": plan, "before": held.plan, "from": at.isoformat(), "seats": wanted_seats}
            audit.record(raw(connection), actor, "subscription.change", tenant_id, detail)
            stale = rating_bands.write_rules(connection, [tenant_id])
            return SubscriptionChanged(before, after, True, tuple(stale))
    except IntegrityError as error:
        # Two at once: the database let one of them through.
        raise SubscriptionRefused(f"not changed: {str(error.orig).splitlines()[0]}") from None


def cancel_subscription(
    engine: Engine, *, tenant_id: str, at: datetime, actor: str, dry_run: bool = False
) -> SubscriptionChanged:
    """End a tenant's subscription at a moment. Doing it again changes nothing. Raises SubscriptionRefused."""
    at = _utc(at)
    with transaction(engine, dry_run=dry_run) as connection:
        for each in account_store.subscriptions(connection, tenant_id=tenant_id):
            if each.ends_at == at:
                return SubscriptionChanged(each, None, False)
        before = _end(connection, _held(connection, tenant_id, at), at, actor)
        estimates.write_prices(connection, [tenant_id])
        audit.record(raw(connection), actor, "subscription.cancel", tenant_id, {"plan": before.plan, "to": str(at)})
        stale = rating_bands.write_rules(connection, [tenant_id])
        return SubscriptionChanged(before, None, True, tuple(stale))


def resume_subscription(
    engine: Engine, *, tenant_id: str, at: datetime, actor: str, dry_run: bool = False
) -> SubscriptionChanged:
    """Go on from a moment with what a tenant's last cancellation ended: a pause is over. Again it changes nothing.

    Plan, payer, seats, terms and anniversaries stay; no one-off fee is due again, and a trial is not begun anew.
    Raises SubscriptionRefused.
    """
    at = _utc(at)
    try:
        with transaction(engine, dry_run=dry_run) as connection:
            account_store.lock_tenant(connection, tenant_id)
            listed = account_store.subscriptions(connection, tenant_id=tenant_id)
            if len(listed) > 1 and listed[-1] == _resumed(listed[-2], at):
                return SubscriptionChanged(listed[-2], listed[-1], False)
            last = listed[-1] if listed else None
            if last is None or last.ends_at is None or last.ends_at > at:
                raise SubscriptionRefused(f"tenant {tenant_id} has no subscription that ended by {at:%Y-%m-%d %H:%M}")
            check_start(at, plan_store.plan(connection, last.plan).versions, last.seats)
            _check_frozen(connection, last, at)
            after = _resumed(last, at)
            account_store.add_subscription(connection, after, actor)
            estimates.write_prices(connection, [tenant_id])
            quota_periods.write_anchors(connection, [after])
            detail = {"plan": last.plan, "from": at.isoformat(), "ended": last.ends_at.isoformat()}
            audit.record(raw(connection), actor, "subscription.resume", tenant_id, detail)
            stale = rating_bands.write_rules(connection, [tenant_id])
            return SubscriptionChanged(last, after, True, tuple(stale))
    except IntegrityError as error:
        raise SubscriptionRefused(f"not resumed: {str(error.orig).splitlines()[0]}") from None


def _resumed(before: Subscription, at: datetime) -> Subscription:
    in_trial = before.bills_from > at
    return replace(
        before,
        subscription_id=subscription_id(before.tenant_id, at),
        starts_at=at,
        ends_at=None,
        begins_plan=before.begins_plan and in_trial,
        trial_ends_at=before.trial_ends_at if in_trial else None,
        anchored_at=before.anchor if before.terms.anchor is Anchor.ANNIVERSARY else None,
    )


def _utc(at: datetime) -> datetime:
    if at.utcoffset() is None:
        raise SubscriptionRefused(f"{at} has no time zone: write it in UTC, 2026-10-01T00:00:00Z")
    return at.astimezone(UTC)


def _held(connection: Connection, tenant_id: str, at: datetime) -> Subscription:
    """The subscription at a moment, nothing after it, locked against whoever else changes the tenant's."""
    account_store.lock_tenant(connection, tenant_id)
    listed = account_store.subscriptions(connection, tenant_id=tenant_id)
    held = [s for s in listed if s.starts_at <= at and (s.ends_at is None or at < s.ends_at)]
    if not held:
        raise SubscriptionRefused(
            f"tenant {tenant_id} has no subscription at {at:%Y-%m-%d %H:%M}: `tollbook subscription list` shows them"
        )
    later = [s for s in listed if s.starts_at > at]
    if later:
        raise SubscriptionRefused(
            f"tenant {tenant_id} is on plan {later[0].plan} from {later[0].starts_at:%Y-%m-%d %H:%M}:"
            " change or cancel after that"
        )
    return held[0]


def _before(connection: Connection, held: Subscription) -> Subscription:
    listed = account_store.subscriptions(connection, tenant_id=held.tenant_id)
    return next((s for s in listed if s.ends_at == held.starts_at), held)


def _end(connection: Connection, held: Subscription, at: datetime, actor: str) -> Subscription:
    """The subscription with its end in place of what was known of it."""
    if held.starts_at == at:
        raise SubscriptionRefused(
            f"tenant {held.tenant_id}'s subscription to plan {held.plan} begins then: nothing of it would be left"
        )
    _check_frozen(connection, held, at)
    if billed_until_store.billed_in_advance(connection, [held.tenant_id], at):
        raise SubscriptionRefused(
            f"fees in advance of tenant {held.tenant_id} that begin {at:%Y-%m-%d %H:%M} are invoiced:"
            " change it later, so that what is unused is credited"
        )
    ended = replace(held, ends_at=at)
    account_store.supersede(connection, held)
    account_store.add_subscription(connection, ended, actor)
    return ended


def _check_frozen(connection: Connection, of: Subscription, at: datetime) -> None:
    billed = billed_until_store.frozen_until(connection, [of.billing_account])
    if billed is not None and at < billed:
        raise SubscriptionRefused(
            f"invoices of billing account {of.billing_account} are frozen up to {billed:%Y-%m-%d}:"
            " change it there or later"
        )
