"""Rate a period: what every tenant's usage costs by now, and post what is not posted yet.

One transaction, under the period's lock: load usage and what is posted, rate and compare (pure), append the
differences with their accrual entries. Running it again posts nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, Engine

from billing import account_store, invoice_store, ledger_store, plan_store, rated_line_store, unbillable_store
from billing.booking import closed_books
from billing.commands.judge_late_usage import check_nothing_disappeared, frozen_usage, register_unbillable
from billing.database import raw, transaction
from billing.errors import PeriodInvalid, Unratable
from billing.money import total
from billing.period_usage import PeriodUsage, UnsubscribedUsage
from billing.periods import BillingPeriod, accounting_month
from billing.posting_rules import accrual
from billing.rated_line_store import TenantPeriod
from billing.rating import RatedLine, Rating, UnpricedUsage, difference
from billing.subscriptions import pieces
from billing.unbillable_store import UnbillableEvent
from streams.errors import EventsArchived

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TenantRated:
    """A tenant's period: the lines it comes to now, and the differences this run posted. Major units."""

    tenant_id: str
    lines: tuple[RatedLine, ...]
    posted: tuple[RatedLine, ...]

    @property
    def amount(self) -> Decimal:
        """The exact price of the period."""
        return total(line.amount for line in self.lines)

    @property
    def posted_amount(self) -> Decimal:
        """What this run posted."""
        return total(line.amount for line in self.posted)


@dataclass(frozen=True, slots=True)
class LateUsage:
    """Usage that arrived after the tenant's invoice was frozen: what this run posted for it."""

    tenant_id: str
    billing_account: str
    currency: str
    lines: tuple[RatedLine, ...]

    @property
    def amount(self) -> Decimal:
        """What it adds to what was billed, exact, in major units."""
        return total(line.amount for line in self.lines)


@dataclass(frozen=True, slots=True)
class PeriodRated:
    """The outcome for all tenants. `ok` is False where something waits for a person.

    `late` says of which of them the invoice was frozen before; documents for that: billing/late_usage.py.
    """

    period: BillingPeriod
    tenants: tuple[TenantRated, ...]
    late: tuple[LateUsage, ...]
    unpriced: tuple[UnpricedUsage, ...]
    unratable: tuple[str, ...]
    unsubscribed: tuple[UnsubscribedUsage, ...]
    unbillable: tuple[tuple[str, UnbillableEvent], ...] = ()
    """By tenant what came later than the contract bills, and nobody has approved to stay unbilled."""

    @property
    def ok(self) -> bool:
        """Whether every tenant's usage is rated and posted."""
        return not (self.unpriced or self.unratable or self.unsubscribed)

    @property
    def lines_posted(self) -> int:
        """How many rated lines this run appended."""
        return sum(len(tenant.posted) for tenant in self.tenants)


