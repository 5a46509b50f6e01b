"""Count the events that drafts bill, and keep the digest over them with each (docs/usage-digest.md)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import tee
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from billing.database import raw
from billing.invoicing.invoices import Invoice
from billing.periods import BillingPeriod
from billing.plans import account_store, plan_store
from billing.plans.subscriptions import Piece, Subscription, pieces
from billing.usage import usage_digest_store
from billing.usage.attempts import left_out
from billing.usage.billed_events import Attempt, Billed, billed_events, changed
from billing.usage.usage_digest import TenantCount
from billing.usage.usage_digest_store import UsageCounted
from streams.errors import EventsArchived
from streams.rules.windows import AttemptUsage
from streams.usage.event_reader import as_of, events_of, positions
from streams.usage.usage_store import retried_usage

if TYPE_CHECKING:
    from streams.retention.archive_files import Archive


def digest_usage(connection: Connection, period: BillingPeriod, invoices: Collection[Invoice]) -> None:
    """Keep with each of a period's usage invoices what its events come to. Raises EventsArchived."""
    payers = account_store.subscriptions_in(connection, period)
    below = positions(raw(connection))
    passed_over = passed_over_in(connection, period, payers)
    cuts = cut_by_account(connection, period, payers)
    for invoice in invoices:
        cut = cuts.get(invoice.identity.billing_account, {})
        own = {tenant_id: passed_over[tenant_id] for tenant_id in cut if tenant_id in passed_over}
        counts = {tenant_id: TenantCount(tenant_id) for tenant_id in sorted(cut, key=str.encode)}
        for billed in read_billed(connection, _not_opened, period, cut, below, own):
            counts[billed.event.tenant_id].add(billed.event)
        counted = UsageCounted(tuple(count.usage for count in counts.values()), below, own)
        usage_digest_store.save(connection, invoice.invoice_id, counted)


def read_billed(
    connection: Connection,
    open_archive: Callable[[], Archive],
    period: BillingPeriod,
    cut: Mapping[str, Sequence[Piece]],
    below: Mapping[str, int],
    passed_over: Mapping[str, Collection[Attempt]],
) -> Iterator[Billed]:
    """The events that an account's invoice bills, as they pass: by tenant (in the order of bytes), then as in its tree.

    `cut` has the pieces that the account pays for, by tenant. From the database or the archive.
    """
    opened = raw(connection)
    for tenant_id in sorted(cut, key=str.encode):
        events = as_of(opened, events_of(opened, open_archive, tenant_id, period.start, period.end), below)
        yield from billed_events(events, tenant_id, cut[tenant_id], passed_over.get(tenant_id, ()))


def read_changed(
    connection: Connection,
    open_archive: Callable[[], Archive],
    period: BillingPeriod,
    cut: Mapping[str, Sequence[Piece]],
    since: UsageCounted,
    passed_over: Mapping[str, Collection[Attempt]],
) -> Iterator[tuple[Billed, int]]:
    """What came to bill (1) of an account's events of a period since its invoice was drawn up, or bills no more (−1).

    By tenant. `since`: what that counted; `passed_over` as it is now.
    """
    opened = raw(connection)
    now = positions(opened)
    for tenant_id in sorted(cut, key=str.encode):
        events, again = tee(events_of(opened, open_archive, tenant_id, period.start, period.end))
        yield from changed(
            billed_events(as_of(opened, events, now), tenant_id, cut[tenant_id], passed_over.get(tenant_id, ())),
            billed_events(
                as_of(opened, again, since.below), tenant_id, cut[tenant_id], since.passed_over.get(tenant_id, ())
            ),
        )


def cut_by_account(
    connection: Connection, period: BillingPeriod, payers: Mapping[str, Sequence[Subscription]]
) -> dict[str, dict[str, list[Piece]]]:
    """By billing account and tenant the pieces of the period that the account pays for."""
    names = {s.plan for listed in payers.values() for s in listed}
    versions = {name: plan.versions for name, plan in plan_store.plans(connection, names).items()}
    found: dict[str, dict[str, list[Piece]]] = {}
    for tenant_id, subscribed in payers.items():
        for piece in pieces(subscribed, versions, period):
            found.setdefault(piece.subscription.billing_account, {}).setdefault(tenant_id, []).append(piece)
    return found


def passed_over_in(
    connection: Connection, period: BillingPeriod, payers: Mapping[str, Sequence[Subscription]],
    below: Mapping[str, int] | None = None,
) -> dict[str, set[Attempt]]:  # fmt: skip
    """By tenant the attempts completed in the period that do not bill, because another of their request does.

    `below`: as of when each source of usage was applied up to there. Raises EventsArchived.
    """
    statuses = {
        tenant_id: {status for s in subscribed for status in s.bill_statuses}
        for tenant_id, subscribed in payers.items()
    }
    by_tenant: dict[str, list[AttemptUsage]] = {}
    for usage in retried_usage(raw(connection), period.start, period.end, below):
        by_tenant.setdefault(usage.quantity.tenant_id, []).append(usage)
    found: dict[str, set[Attempt]] = {}
    for tenant_id, attempts in by_tenant.items():
        without = {
            (usage.request_id, usage.attempt)
            for usage in left_out(attempts, statuses.get(tenant_id, set()))
            if period.start <= usage.completed_at < period.end
        }
        if without:
            found[tenant_id] = without
    return found


def _not_opened() -> Archive:
    raise EventsArchived("a period is billed while its raw events are in the database")
