"""Look at usage that came after its invoice was frozen, before it is rated: what of it the contract does not bill any
more, and whether all that was billed is still there (docs/spec/money.md 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection

from billing.commands.digest_usage import read_billed
from billing.database import raw
from billing.errors import UsageDisappeared
from billing.invoicing import billed_until_store
from billing.periods import BillingPeriod
from billing.plans.subscriptions import Piece, Subscription
from billing.rating.usage import bills
from billing.rating.usage_events import BILLED_PURPOSE
from billing.usage import unbillable_store, usage_digest_store
from billing.usage.unbillable_store import UnbillableEvent
from billing.usage.usage_digest import TenantCount
from billing.usage.usage_digest_store import UsageCounted
from streams.errors import EventsArchived
from streams.retention.archive_files import Archive
from streams.rules.windows import AttemptUsage, UsageQuantity
from streams.usage.event_reader import StoredEvent, events_of, positions
from streams.usage.usage_store import rating_quantities, raw_quantities


@dataclass(frozen=True, slots=True)
class FrozenUsage:
    """The invoices of a period that are frozen, and what was counted for them, by billing account."""

    period: BillingPeriod
    counted: Mapping[str, usage_digest_store.UsageCounted]


def frozen_usage(connection: Connection, period: BillingPeriod) -> FrozenUsage:
    """What was counted when a period's invoices were drawn up, of those that are frozen; nothing, of who was closed
    without one."""
    ids = billed_until_store.frozen_usage_invoices(connection, period)
    found = usage_digest_store.of_invoices(connection, list(ids.values()))
    nothing = {of: UsageCounted(()) for of, _ in billed_until_store.closed_without_invoice(connection, [period])}
    return FrozenUsage(period, nothing | {account: found[i] for account, i in ids.items() if i in found})


def register_unbillable(
    connection: Connection, frozen: FrozenUsage, subscribed: Mapping[str, Sequence[Subscription]]
) -> None:
    """Put what is older than its contract's horizon in the register, once, as of the first rating after it came.

    The age is counted back from the end of what was billed to the account last. What takes the place of a weaker event
    is no late usage. Raises EventsArchived.
    """
    period = frozen.period
    bound_to = {
        tenant_id: (listed[-1].billing_account, listed[-1].terms.late_usage_days)
        for tenant_id, listed in subscribed.items()
        if listed[-1].billing_account in frozen.counted
    }
    limited = {tenant_id: (account, days) for tenant_id, (account, days) in bound_to.items() if days is not None}
    if not limited:
        return
    now_at = positions(raw(connection))
    before = unbillable_store.judged_below(connection, period)
    if before == now_at:
        return
    found: list[UnbillableEvent] = []
    for tenant_id, (account, days) in sorted(limited.items()):
        billed_to = billed_until_store.usage_billed_until(connection, account) or period.end
        seen = {
            source: max(position, frozen.counted[account].below.get(source, 0))
            for source, position in {**frozen.counted[account].below, **before}.items()
        }
        oldest = min(period.end, billed_to - timedelta(days=days))
        statuses = {status for each in subscribed[tenant_id] for status in each.bill_statuses}
        found += [
            _unbillable(event, tenant_id, account, billed_to, days)
            for event in _late(connection, tenant_id, period.start, oldest, seen)
            if bills(event.status, event.fault, event.usage_source, statuses)
        ]
    unbillable_store.judged(connection, period, now_at, found)


def check_nothing_disappeared(
    connection: Connection, frozen: FrozenUsage, tenant_id: str, account: str, cut: Sequence[Piece]
) -> None:
    """Usage of a frozen period may become less by corrections, and by whatever else arrived; never by itself.

    Raises UsageDisappeared where events that were billed are not there any more, or the windows are not what the
    events come to, and EventsArchived.
    """
    opened, period = raw(connection), frozen.period
    counted = frozen.counted.get(account)
    if counted is not None:
        count = TenantCount(tenant_id)
        own = [piece for piece in cut if piece.subscription.billing_account == account]
        for billed in read_billed(
            connection, _not_opened, period, {tenant_id: own}, counted.below, counted.passed_over
        ):
            count.add(billed.event)
        then = next((usage for usage in counted.tenants if usage.tenant_id == tenant_id), TenantCount(tenant_id).usage)
        if count.usage != then:
            raise UsageDisappeared(
                f"tenant {tenant_id}: {then.events} events of {period.name} were billed, of these {count.usage.events}"
                " are there now: usage does not disappear without a correction; nothing is adjusted"
            )
    events = sorted(map(repr, raw_quantities(opened, period.start, period.end, tenant_id)))
    windows = sorted(map(repr, rating_quantities(opened, period.start, period.end, tenant_id)))
    if events != windows:
        raise UsageDisappeared(
            f"tenant {tenant_id}: its hourly windows of {period.name} are not what its events come to:"
            " `tollbook streams rebuild` shows where; nothing is adjusted"
        )


def _late(
    connection: Connection, tenant_id: str, start: datetime, end: datetime, seen: Mapping[str, int]
) -> Iterator[StoredEvent]:
    opened = raw(connection)
    for event in events_of(opened, _not_opened, tenant_id, start, end):
        if event.position < seen.get(event.source, 0) or not event.counts or event.purpose != BILLED_PURPOSE:
            continue
        took_a_place = opened.execute(
            "select 1 from usage.superseded_events where by_source = %s and by_position = %s",
            (event.source, event.position),
        ).fetchone()
        if took_a_place is None:
            yield event


def _unbillable(event: StoredEvent, tenant_id: str, account: str, billed_to: datetime, days: int) -> UnbillableEvent:
    quantity = UsageQuantity(
        tenant_id, event.model, event.adapter, event.region, event.tier, event.status, event.fault,
        event.usage_source, event.rating_band, int(event.kind == "usage"), event.input_tokens, event.cache_hit_tokens,
        event.output_tokens, event.gpu_us,
    )  # fmt: skip
    usage = AttemptUsage(event.request_id, event.attempt, event.completed_at, quantity)
    return UnbillableEvent(account, event.kind, event.correction_no, usage, billed_to, days)


def _not_opened() -> Archive:
    raise EventsArchived("late usage is judged while raw events are in the database")