def rate_period(
    engine: Engine | Connection,
    *,
    period: BillingPeriod,
    now: datetime,
    progress: Progress | None = None,
    dry_run: bool = False,
    tenants: Collection[str] | None = None,
) -> PeriodRated:
    """Rate one calendar month for every tenant with a subscription (or those named). The month may still run.

    Tenants with usage that is unpriced, negative or worth an absurd amount are left out whole and named; they cannot
    be invoiced until that is mended. Raises PeriodInvalid for anything but a calendar month, AccountingPeriodClosed.
    """
    if period.months != 1:
        raise PeriodInvalid(f"{period.name} is no calendar month: this version rates by the month")
    with transaction(engine, dry_run=dry_run) as connection:
        rated_line_store.lock_period(connection, period)
        by_tenant = account_store.subscriptions_in(connection, period)
        if tenants is not None:
            by_tenant = {tenant_id: by_tenant[tenant_id] for tenant_id in tenants if tenant_id in by_tenant}
        plans = plan_store.plans(connection, {s.plan for listed in by_tenant.values() for s in listed})
        versions = {name: plan.versions for name, plan in plans.items()}
        before = rated_line_store.posted(connection, period)
        if tenants is not None:
            before = {tenant_id: lines for tenant_id, lines in before.items() if tenant_id in tenants}
        frozen = invoice_store.frozen_accounts(connection, period)
        cuts = {tenant_id: pieces(by_tenant.get(tenant_id, ()), versions, period) for tenant_id in by_tenant | before}
        counted = frozen_usage(connection, period)
        register_unbillable(connection, counted, by_tenant)
        too_old = unbillable_store.of_period(connection, period)
        usage = PeriodUsage(raw(connection), period, cuts, by_tenant, plans, too_old)
        rated: list[TenantRated] = []
        late: list[LateUsage] = []
        problems: dict[str, Rating | Unratable | EventsArchived] = {}
        for done, tenant_id in enumerate(sorted(cuts), start=1):
            try:
                found = usage.rated(tenant_id, is_over=now >= period.end)
                missing = difference(found.lines, before.get(tenant_id, []))
                for account in sorted(frozen & _counting_less(missing)):
                    check_nothing_disappeared(connection, counted, tenant_id, account, cuts[tenant_id])
            except (Unratable, EventsArchived) as error:
                problems[tenant_id] = error
            else:
                if found.unpriced:
                    problems[tenant_id] = found
                else:
                    rated.append(TenantRated(tenant_id, found.lines, missing))
                    late += _late(tenant_id, [line for line in missing if line.billing_account in frozen])
            if progress is not None:
                progress(done, len(cuts))
        _post(connection, period, rated, problems, now)
        return PeriodRated(
            period=period,
            tenants=tuple(rated),
            late=tuple(late),
            unpriced=tuple(u for p in problems.values() if isinstance(p, Rating) for u in p.unpriced),
            unratable=tuple(str(p) for p in problems.values() if not isinstance(p, Rating)),
            unbillable=tuple(
                (tenant_id, each)
                for tenant_id, listed in sorted(too_old.items())
                for each in listed
                if each.approved_by is None
            ),
            unsubscribed=tuple(usage.unsubscribed()),
        )


def _counting_less(lines: Sequence[RatedLine]) -> set[str]:
    """Billing accounts for which fewer units of some metric are to be billed."""
    counted: dict[tuple[str, str], list[Decimal]] = defaultdict(list)
    for line in lines:
        counted[line.billing_account, str(line.metric)].append(line.counted)
    return {account for (account, _), units in counted.items() if total(units) < 0}


def _late(tenant_id: str, lines: Sequence[RatedLine]) -> list[LateUsage]:
    by_account: dict[str, list[RatedLine]] = defaultdict(list)
    for line in lines:
        by_account[line.billing_account].append(line)
    return [LateUsage(tenant_id, account, listed[0].currency, tuple(listed)) for account, listed in by_account.items()]


def _post(
    connection: Connection,
    period: BillingPeriod,
    rated: Sequence[TenantRated],
    problems: Mapping[str, Rating | Unratable | EventsArchived],
    now: datetime,
) -> None:
    """Append the differences, their accrual entries, and where each tenant stands."""
    states = rated_line_store.tenant_periods(connection, period)
    numbers = {t.tenant_id: states[t.tenant_id].rating_no if t.tenant_id in states else 0 for t in rated}
    numbers |= {t.tenant_id: numbers[t.tenant_id] + 1 for t in rated if t.posted}
    new_states = [TenantPeriod(tenant_id, number, None) for tenant_id, number in numbers.items()]
    for tenant_id, problem in problems.items():
        text = "; ".join(map(str, problem.unpriced)) if isinstance(problem, Rating) else str(problem)
        new_states.append(TenantPeriod(tenant_id, states[tenant_id].rating_no if tenant_id in states else 0, text))
    changed = [state for state in new_states if states.get(state.tenant_id) != state]
    rated_line_store.set_tenant_periods(connection, period, changed, now)
    by_payer: dict[tuple[str, str], list[RatedLine]] = defaultdict(list)
    for tenant in rated:
        for line in tenant.posted:
            by_payer[tenant.tenant_id, line.billing_account].append(line)
    accounts = account_store.accounts(connection, {account for _, account in by_payer})
    closed = closed_books(connection, accounting_month(period.start))
    entries = {
        payer: accrual(
            lines,
            legal_entity=accounts[payer[1]].legal_entity,
            period=period,
            rating_no=numbers[payer[0]],
            now=now,
            closed=accounts[payer[1]].legal_entity in closed,
        )
        for payer, lines in by_payer.items()
    }
    booked = ledger_store.post(connection, [entry for entry in entries.values() if entry is not None])
    rated_line_store.append(
        connection,
        period,
        [line for lines in by_payer.values() for line in lines],
        rating_nos=numbers,
        entry_ids={payer: booked[entry.idempotency_key] for payer, entry in entries.items() if entry is not None},
    )
