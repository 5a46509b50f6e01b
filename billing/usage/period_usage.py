"""A period's usage as it is rated: sums of what completed in each piece, less the attempts that do not bill.

Tenants whose period is one piece of one month are read together from the hourly windows; the pieces of all others by a
second query, in which the hours that a bound cuts come from raw events (docs/spec/money.md 2), month by month. Read
under the period's lock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg

from billing.errors import UsageUnavailable
from billing.periods import BillingPeriod, rfc3339
from billing.plans.price_plans import BillAttempts, PricePlan
from billing.plans.schedules import MONTHLY
from billing.plans.subscriptions import Piece, Subscription
from billing.rating import Rating, Usage, rate, rate_used
from billing.usage.attempts import left_out, less
from billing.usage.event_usage import as_usage_events, needs_events, usage_of_events
from billing.usage.rating_bands import needs_bands
from billing.usage.unbillable_store import UnbillableEvent
from streams.errors import EventsArchived
from streams.rules.stale_bands import stale_bands
from streams.rules.windows import AttemptUsage, UsageQuantity
from streams.usage.request_events import request_events
from streams.usage.usage_ranges import UsageRange, archived, range_quantities
from streams.usage.usage_store import rating_quantities, retried_usage

PieceSums = list[tuple[Piece, list[UsageQuantity]]]


@dataclass(frozen=True, slots=True)
class UnsubscribedUsage:
    """Requests of a tenant at times when it had no subscription: nobody pays for them."""

    tenant_id: str
    requests: int


class PeriodUsage:
    """The usage of a period by tenant and piece. `cuts` has the pieces of every tenant that is billed by it.

    `unbillable` are events that came later than the contract bills: they count nowhere. `elsewhere` are times of
    tenants that other billing periods bill: of one that is a calendar month, whatever is in neither was used without a
    subscription.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        period: BillingPeriod,
        cuts: Mapping[str, Sequence[Piece]],
        subscribed: Mapping[str, Sequence[Subscription]],
        plans: Mapping[str, PricePlan],
        unbillable: Mapping[str, Sequence[UnbillableEvent]],
        elsewhere: Sequence[UsageRange] = (),
    ) -> None:
        self._connection = connection
        self._period = period
        self._cuts = cuts
        self._unbillable = unbillable
        self._plans = plans
        self._versions = versions = {name: plan.versions for name, plan in plans.items()}
        self._stale = {
            stale.tenant_id: stale
            for stale in stale_bands(connection, period.start, period.end)
            for piece in cuts.get(stale.tenant_id, ())
            if piece.start < stale.end and stale.start < piece.end and needs_bands(piece.subscription, versions)
        }
        self._requests: dict[str, int] = defaultdict(int)
        whole: dict[str, list[UsageQuantity]] = defaultdict(list)
        is_month = period.months == 1
        if is_month:
            for quantity in rating_quantities(connection, period.start, period.end):
                whole[quantity.tenant_id].append(quantity)
                self._requests[quantity.tenant_id] += quantity.requests
        self._retried: dict[str, list[AttemptUsage]] = defaultdict(list)
        for usage in retried_usage(connection, period.start, period.end):
            self._retried[usage.quantity.tenant_id].append(usage)
        self._sums: dict[tuple[str, int], list[tuple[datetime, UsageQuantity]]] = defaultdict(list)
        asked: list[tuple[UsageRange, int | None]] = [(each, None) for each in elsewhere if each.tenant_id in whole]
        for tenant_id, cut in cuts.items():
            if is_month and [(piece.start, piece.end) for piece in cut] == [(period.start, period.end)]:
                self._sums[tenant_id, 0] = [(period.start, quantity) for quantity in whole.get(tenant_id, [])]
                self._requests[tenant_id] = 0
            elif tenant_id in whole or not is_month:
                asked += [
                    (UsageRange(tenant_id, max(piece.start, month.start), min(piece.end, month.end)), number)
                    for number, piece in enumerate(cut)
                    for month in MONTHLY.periods(piece.start, piece.end)
                ]
                asked += [(each, None) for each in _trials(tenant_id, subscribed.get(tenant_id, ()), period)]
        self._subscribed = cuts.keys() | {each.tenant_id for each in elsewhere}
        self._archived = archived(connection, [each for each, _ in asked])
        asked = [(each, no) for each, no in asked if each.tenant_id not in self._archived]
        for number, quantity in range_quantities(connection, [each for each, _ in asked]):
            tenant_id, piece_no = quantity.tenant_id, asked[number][1]
            self._requests[tenant_id] -= quantity.requests
            if piece_no is not None:
                self._sums[tenant_id, piece_no].append((asked[number][0].start, quantity))

    def rated(self, tenant_id: str, *, is_over: bool, until: datetime | None = None) -> Rating:
        """A tenant's period, rated from sums, or event by event where its plan asks for it. Raises Unratable.

        `until` (the end of a month): by what was used before it, of a period that goes on.
        """
        cut = self._cuts[tenant_id]
        plans = [self._plans[name] for name in {piece.version.plan for piece in cut}]
        until = until or self._period.end
        if any(map(needs_events, plans)):
            used = self._events(tenant_id, {metric for plan in plans for metric in plan.declared_metrics}, until)
            return rate_used(used, self._period, cut[-1].subscription.terms, is_over=is_over, until=until)
        sums = self.sums_of(tenant_id, until)
        return rate(sums, self._period, versions=self._versions, is_over=is_over, until=until)

    def _events(self, tenant_id: str, metrics: Collection[str], until: datetime) -> list[tuple[Piece, list[Usage]]]:
        without = {(usage.request_id, usage.attempt) for usage in self._left_out(tenant_id)}
        cut, period = self._cuts[tenant_id], self._period
        try:
            stored = request_events(self._connection, tenant_id, cut[0].start, min(cut[-1].end, until))
            too_old = {each.key for each in self._unbillable.get(tenant_id, ())}
            stored = (e for e in stored if (e.request_id, e.attempt, e.kind, e.correction_no) not in too_old)
            return usage_of_events(as_usage_events(stored, metrics), cut, without, self._versions, period)
        except EventsArchived as error:
            raise UsageUnavailable(f"tenant {tenant_id}: {error}") from None

    def _left_out(self, tenant_id: str) -> list[AttemptUsage]:
        """Attempts that were not delivered: decided over the whole request, by every status that bills in any piece."""
        bill = {status for piece in self._cuts[tenant_id] for status in piece.subscription.bill_statuses}
        too_old = [each.usage for each in self._unbillable.get(tenant_id, ())]
        return left_out([usage for usage in self._retried.get(tenant_id, []) if usage not in too_old], bill)

    def sums_of(self, tenant_id: str, until: datetime) -> PieceSums:
        """A tenant's pieces with the usage completed in each before a moment, less the attempts not delivered.

        Raises UsageUnavailable.
        """
        if tenant_id in self._archived:
            raise UsageUnavailable(
                f"tenant {tenant_id}: raw events of an hour in which its plan or prices change are only in the"
                " archive: `tollbook events recall` brings them back"
            )
        if stale := self._stale.get(tenant_id):
            raise UsageUnavailable(
                f"tenant {tenant_id}: its prices changed after its usage was marked for them: `tollbook streams rebuild"
                f" --from {rfc3339(stale.start)} --to {rfc3339(stale.end)} --apply`, then rate again"
            )
        cut = self._cuts[tenant_id]
        too_old = [each.usage for each in self._unbillable.get(tenant_id, ())]
        not_delivered = self._left_out(tenant_id)
        result: PieceSums = []
        for number, piece in enumerate(cut):
            sums = [quantity for at, quantity in self._sums.get((tenant_id, number), []) if at < until]
            delivered = piece.subscription.terms.bill_attempts is BillAttempts.DELIVERED
            without = [*too_old, *(not_delivered if delivered else ())]
            within = [usage for usage in without if piece.start <= usage.completed_at < min(piece.end, until)]
            result.append((piece, less(sums, within) if within else sums))
        return result

    def unsubscribed(self) -> list[UnsubscribedUsage]:
        """Tenants with usage when no subscription held, of a period that is a calendar month."""
        if self._period.months != 1:
            return []
        return [
            UnsubscribedUsage(tenant_id, requests)
            for tenant_id, requests in sorted(self._requests.items())
            if tenant_id not in self._archived and (requests or tenant_id not in self._subscribed)
        ]


def _trials(tenant_id: str, subscribed: Sequence[Subscription], period: BillingPeriod) -> list[UsageRange]:
    """The times of a period in which a subscription held and nothing bills."""
    trials = [each.trial for each in subscribed if each.trial is not None]
    within = [(max(start, period.start), min(end, period.end)) for start, end in trials]
    return [UsageRange(tenant_id, start, end) for start, end in within if start < end]
