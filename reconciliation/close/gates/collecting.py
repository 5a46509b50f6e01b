"""The gate before FROZEN: grace, completeness, quarantine, the months before (docs/spec/money.md 11.1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg
from sqlalchemy import Connection

from billing.bills.documents import GRACE
from billing.database import raw
from billing.periods import BillingPeriod, rfc3339
from billing.plans import account_store
from billing.plans.schedules import is_billed_in
from reconciliation.close import close_store
from reconciliation.close.gates.gate import Gate, Waived, seen
from reconciliation.comparison import Difference
from streams.completeness import completeness_store
from streams.completeness.complete_to import Completeness

MISSING: Final = (Gate.R1, Gate.R9)
"""The gates that ask again for what an account waits for before it is frozen."""


@dataclass(frozen=True, slots=True)
class Account:
    """A billing account that takes part in a month's close, with the tenants that it pays for in the month (or in a
    billing period that has time in it), and those that it paid for `before`."""

    name: str
    legal_entity: str
    tenants: tuple[str, ...]
    before: tuple[str, ...] = ()


def participants(connection: Connection, month: BillingPeriod) -> dict[str, Account]:
    """Every account that pays, or once paid, for a tenant: late usage may be billed to it, too."""
    tenants: dict[str, set[str]] = defaultdict(set)
    before: dict[str, set[str]] = defaultdict(set)
    for each in account_store.subscriptions(connection):
        if each.starts_at < month.end:
            tenants[each.billing_account] |= {each.tenant_id} if is_billed_in(each, month) else set()
            before[each.billing_account] |= {each.tenant_id} if each.starts_at < month.start else set()
    accounts = account_store.accounts(connection, tenants)
    return {
        name: Account(name, accounts[name].legal_entity, tuple(sorted(used)), tuple(sorted(before[name])))
        for name, used in sorted(tenants.items())
    }


def held_back(
    connection: Connection, month: BillingPeriod, accounts: Iterable[Account], now: datetime, waived: Waived
) -> dict[str, list[Difference]]:
    """Why accounts cannot be frozen yet: account → what is missing, but for what is `waived` as R1 or R9.

    A month before that is not closed, and the grace, are waited for: nobody waives them.
    """
    if now < month.end + GRACE:
        until = rfc3339(month.end + GRACE)
        return {each.name: [Difference("grace", until, rfc3339(now))] for each in accounts}
    listed = list(accounts)
    found: dict[str, list[Difference]] = defaultdict(list)
    before = close_store.months_before(connection, month.name)
    waiting = quarantined(raw(connection), month)
    incomplete = _incomplete(raw(connection), month, listed)
    for account in listed:
        if account.name in before:
            found[account.name].append(Difference(f"month/{before[account.name]}", "closed", "being closed"))
        missing = [d for tenant in account.tenants for d in (*waiting.get(tenant, ()), *incomplete.get(tenant, ()))]
        found[account.name] += [each for each in missing if not any((gate, *seen(each)) in waived for gate in MISSING)]
    return {name: missing for name, missing in found.items() if missing}


def quarantined(connection: psycopg.Connection, month: BillingPeriod) -> dict[str | None, list[Difference]]:
    """Messages that wait in quarantine and may be about a month, by tenant (None where nobody can tell).

    What the log took in before the month began is about none of its usage, unless it was refused for a time that is to
    come: it waits in each month after it. However many there are: one that is not seen would be billed without.
    """
    rows = connection.execute(
        "select q.quarantine_id, q.tenant_id, q.reason, t.tenant_id is not null from usage.quarantine as q"
        " left join usage.tenants as t using (tenant_id)"
        " where (q.appended_at >= %s or q.reason = 'future') and not exists"
        " (select from usage.quarantine_resolutions as r where r.quarantine_id = q.quarantine_id)"
        " order by q.quarantine_id",
        (month.start,),
    )
    found: dict[str | None, list[Difference]] = defaultdict(list)
    for number, tenant_id, reason, known in rows:
        found[tenant_id if known else None].append(Difference(f"quarantine/{number}", None, reason))
    return found


def _incomplete(
    connection: psycopg.Connection, month: BillingPeriod, accounts: Iterable[Account]
) -> Mapping[str, list[Difference]]:
    """Tenants that are not known to be complete to the month's end. Where no replica is known nothing can be missing
    that anybody knows of."""
    overall = completeness_store.complete_to_overall(connection)
    if not _holds_back(overall, month):
        return {}
    found = {}
    for tenant_id in sorted({tenant for account in accounts for tenant in account.tenants}):
        own = completeness_store.complete_to_of(connection, tenant_id)
        if _holds_back(own, month):
            said = None if own.complete_to is None else rfc3339(own.complete_to)
            found[tenant_id] = [Difference(f"complete_to/{tenant_id}", rfc3339(month.end), said)]
    return found


def _holds_back(found: Completeness, month: BillingPeriod) -> bool:
    return bool(found.held_back_by) and (found.complete_to is None or found.complete_to < month.end)
