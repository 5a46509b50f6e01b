"""What a plan depends on, and what it changes in money: tried by the real path, and all of it taken back.

The plan's records are applied by the code that applies all else, the periods that they touch are rated before and after
by the code that bills, and the transaction is rolled back. Beyond MOST_TRIED records, which would hold windows of their
hours for too long, nothing is said in money; the rated amounts are there once it is applied.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg
from sqlalchemy import Connection, Engine

from billing.commands.rate_period import PeriodRated, rate_period
from billing.database import raw, transaction
from billing.invoicing import adjustment_store, billed_until_store
from billing.money import ZERO, total
from billing.periods import BillingPeriod, parse_period
from billing.plans import account_store
from billing.plans.schedules import periods_in
from billing.plans.subscriptions import Subscription
from billing.posting.booking import closed_books
from reconciliation.replay import plan_store
from reconciliation.replay.outcome import MoneyEffect
from reconciliation.replay.plan_store import StoredPlan
from streams.ingest import positions
from streams.ingest.apply import ChunkApplier
from streams.retention import archive_store
from streams.rules import ingest_rules
from streams.rules.chunks import Chunk
from streams.rules.replayed import Compared

MOST_TRIED: Final = 500_000
"""Half a minute of applying, in which live events of the same hours and tenants would wait."""
BATCH: Final = 2000


def complete(engine: Engine, plan_id: str, now: datetime) -> None:
    """Find out what a plan depends on and what it changes in money, and store it with the plan."""
    with transaction(engine, dry_run=True) as connection:
        plan = plan_store.get(raw(connection), plan_id)
        found = world(connection, plan)
        money = _money(connection, plan, now) if plan.records <= MOST_TRIED else []
    with transaction(engine) as connection:
        plan_store.complete(raw(connection), plan_id, found, [effect.as_document() for effect in money])


def world(connection: Connection, plan: StoredPlan) -> dict[str, Any]:
    """Everything that a plan's answers depend on. Another answer later means that the plan is out of date."""
    usage = raw(connection)
    tenants = sorted({row["tenant_id"] for row in plan.effects["usage"]})
    states = usage.execute("select tenant_id, state from usage.tenants where tenant_id = any(%s)", (tenants,))
    horizon = ingest_rules.horizon(usage)
    prices = usage.execute(
        "select coalesce(max(change_no), 0) from usage.estimate_price_changes where tenant_id = any(%s)", (tenants,)
    ).fetchone()
    frozen = {
        f"{account} {period.name}": account in billed_until_store.frozen_accounts(connection, period)
        for period, subscribed in _periods(connection, plan).items()
        for account in sorted({s.billing_account for listed in subscribed.values() for s in listed})
    }
    months = sorted({row["month"] for row in plan.effects["usage"]})
    return (_behind(usage) if plan.reaches_behind else {}) | {
        "events of it that are counted": plan_store.counted_already(usage, plan.plan_id),
        "states of its tenants": dict(states.fetchall()),
        "its invoices that are frozen": frozen,
        "its books that are closed": {month: sorted(closed_books(connection, month)) for month in months},
        "the time that is sealed": horizon.sealed_before.isoformat() if horizon.sealed_before else None,
        "the identities that are forgotten": horizon.forgotten_before.isoformat() if horizon.forgotten_before else None,
        "prices of its tenants": int(prices[0]) if prices else 0,
    }


def _behind(usage: psycopg.Connection) -> dict[str, Any]:
    """What answers about events behind the horizon depend on, beside the horizon itself."""
    dropped = [held for held in archive_store.archived_days(usage, *archive_store.EVER) if held.dropped_at is not None]
    digest = hashlib.sha256(b"".join(held.manifest_sha256 for held in dropped)).hexdigest()
    return {
        "the days that were dropped into the archive": f"{len(dropped)} ({digest[:16]})",
        "events that were replayed from behind the horizon": archive_store.count_replayed(usage),
    }


def changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what of the world is not as it was."""
    return [f"{name}: was {then.get(name)}, now {value}" for name, value in now.items() if then.get(name) != value]


def _periods(connection: Connection, plan: StoredPlan) -> dict[BillingPeriod, dict[str, list[Subscription]]]:
    """The billing periods that a plan touches, with the tenants that it touches in them."""
    found: dict[BillingPeriod, dict[str, list[Subscription]]] = defaultdict(dict)
    for month, tenants in _by_month(plan.effects["usage"]).items():
        held = account_store.subscriptions_during(connection, month)
        for tenant_id in tenants:
            for period in periods_in(held.get(tenant_id, ()), month):
                found[period][tenant_id] = held[tenant_id]
    return dict(sorted(found.items(), key=lambda item: item[0].start))


def _by_month(usage: Iterable[Mapping[str, Any]]) -> dict[BillingPeriod, list[str]]:
    found: dict[BillingPeriod, list[str]] = defaultdict(list)
    for row in usage:
        found[parse_period(row["month"])].append(row["tenant_id"])
    return dict(found)


def _money(connection: Connection, plan: StoredPlan, now: datetime) -> list[MoneyEffect]:
    """Rate before and after. What was not rated yet is rated by the first, and so none of the plan's."""
    touched = _periods(connection, plan)
    archived = {period for period in touched if adjustment_store.is_archived(connection, period)}
    periods = {period: tenants for period, tenants in touched.items() if period not in archived}
    before = {p: _rated(connection, p, tenants, now) for p, tenants in periods.items()}
    _apply_all(raw(connection), plan)
    states = plan_states(raw(connection))
    effects = [each for period in sorted(archived) for each in _untold(connection, period, touched[period], states)]
    for period, tenants in periods.items():
        frozen = billed_until_store.frozen_accounts(connection, period)
        books = closed_books(connection, f"{period.end - timedelta(microseconds=1):%Y-%m}")
        after = _rated(connection, period, tenants, now)
        waited = {tenant_id for tenant_id, _ in before[period].unbillable}
        for tenant_id, subscribed in sorted(tenants.items()):
            account = subscribed[-1].billing_account
            rated = next((t for t in after.tenants if t.tenant_id == tenant_id), None)
            late = 0 if tenant_id in waited else sum(t == tenant_id for t, _ in after.unbillable)
            problem = "" if rated else "; ".join(text for text in after.unratable if tenant_id in text) or "not rated"
            effects.append(
                MoneyEffect(
                    tenant_id, account, period.name, _currency(rated),
                    total(line.amount for line in rated.posted) if rated else ZERO, account in frozen, bool(books),
                    states.get(tenant_id) == "closed", late, problem,
                )
            )  # fmt: skip
    return effects


def _untold(
    connection: Connection, period: BillingPeriod, tenants: Mapping[str, list[Subscription]], states: Mapping[str, str]
) -> list[MoneyEffect]:
    """Of a period whose raw events are archived: what it comes to is told, and billed, once they are recalled."""
    frozen = billed_until_store.frozen_accounts(connection, period)
    books = bool(closed_books(connection, f"{period.end - timedelta(microseconds=1):%Y-%m}"))
    problem = (
        f"not rated: raw events of {period.name} are only in the archive. What it comes to is told, and it is"
        f" billed, once they are back: `tollbook events recall --period {period.name}`"
    )
    payers = {tenant_id: subscribed[-1].billing_account for tenant_id, subscribed in sorted(tenants.items())}
    return [
        MoneyEffect(
            tenant_id, account, period.name, "", ZERO, account in frozen, books, states.get(tenant_id) == "closed",
            problem=problem,
        )
        for tenant_id, account in payers.items()
    ]  # fmt: skip


def _currency(rated: Any) -> str:
    return next((line.currency for line in (*rated.posted, *rated.lines)), "") if rated else ""


def _rated(connection: Connection, period: BillingPeriod, tenants: Iterable[str], now: datetime) -> PeriodRated:
    return rate_period(connection, period=period, now=now, tenants=list(tenants))


def plan_states(usage: psycopg.Connection) -> dict[str, str]:
    """The states of the tenants that are not active."""
    return dict(usage.execute("select tenant_id, state from usage.tenants where state <> 'active'").fetchall())


def _apply_all(usage: psycopg.Connection, plan: StoredPlan) -> None:
    """Apply every part, in the caller's transaction: the stage is emptied here, where no commit does it."""
    applier = ChunkApplier(usage)
    # As the plan found it: what lies behind the horizon is not there yet
    forgotten = ingest_rules.horizon(usage).forgotten_before
    compared = Compared(forgotten, plan_store.keys(usage, plan.plan_id)) if plan.reaches_behind else None
    for part, count in plan.parts.items():
        source = plan.source(part)
        positions.register(usage, source)
        for begin in range(0, count, BATCH):
            applier.apply(Chunk(source, plan_store.records(usage, plan, part, begin, BATCH)), compared)
            usage.execute("truncate stage")
