"""Subscriptions: which tenant is on which plan from when to when, and how that cuts a period into pieces.

A piece is one (subscription segment, price version) pair: the unit in which usage is summed and rated
(docs/spec/money.md 2 and 13.2).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from billing.errors import NoPriceVersion, SubscriptionRefused
from billing.periods import BillingPeriod, rfc3339
from billing.plans.charge_models import Seat
from billing.plans.price_plans import DEFAULT_TERMS, PlanVersion, Terms, version_at

_SUBSCRIPTION: Final = uuid.UUID("5a6f2f0e-0a53-5b0b-9d0c-7b3d9d7f6c11")


@dataclass(frozen=True, slots=True)
class Subscription:
    """A tenant on a plan during [starts_at, ends_at), paid by a billing account.

    `seats` is for fees by the seat. `begins_plan` is False where it goes on with the plan of the one before it, with
    other seats or terms: then no one-off fee is due. Nothing bills before `trial_ends_at`. `anchored_at`: where its
    anniversaries are counted from, if that is not its start. `predecessor`: the one whose contract it goes on with.
    """

    subscription_id: uuid.UUID
    tenant_id: str
    billing_account: str
    plan: str
    starts_at: datetime
    ends_at: datetime | None = None
    terms: Terms = DEFAULT_TERMS
    seats: int | None = None
    begins_plan: bool = True
    trial_ends_at: datetime | None = None
    anchored_at: datetime | None = None
    predecessor: Subscription | None = field(default=None, compare=False, repr=False)

    @property
    def anchor(self) -> datetime:
        """Where its anniversaries are counted from."""
        return self.anchored_at or self.starts_at

    @property
    def contract(self) -> tuple[Subscription, ...]:
        """The subscriptions of its contract up to this one, in order of time."""
        found = [self]
        while (before := found[-1].predecessor) is not None:
            found.append(before)
        return tuple(reversed(found))

    @property
    def bill_statuses(self) -> tuple[str, ...]:
        """Statuses that bill by this contract."""
        return self.terms.bill_statuses

    @property
    def bills_from(self) -> datetime:
        """When it begins to cost something."""
        return max(self.starts_at, self.trial_ends_at or self.starts_at)

    @property
    def trial(self) -> tuple[datetime, datetime] | None:
        """When it held and cost nothing: from, to; None if never."""
        end = min(self.bills_from, self.ends_at or self.bills_from)
        return (self.starts_at, end) if self.starts_at < end else None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a period in which one subscription and one price version hold. `segment_no` counts from 1.

    Without length (start = end) where only usage priced at its start falls to a version that was in force earlier.
    """

    subscription: Subscription
    segment_no: int
    version: PlanVersion
    start: datetime
    end: datetime

    @property
    def begins_plan(self) -> bool:
        """Whether the subscription to a plan begins with it, so that one-off fees are due."""
        return self.subscription.begins_plan and self.start == self.subscription.bills_from < self.end


def subscription_id(tenant_id: str, starts_at: datetime) -> uuid.UUID:
    """The id of the subscription that a tenant starts at a moment."""
    return uuid.uuid5(_SUBSCRIPTION, f"{tenant_id}\n{starts_at.isoformat()}")


def trial_end(starts_at: datetime, terms: Terms) -> datetime | None:
    """When the trial of a subscription that begins then is over; None if it has none."""
    return starts_at + timedelta(days=terms.trial_days) if terms.trial_days else None


def check_start(starts_at: datetime, versions: Sequence[PlanVersion], seats: int | None = None) -> None:
    """Raises SubscriptionRefused unless a subscription to the plan of these versions, with these seats, can start."""
    if starts_at.utcoffset() is None:
        raise SubscriptionRefused(f"{starts_at} has no time zone: write it in UTC, 2026-10-01T00:00:00Z")
    try:
        version_at(versions, starts_at)
    except NoPriceVersion as error:
        raise SubscriptionRefused(str(error)) from None
    by_seat = [c.key for v in versions for c in v.charges if isinstance(c.pricing, Seat) and c.pricing.seats is None]
    if by_seat and seats is None:
        raise SubscriptionRefused(f"charge {by_seat[0]} of the plan is by the seat: say how many (--seats)")


def pieces(
    subscriptions: Iterable[Subscription], versions: Mapping[str, Sequence[PlanVersion]], period: BillingPeriod
) -> list[Piece]:
    """One tenant's period cut at every change of subscription and price version, in order of time.

    Raises NoPriceVersion where a plan has no version yet.
    """
    active = [s for s in subscriptions if s.bills_from < period.end and (s.ends_at is None or s.ends_at > period.start)]
    active = [s for s in active if s.ends_at is None or s.bills_from < s.ends_at]
    active.sort(key=lambda subscription: subscription.starts_at)
    found: list[Piece] = []
    for number, subscription in enumerate(active, start=1):
        start = max(subscription.bills_from, period.start)
        end = min(subscription.ends_at or period.end, period.end)
        dated = versions[subscription.plan]
        bounds = sorted({start, end, *(v.valid_from for v in dated if start < v.valid_from < end)})
        for since, until in pairwise(bounds):
            found.append(Piece(subscription, number, version_at(dated, since), since, until))
    return found


def with_contracts(subscriptions: Iterable[Subscription]) -> list[Subscription]:
    """The subscriptions of tenants, each with the one before it of its contract; by tenant and start.

    A contract goes on over changes of plan and seats, which leave no gap, and over pauses: what follows one does not
    begin its plan, or goes on with the trial.
    """
    found: list[Subscription] = []
    for each in sorted(subscriptions, key=lambda each: (each.tenant_id, each.starts_at)):
        last = found[-1] if found and found[-1].tenant_id == each.tenant_id else None
        trial_goes_on = last is not None and each.starts_at < each.bills_from == last.bills_from
        if last is not None and (not each.begins_plan or each.starts_at == last.ends_at or trial_goes_on):
            each = replace(each, predecessor=last)
        found.append(each)
    return found


def payers_in(subscribed: Mapping[str, Sequence[Subscription]], period: BillingPeriod) -> set[str]:
    """The billing accounts that a period costs something, by the subscriptions of their tenants."""
    return {
        each.billing_account
        for listed in subscribed.values()
        for each in listed
        if max(each.bills_from, period.start) < min(each.ends_at or period.end, period.end)
    }


def priced_at_start(held: Piece, started_at: datetime, versions: Sequence[PlanVersion], period: BillingPeriod) -> Piece:
    """The piece by whose version usage is priced that completed in `held` and started at a moment.

    A version that was in force before this segment only has no time in it: its piece is without length. What started
    before the plan's first version is priced by that one.
    """
    first = min(version.valid_from for version in versions)
    version = version_at(versions, max(started_at, first))
    if version == held.version:
        return held
    begins = max(held.subscription.bills_from, period.start)
    return replace(held, version=version, start=begins, end=begins)


def version_name(valid_from: datetime) -> str:
    """What a request that started since then is marked with, where prices go by the start: the moment itself.

    It names a version of whatever plan the tenant is on when the request completes.
    """
    return rfc3339(valid_from)


def in_force_since(version_name: str) -> datetime:
    """The moment that a mark stands for."""
    return datetime.fromisoformat(version_name)
