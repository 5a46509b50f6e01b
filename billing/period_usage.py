"""A period's usage as it is rated: sums of what completed in each piece, less the attempts that do not bill.

Tenants whose period is one piece are read together from the hourly windows; the pieces of all others by a second query,
in which the hours that a bound cuts come from raw events (docs/spec/money.md 2). Read under the period's lock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg

from billing.attempts import left_out, less
from billing.errors import UsageUnavailable
from billing.periods import BillingPeriod
from billing.price_plans import BillAttempts
from billing.subscriptions import Piece, Subscription
from streams.usage_ranges import UsageRange, archived, range_quantities
from streams.usage_store import rating_quantities, retried_usage
from streams.windows import AttemptUsage, UsageQuantity

PieceSums = list[tuple[Piece, list[UsageQuantity]]]


@dataclass(frozen=True, slots=True)
class UnsubscribedUsage:
    """Requests of a tenant at times when it had no subscription: nobody pays for them."""

    tenant_id: str
    requests: int


class PeriodUsage:
    """The usage of a period by tenant and piece. `cuts` has the pieces of every subscribed tenant."""

    def __init__(
        self,
        connection: psycopg.Connection,
        period: BillingPeriod,
        cuts: Mapping[str, Sequence[Piece]],
        subscribed: Mapping[str, Sequence[Subscription]],
    ) -> None:
        self._cuts = cuts
        self._requests: dict[str, int] = defaultdict(int)
        whole: dict[str, list[UsageQuantity]] = defaultdict(list)
        for quantity in rating_quantities(connection, period.start, period.end):
            whole[quantity.tenant_id].append(quantity)
            self._requests[quantity.tenant_id] += quantity.requests
        self._retried: dict[str, list[AttemptUsage]] = defaultdict(list)
        for usage in retried_usage(connection, period.start, period.end):
            self._retried[usage.quantity.tenant_id].append(usage)
        self._sums: dict[tuple[str, int], list[UsageQuantity]] = defaultdict(list)
        asked: list[tuple[UsageRange, int | None]] = []
        for tenant_id, cut in cuts.items():
            if [(piece.start, piece.end) for piece in cut] == [(period.start, period.end)]:
                self._sums[tenant_id, 0] = whole.get(tenant_id, [])
                self._requests[tenant_id] = 0
            elif tenant_id in whole:
                asked += [(UsageRange(tenant_id, piece.start, piece.end), no) for no, piece in enumerate(cut)]
                asked += [(each, None) for each in _trials(tenant_id, subscribed.get(tenant_id, ()), period)]
        self._archived = archived(connection, [each for each, _ in asked])
        asked = [(each, no) for each, no in asked if each.tenant_id not in self._archived]
        for number, quantity in range_quantities(connection, [each for each, _ in asked]):
            tenant_id, piece_no = quantity.tenant_id, asked[number][1]
            self._requests[tenant_id] -= quantity.requests
            if piece_no is not None:
                self._sums[tenant_id, piece_no].append(quantity)

    def of(self, tenant_id: str) -> PieceSums:
        """A tenant's pieces with the usage completed in each, less the attempts that were not delivered.

        Which one was is decided over the whole request, by every status that bills in any of the pieces. Raises
        UsageUnavailable.
        """
        if tenant_id in self._archived:
            raise UsageUnavailable(
                f"tenant {tenant_id}: raw events of an hour in which its plan or prices change are only in the"
                " archive: `tollbook events recall` brings them back"
            )
        cut = self._cuts[tenant_id]
        found = [(piece, self._sums.get((tenant_id, number), [])) for number, piece in enumerate(cut)]
        retried = self._retried.get(tenant_id, [])
        if not retried:
            return found
        without = left_out(retried, {status for piece in cut for status in piece.subscription.bill_statuses})
        return [
            (piece, less(sums, [usage for usage in without if piece.start <= usage.completed_at < piece.end]))
            if piece.subscription.terms.bill_attempts is BillAttempts.DELIVERED
            else (piece, sums)
            for piece, sums in found
        ]

    def unsubscribed(self) -> list[UnsubscribedUsage]:
        """Tenants with usage in the period when no subscription held."""
        return [
            UnsubscribedUsage(tenant_id, requests)
            for tenant_id, requests in sorted(self._requests.items())
            if tenant_id not in self._archived and (requests or tenant_id not in self._cuts)
        ]


def _trials(tenant_id: str, subscribed: Sequence[Subscription], period: BillingPeriod) -> list[UsageRange]:
    """The times of a period in which a subscription held and nothing bills."""
    trials = [each.trial for each in subscribed if each.trial is not None]
    within = [(max(start, period.start), min(end, period.end)) for start, end in trials]
    return [UsageRange(tenant_id, start, end) for start, end in within if start < end]
