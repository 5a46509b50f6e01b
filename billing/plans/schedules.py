"""Which billing periods a subscription has: months, quarters or years, by the calendar or from its anchor on.

Subscriptions of a tenant with one schedule share its periods. Where a change leads to another schedule, the periods of
both go on side by side, each with the time in which its subscriptions held.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Final

from billing.periods import INSTANT, BillingPeriod, period_of
from billing.plans.price_plans import Anchor, Cycle
from billing.plans.subscriptions import Subscription

_MONTHS: Final = {Cycle.MONTH: 1, Cycle.QUARTER: 3, Cycle.YEAR: 12}
_CALENDAR: Final = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, order=True)
class Schedule:
    """Billing periods of so many months, one after another, of which one begins at the anchor."""

    months: int
    anchor: datetime = _CALENDAR

    def period_of(self, at: datetime) -> BillingPeriod:
        """The period that a moment lies in."""
        return period_of(at, self.anchor, self.months)

    def periods(self, since: datetime, until: datetime) -> Iterator[BillingPeriod]:
        """Those that hold some moment of [since, until), in order."""
        while since < until:
            found = self.period_of(since)
            yield found
            since = found.end


MONTHLY: Final = Schedule(1)


def schedule_of(subscription: Subscription) -> Schedule:
    """The schedule that a subscription's contract asks for. An anniversary begins with the anchor's day, UTC."""
    months = _MONTHS[subscription.terms.period]
    if subscription.terms.anchor is Anchor.CALENDAR:
        return Schedule(months)
    return Schedule(months, datetime.combine(subscription.anchor.date(), time(), UTC))


def has_period(subscription: Subscription, period: BillingPeriod) -> bool:
    """Whether a period is one that the subscription is billed by and holds in."""
    ends = subscription.ends_at
    holds = subscription.starts_at < period.end and (ends is None or ends > period.start)
    return holds and schedule_of(subscription).period_of(period.start) == period


def billed_until(subscription: Subscription) -> datetime | None:
    """The end of the billing period in which a subscription ends; None while it goes on."""
    ends = subscription.ends_at
    return None if ends is None else schedule_of(subscription).period_of(ends - INSTANT).end


def is_billed_in(subscription: Subscription, month: BillingPeriod) -> bool:
    """Whether a subscription began before a month's end, and a billing period of it has time in that."""
    until = billed_until(subscription)
    return subscription.starts_at < month.end and (until is None or until > month.start)


def periods_in(subscriptions: Iterable[Subscription], span: BillingPeriod) -> list[BillingPeriod]:
    """Every billing period of some subscriptions that has time in a span, the first that ends first.

    Also one that goes on after its subscription has ended.
    """
    found: set[BillingPeriod] = set()
    for each in subscriptions:
        since, until = max(each.starts_at, span.start), min(billed_until(each) or span.end, span.end)
        found.update(schedule_of(each).periods(since, until))
    return sorted(found, key=lambda period: (period.end, period.start))


def running_since(subscriptions: Iterable[Subscription], at: datetime) -> datetime:
    """The start of the earliest billing period that runs at a moment; the moment where none does."""
    held = (each for each in subscriptions if each.starts_at < at and (each.ends_at is None or each.ends_at >= at))
    return min((schedule_of(each).period_of(at).start for each in held), default=at)


def by_schedule(subscriptions: Iterable[Subscription]) -> dict[Schedule, list[Subscription]]:
    """A tenant's subscriptions by schedule, in their order."""
    found: dict[Schedule, list[Subscription]] = defaultdict(list)
    for subscription in subscriptions:
        found[schedule_of(subscription)].append(subscription)
    return dict(found)
