"""What a plan depends on, and what it changes in money: tried by the real path, and all of it taken back.

The plan's records are applied by the code that applies all else, the periods that they touch are rated before and after
by the code that bills, and the transaction is rolled back. So many tenants are tried at once as have MOST_TRIED records
together, since more would hold windows of their hours for too long; a tenant that has more by itself is not tried, and
its effect says so.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import psycopg
from sqlalchemy import Connection, Engine

from billing.commands.rate_period import PeriodRated, TenantRated, rate_period
from billing.database import raw, transaction
from billing.invoicing import adjustment_store, billed_until_store
from billing.money import ZERO, total
from billing.periods import INSTANT, BillingPeriod, parse_period
from billing.plans import account_store
from billing.plans.schedules import periods_in
from billing.plans.subscriptions import Subscription
from billing.posting.booking import closed_books
from billing.rating import RatedLine
from reconciliation.close import close_store
from reconciliation.close.states import CUT, Event, State, after
from reconciliation.errors import CloseRefused, ReplayRefused
from reconciliation.replay import plan_store
from reconciliation.replay.outcome import MoneyEffect
from reconciliation.replay.plan_store import StoredPlan
from reconciliation.replay.planning import part_of
from streams.ingest import positions
from streams.ingest.apply import ChunkApplier
from streams.retention import archive_store
from streams.rules import ingest_rules
from streams.rules.chunks import Chunk
from streams.rules.replayed import Compared

MOST_TRIED: Final = 500_000
"""Half a minute of applying, in which live events of the same hours and tenants would wait."""
BATCH: Final = 2000
COUNTED: Final = "events of it that are counted"
HOW_FAR: Final = "how far its billing periods are"


def complete(engine: Engine, plan_id: str, now: datetime) -> None:
    """Find out what a plan depends on and what it changes in money, and store it with the plan.

    Raises ReplayRefused where events of it came since they were judged.
    """
    with transaction(engine, dry_run=True) as connection:
        plan = plan_store.get(raw(connection), plan_id)
        found = world(connection, plan)
        if (come := found[COUNTED] - plan.counts.get("counted", 0)) != 0:
            raise ReplayRefused(f"{come:,} of its events came while plan {plan_id} was made: make another")
        records = plan_store.records_of_tenants(raw(connection), plan_id)
        untried = {tenant_id: count for tenant_id, count in records.items() if count > MOST_TRIED}
        money = _untried(connection, plan, untried)
    for tenants in slices({tenant_id: count for tenant_id, count in records.items() if tenant_id not in untried}):
        with transaction(engine, dry_run=True) as connection:
            money += _money(connection, plan, tenants, now)
    with transaction(engine) as connection:
        listed = sorted(money, key=lambda effect: (effect.tenant_id, effect.period))
        plan_store.complete(raw(connection), plan_id, found, [effect.as_document() for effect in listed])


def slices(records: Mapping[str, int]) -> Iterator[list[str]]:
    """Tenants part by part, so many together as have MOST_TRIED records at most. `records`: how many each has."""
    tenants: list[str] = []
    together = 0
    for tenant_id, count in sorted(records.items(), key=lambda item: (part_of(item[0]), item[0])):
        if tenants and together + count > MOST_TRIED:
            yield tenants
            tenants, together = [], 0
        tenants.append(tenant_id)
        together += count
    if tenants:
        yield tenants


def world(connection: Connection, plan: StoredPlan) -> dict[str, Any]:
    """Everything that a plan's answers depend on. Another answer later means that the plan is out of date."""
    usage = raw(connection)
    tenants = sorted({row["tenant_id"] for row in plan.effects["usage"]})
    states = usage.execute("select tenant_id, state from usage.tenants where tenant_id = any(%s)", (tenants,))
    horizon = ingest_rules.horizon(usage)
    prices = usage.execute(
        "select coalesce(max(change_no), 0) from usage.estimate_price_changes where tenant_id = any(%s)", (tenants,)
    ).fetchone()
    months = sorted({row["month"] for row in plan.effects["usage"]})
    return (_behind(usage) if plan.reaches_behind else {}) | {
        COUNTED: plan_store.counted_already(usage, plan.plan_id),
        "states of its tenants": dict(states.fetchall()),
        HOW_FAR: _how_far(connection, _periods(connection, plan)),
        "its books that are closed": {month: sorted(closed_books(connection, month)) for month in months},
        "the time that is sealed": horizon.sealed_before.isoformat() if horizon.sealed_before else None,
        "the identities that are forgotten": horizon.forgotten_before.isoformat() if horizon.forgotten_before else None,
        "prices of its tenants": int(prices[0]) if prices else 0,
    }


def moved(connection: Connection, plan: StoredPlan) -> list[str]:
    """`account period` of those that were cut, invoiced or reopened since the plan was made, or while it is applied."""
    then = (plan.world or {}).get(HOW_FAR, {})
    now = _how_far(connection, _periods(connection, plan))
    return sorted(name for name, how_far in now.items() if then.get(name) != how_far)


