"""What credits can cover of a billing account's period: its usage once more, by time (docs/spec/money.md 6).

Sums by the hour say enough while every grant covers the same and holds for whole hours; else each completion is a time
of its own, as it is where a plan rates event by event, by context length or by the price at the start. The rating that
comes of it must be the one that is posted: a draft is never over anything else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection

from billing.bills.credits import Grant, by_model
from billing.database import raw
from billing.errors import CreditRefused
from billing.money import ZERO
from billing.periods import BillingPeriod
from billing.plans.price_plans import DEFAULT_TAX_GROUP, BillAttempts, PricePlan
from billing.plans.subscriptions import Piece, Subscription, pieces
from billing.rating import LineKind, RatedLine, difference, distribute, is_billable
from billing.rating.made_lines import period_line
from billing.rating.period import Coverable, rate_period
from billing.rating.usage import PieceUsage, Usage, usage_of_sums
from billing.usage import unbillable_store
from billing.usage.attempts import left_out, less
from billing.usage.event_usage import as_usage_events, needs_events, usage_of_events
from billing.usage.rating_bands import needs_bands
from streams.rules.windows import AttemptUsage
from streams.usage.request_events import request_events
from streams.usage.timed_usage import timed_quantities
from streams.usage.usage_store import retried_usage


class CoverableUsage:
    """Reads what credits can cover in a period, account by account."""

    def __init__(
        self,
        connection: Connection,
        period: BillingPeriod,
        subscribed: Mapping[str, Sequence[Subscription]],
        plans: Mapping[str, PricePlan],
    ) -> None:
        self._connection = raw(connection)
        self._unbillable = unbillable_store.of_period(connection, period)
        self._period = period
        self._subscribed = subscribed
        self._plans = plans
        self._versions = {name: plan.versions for name, plan in plans.items()}
        self._retried: dict[str, list[AttemptUsage]] | None = None

    def of(
        self, account: str, posted: Mapping[str, Sequence[RatedLine]], grants: Collection[Grant]
    ) -> tuple[list[Coverable], RatedLine | None]:
        """What grants can cover of an account's posted lines (by tenant), and the line that those of credit are like:
        of its first tenant's period.

        Raises CreditRefused where the usage is not what was rated, or its payer changes.
        """
        found: list[Coverable] = []
        first: list[Piece] = []
        for tenant_id, lines in sorted(posted.items()):
            cut = pieces(self._subscribed.get(tenant_id, ()), self._versions, self._period)
            if {piece.subscription.billing_account for piece in cut} != {account}:
                raise CreditRefused(
                    f"tenant {tenant_id} changes its payer within {self._period.name}: credits are drawn by whole"
                    " periods, start the new payer with a period"
                )
            used = self._used(cut, exact=needs_each_time(grants, cut, self._period))
            terms = cut[-1].subscription.terms
            rated = rate_period(self._period, used, terms, by_model=by_model(grants))
            if difference(rated.lines, lines):
                raise CreditRefused(f"the usage of tenant {tenant_id} is not what was rated: rate it again")
            found += rated.coverable
            first = first or cut
        like = period_line(first, "", LineKind.CREDIT, ZERO, DEFAULT_TAX_GROUP) if first else None
        return found, like

    def _used(self, cut: Sequence[Piece], *, exact: bool) -> list[PieceUsage]:
        tenant_id = cut[0].subscription.tenant_id
        statuses = {status for piece in cut for status in piece.subscription.bill_statuses}
        too_old = self._unbillable.get(tenant_id, ())
        late = [each.usage for each in too_old]
        attempts = [usage for usage in self._attempts(tenant_id) if usage not in late]
        not_delivered = left_out(attempts, statuses)
        plans = [self._plans[name] for name in {piece.version.plan for piece in cut}]
        if any(map(needs_events, plans)) or any(needs_bands(piece.subscription, self._versions) for piece in cut):
            metrics = {metric for plan in plans for metric in plan.declared_metrics}
            return self._by_event(cut, metrics, not_delivered, {each.key for each in too_old})
        return [
            distribute(piece, self._usage(piece, [*late, *(not_delivered if _delivered(piece) else ())], exact))[0]
            for piece in cut
        ]

    def _by_event(
        self,
        cut: Sequence[Piece],
        metrics: Collection[str],
        without: Sequence[AttemptUsage],
        too_old: Collection[tuple[str, int, str, int]],
    ) -> list[PieceUsage]:
        """Where requests are told apart each completion is a time of its own."""
        stored = request_events(self._connection, cut[0].subscription.tenant_id, cut[0].start, cut[-1].end)
        stored = (e for e in stored if (e.request_id, e.attempt, e.kind, e.correction_no) not in too_old)
        not_delivered = {(usage.request_id, usage.attempt) for usage in without}
        used = usage_of_events(as_usage_events(stored, metrics), cut, not_delivered, self._versions, self._period)
        used.sort(key=lambda each: (each[0].segment_no, each[0].version.valid_from))
        return [distribute(piece, usages)[0] for piece, usages in used]

    def _usage(self, piece: Piece, without: Sequence[AttemptUsage], exact: bool) -> Iterable[Usage]:
        tenant_id, statuses = piece.subscription.tenant_id, piece.subscription.bill_statuses
        by_time = defaultdict(list)
        for at, quantity in timed_quantities(self._connection, tenant_id, piece.start, piece.end, exact=exact):
            by_time[at].append(quantity)
        for usage in without:
            if piece.start <= usage.completed_at < piece.end:
                at = usage.completed_at if exact else usage.completed_at.replace(minute=0, second=0, microsecond=0)
                by_time[at] = less(by_time[at], [usage])
        for at, quantities in by_time.items():
            yield from (usage_of_sums(each, at) for each in quantities if is_billable(each, statuses))

    def _attempts(self, tenant_id: str) -> list[AttemptUsage]:
        if self._retried is None:
            self._retried = defaultdict(list)
            for usage in retried_usage(self._connection, self._period.start, self._period.end):
                self._retried[usage.quantity.tenant_id].append(usage)
        return self._retried.get(tenant_id, [])


def _delivered(piece: Piece) -> bool:
    """Whether of a request's attempts one alone bills."""
    return piece.subscription.terms.bill_attempts is BillAttempts.DELIVERED


def needs_each_time(grants: Collection[Grant], cut: Sequence[Piece], period: BillingPeriod) -> bool:
    """Whether sums by the hour would not do: a bound within an hour, or grants that do not all cover the same."""
    bounds = [bound for piece in cut for bound in (piece.start, piece.end)]
    bounds += [at for g in grants for at in (g.usable_from, g.expires) if at is not None and period.contains(at)]
    groups = {charge.tax_group for piece in cut for charge in piece.version.charges}
    return any(map(_within_an_hour, bounds)) or len({g.applies_to for g in grants}) > 1 or len(groups) > 1


def _within_an_hour(at: datetime) -> bool:
    return (at.minute, at.second, at.microsecond) != (0, 0, 0)