def _behind(usage: psycopg.Connection) -> dict[str, Any]:
    """What answers about events behind the horizon depend on, beside the horizon itself."""
    dropped = [held for held in archive_store.archived_days(usage, *archive_store.EVER) if held.dropped_at is not None]
    digest = hashlib.sha256(b"".join(held.manifest_sha256 for held in dropped)).hexdigest()
    return {
        "the days that were dropped into the archive": f"{len(dropped)} ({digest[:16]})",
        "events that were replayed from behind the horizon": archive_store.count_replayed(usage),
    }


def _how_far(
    connection: Connection, periods: Mapping[BillingPeriod, Mapping[str, Iterable[Subscription]]]
) -> dict[str, str]:
    """`account period` → open, cut, or invoiced."""
    found = {}
    for period, subscribed in periods.items():
        standings = _Standings(connection, period)
        for account in sorted({s.billing_account for listed in subscribed.values() for s in listed}):
            invoiced, cut = account in standings.invoiced, standings.is_cut(account)
            found[f"{account} {period.name}"] = "invoiced" if invoiced else "cut" if cut else "open"
    return found


class _Standings:
    """How far a billing period is: whose invoice is frozen (or who was closed without one), and whose usage is cut by
    the close that bills it."""

    def __init__(self, connection: Connection, period: BillingPeriod) -> None:
        self.month = f"{period.end - INSTANT:%Y-%m}"
        self.invoiced = billed_until_store.frozen_accounts(connection, period)
        self._without = {of for of, _ in billed_until_store.closed_without_invoice(connection, [period])}
        self._of = close_store.standings(connection, self.month)
        self._closed_books = closed_books(connection, self.month)
        self._connection = connection

    def _book_is_closed(self, account: str) -> bool:
        """Whether its legal entity's book is."""
        if not self._closed_books:
            return False
        return account_store.accounts(self._connection, {account})[account].legal_entity in self._closed_books

    def is_cut(self, account: str) -> bool:
        """Whether its usage is cut and its invoice not frozen yet."""
        standing = self._of.get(account)
        cut = standing is not None and (standing.state in CUT or standing.parked_from in CUT)
        return cut and account not in self.invoiced

    def effect(
        self, tenant_id: str, account: str, period: BillingPeriod, currency: str, amount: Decimal, *, closed: bool,
        unbillable: int = 0, problem: str = "",
    ) -> MoneyEffect:  # fmt: skip
        """What a replay changes of it, and what follows."""
        cut, book_closed = self.is_cut(account), self._book_is_closed(account)
        reopens = cut and not book_closed and _reopens(self._of[account].state)
        return MoneyEffect(
            tenant_id, account, period.name, currency, amount, cut or account in self.invoiced, book_closed,
            closed, unbillable, problem, cut, self.month if reopens else "", account in self._without,
        )  # fmt: skip


def _reopens(state: State) -> bool:
    try:
        after(state, Event.REOPEN)
    except CloseRefused:
        return False
    return True


def changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what of the world is not as it was."""
    return [f"{name}: was {then.get(name)}, now {value}" for name, value in now.items() if then.get(name) != value]


def _periods(
    connection: Connection, plan: StoredPlan, of: Collection[str] | None = None
) -> dict[BillingPeriod, dict[str, list[Subscription]]]:
    """The billing periods that a plan touches, with the tenants that it touches in them: all, or those of `of`."""
    found: dict[BillingPeriod, dict[str, list[Subscription]]] = defaultdict(dict)
    for month, tenants in _by_month(plan.effects["usage"]).items():
        held = account_store.subscriptions_during(connection, month)
        for tenant_id in (each for each in tenants if of is None or each in of):
            for period in periods_in(held.get(tenant_id, ()), month):
                found[period][tenant_id] = held[tenant_id]
    return dict(sorted(found.items(), key=lambda item: item[0].start))


def _by_month(usage: Iterable[Mapping[str, Any]]) -> dict[BillingPeriod, list[str]]:
    found: dict[BillingPeriod, list[str]] = defaultdict(list)
    for row in usage:
        found[parse_period(row["month"])].append(row["tenant_id"])
    return dict(found)


def _money(connection: Connection, plan: StoredPlan, of: Collection[str], now: datetime) -> list[MoneyEffect]:
    """Rate tenants before and after. What was not rated yet is rated by the first, and so none of the plan's."""
    touched = _periods(connection, plan, of)
    if not touched:
        return []  # nobody pays for them
    archived = {period for period in touched if adjustment_store.is_archived(connection, period)}
    periods = {period: tenants for period, tenants in touched.items() if period not in archived}
    before = {p: _rated(connection, p, tenants, now) for p, tenants in periods.items()}
    _apply(raw(connection), plan, of)
    states = plan_states(raw(connection))
    effects = [
        each for period in sorted(archived)
        for each in _untold(connection, period, touched[period], states, _archived(period))
    ]  # fmt: skip
    for period, tenants in periods.items():
        standings = _Standings(connection, period)
        now_rated = _rated(connection, period, tenants, now)
        waited = {tenant_id for tenant_id, _ in before[period].unbillable}
        for tenant_id, subscribed in sorted(tenants.items()):
            rated = next((t for t in now_rated.tenants if t.tenant_id == tenant_id), None)
            late = 0 if tenant_id in waited else sum(t == tenant_id for t, _ in now_rated.unbillable)
            closed, last = states.get(tenant_id) == "closed", subscribed[-1].billing_account
            if rated is None:
                why = _why_not(now_rated, tenant_id)
                effects.append(standings.effect(tenant_id, last, period, "", ZERO, closed=closed, problem=why))
                continue
            payers = _by_payer(rated, last)
            for account, lines in payers.items():
                amount, currency = total(line.amount for line in lines), _currency(lines or rated.lines)
                is_told = account == last or (last not in payers and account == min(payers))
                effects.append(
                    standings.effect(
                        tenant_id, account, period, currency, amount, closed=closed, unbillable=late if is_told else 0
                    )
                )
    return effects


def _by_payer(rated: TenantRated, last: str) -> dict[str, list[RatedLine]]:
    """What is posted of a tenant by who pays for it; the `last` one, where nothing is."""
    found: dict[str, list[RatedLine]] = defaultdict(list)
    for line in rated.posted:
        found[line.billing_account].append(line)
    return found or {last: []}


def _why_not(rated: PeriodRated, tenant_id: str) -> str:
    """Why a tenant's usage is not rated."""
    named = re.compile(rf"(?<![\w.:-]){re.escape(tenant_id)}(?![\w-]|[.:]\w)")
    unpriced = [str(each) for each in rated.unpriced if each.tenant_id == tenant_id]
    return "; ".join(unpriced or [text for text in rated.unratable if named.search(text)]) or "not rated"


def _archived(period: BillingPeriod) -> str:
    """What is said of a period whose raw events are archived."""
    return (
        f"not rated: raw events of {period.name} are only in the archive. What it comes to is told, and it is"
        f" billed, once they are back: `tollbook events recall --period {period.name}`"
    )


def _untried(connection: Connection, plan: StoredPlan, records: Mapping[str, int]) -> list[MoneyEffect]:
    """Of tenants with more records than are tried at once."""
    states = plan_states(raw(connection))
    return [
        effect
        for period, tenants in _periods(connection, plan, records.keys()).items()
        for tenant_id, subscribed in tenants.items()
        for effect in _untold(
            connection, period, {tenant_id: subscribed}, states,
            f"not tried: {records[tenant_id]:,} events are more than are tried at once ({MOST_TRIED:,}): it is billed"
            " as any usage. To see before what it comes to, plan it in parts, by --from and --to",
        )
    ]  # fmt: skip


def _untold(
    connection: Connection,
    period: BillingPeriod,
    tenants: Mapping[str, list[Subscription]],
    states: Mapping[str, str],
    problem: str,
) -> list[MoneyEffect]:
    """What a period comes to cannot be told yet, for a reason."""
    standings = _Standings(connection, period)
    payers = {tenant_id: subscribed[-1].billing_account for tenant_id, subscribed in sorted(tenants.items())}
    return [
        standings.effect(t, account, period, "", ZERO, closed=states.get(t) == "closed", problem=problem)
        for t, account in payers.items()
    ]


def _currency(lines: Iterable[RatedLine]) -> str:
    return next((line.currency for line in lines), "")


def _rated(connection: Connection, period: BillingPeriod, tenants: Iterable[str], now: datetime) -> PeriodRated:
    return rate_period(connection, period=period, now=now, tenants=list(tenants))


def plan_states(usage: psycopg.Connection) -> dict[str, str]:
    """The states of the tenants that are not active."""
    return dict(usage.execute("select tenant_id, state from usage.tenants where state <> 'active'").fetchall())


def _apply(usage: psycopg.Connection, plan: StoredPlan, of: Collection[str]) -> None:
    """Apply what is some tenants', in the caller's transaction: the stage is emptied here, where no commit does it."""
    applier = ChunkApplier(usage)
    # As the plan found it: what lies behind the horizon is not there yet
    forgotten = ingest_rules.horizon(usage).forgotten_before
    compared = Compared(forgotten, plan_store.keys(usage, plan.plan_id)) if plan.reaches_behind else None
    for part in sorted({part_of(tenant_id) for tenant_id in of}):
        source, applied = plan.source(part), 0
        positions.register(usage, source)
        for begin in range(0, plan.parts[part], BATCH):
            own = [r for r in plan_store.records(usage, plan, part, begin, BATCH) if plan_store.tenant_of(r) in of]
            if own:
                numbered = [record._replace(position=applied + at) for at, record in enumerate(own)]
                applier.apply(Chunk(source, numbered), compared)
                usage.execute("truncate stage")
                applied += len(own)
