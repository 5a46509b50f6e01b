"""Rate a period: what every tenant's usage costs by now, and post what is not posted yet.

A period of several accounting months is rated as it stood at the end of each: what a month adds is accrued in it.

One transaction, under the period's lock: load usage and what is posted, rate and compare (pure), append the
differences with their accrual entries. Running it again posts nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from functools import partial

from sqlalchemy import Connection, Engine

from billing.commands.judge_late_usage import check_nothing_disappeared, frozen_usage, register_unbillable
from billing.database import raw, retrying, transaction
from billing.errors import Unratable
from billing.invoicing import billed_until_store, rated_line_store
from billing.invoicing.rated_line_store import TenantPeriod
from billing.ledger import ledger_store
from billing.money import total
from billing.periods import BillingPeriod
from billing.plans import account_store, plan_store
from billing.plans.schedules import MONTHLY, has_period
from billing.plans.subscriptions import Piece, pieces
from billing.plans.term_digests import term_digests
from billing.posting.booking import closed_books
from billing.posting.posting_rules import accrual
from billing.rating import RatedLine, Rating, UnpricedUsage, difference
from billing.usage import unbillable_store
from billing.usage.period_usage import PeriodUsage, PieceSums, UnsubscribedUsage
from billing.usage.unbillable_store import UnbillableEvent
from streams.errors import EventsArchived
from streams.usage.usage_ranges import UsageRange

Progress = Callable[[int, int], None]
Check = Callable[[str, str, Sequence[Piece]], None]


@dataclass(frozen=True, slots=True)
class KeptRating:
    """What a period was rated from: of each of the `tenants` that could be rated, its pieces with the usage in each.

    `until`: as far as usage counts, of a period that goes on; else its end.
    """

    period: BillingPeriod
    until: datetime
    tenants: frozenset[str]
    sums_of: Callable[[str], PieceSums]


Keep = Callable[[Connection, KeptRating], None]
"""Told what was rated in the transaction of the rating, all of which is then of one moment."""


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

    `late` says of which of them the invoice was frozen before; documents for that: billing/bills/late_usage.py.
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


@retrying
def rate_period(
    engine: Engine | Connection,
    *,
    period: BillingPeriod,
    now: datetime,
    progress: Progress | None = None,
    dry_run: bool = False,
    tenants: Collection[str] | None = None,
    until: datetime | None = None,
    keep: Keep | None = None,
) -> PeriodRated:
    """Rate a billing period for every tenant that is billed by it (or those named).

    A calendar month may still run. Of one with time in several months those are accrued that have ended by `now` and
    by `until` (the end of a month; else all).

    Tenants with usage that is unpriced, negative or worth an absurd amount are left out whole and named; they cannot
    be invoiced until that is mended. Raises AccountingPeriodClosed.
    """
    if keep is not None and isinstance(engine, Engine):
        with rated_line_store.locked_snapshot(engine, period) as opened:
            return rate_period(
                opened, period=period, now=now, progress=progress, dry_run=dry_run, tenants=tenants, until=until,
                keep=keep,
            )  # fmt: skip
    with transaction(engine, dry_run=dry_run) as connection:
        rated_line_store.lock_period(connection, period)
        terms = term_digests(connection, period)  # before all that is read by them: a change meanwhile is noticed
        subscribed = by_tenant = account_store.subscriptions_in(connection, period)
        if tenants is not None:
            by_tenant = {tenant_id: by_tenant[tenant_id] for tenant_id in tenants if tenant_id in by_tenant}
        plans = plan_store.plans(connection, {s.plan for listed in by_tenant.values() for s in listed})
        versions = {name: plan.versions for name, plan in plans.items()}
        posted = rated_line_store.posted(connection, period)
        if tenants is not None:
            posted = {tenant_id: lines for tenant_id, lines in posted.items() if tenant_id in tenants}
        frozen = billed_until_store.frozen_accounts(connection, period)
        cuts = {tenant_id: pieces(by_tenant.get(tenant_id, ()), versions, period) for tenant_id in by_tenant | posted}
        counted = frozen_usage(connection, period)
        register_unbillable(connection, counted, by_tenant)
        too_old = unbillable_store.of_period(connection, period)
        usage = PeriodUsage(raw(connection), period, cuts, by_tenant, plans, too_old, _elsewhere(connection, period))
        lost = tuple(u for u in usage.unsubscribed() if u.tenant_id in by_tenant or u.tenant_id not in subscribed)
        found = PeriodRated(period, (), (), (), (), lost, _waiting(too_old))
        months = _months(period, now, until)
        for month in months:
            before = posted
            if len(months) > 1 or month.end < period.end:
                before = rated_line_store.posted(connection, period, until=min(month.end, period.end))
            rating = _Month(period, month, usage, before, is_over=now >= period.end)
            for done, tenant_id in enumerate(sorted(cuts), start=1):
                rating.rate(tenant_id, cuts[tenant_id], partial(check_nothing_disappeared, connection, counted), frozen)
                if progress is not None:
                    progress(done, len(cuts))
            _post(connection, period, month, rating.rated, rating.problems, terms, now)
            found = rating.added_to(found)
        if keep is not None:
            until = min(period.end, until or period.end)
            rated = frozenset(tenant.tenant_id for tenant in found.tenants)
            keep(connection, KeptRating(period, until, rated, partial(usage.sums_of, until=until)))
        return found


def _months(period: BillingPeriod, now: datetime, until: datetime | None) -> list[BillingPeriod]:
    """The accounting months of a period that are rated."""
    months = list(MONTHLY.periods(period.start, min(period.end, until or period.end)))
    return months if len(months) == 1 else [month for month in months if min(month.end, period.end) <= now]


def _elsewhere(connection: Connection, period: BillingPeriod) -> list[UsageRange]:
    """When tenants are billed by other periods, of a period that is a calendar month."""
    if period.months != 1:
        return []
    return [
        UsageRange(each.tenant_id, max(each.starts_at, period.start), min(each.ends_at or period.end, period.end))
        for listed in account_store.subscriptions_during(connection, period).values()
        for each in listed
        if not has_period(each, period)
    ]


class _Month:
    """The rating of a period as it stood at the end of one of its months; `before` is what is posted by then."""

    def __init__(
        self,
        period: BillingPeriod,
        month: BillingPeriod,
        usage: PeriodUsage,
        before: Mapping[str, Sequence[RatedLine]],
        *,
        is_over: bool,
    ) -> None:
        self._period = period
        self._until = min(month.end, period.end)
        self._usage = usage
        self._before = before
        self._is_over = is_over
        self.rated: list[TenantRated] = []
        self.late: list[LateUsage] = []
        self.problems: dict[str, Rating | Unratable | EventsArchived] = {}

    def rate(self, tenant_id: str, cut: Sequence[Piece], check: Check, frozen: Collection[str]) -> None:
        """Rate a tenant and compare with what is posted.

        `check`: where less of what `frozen` accounts were billed is counted, that all of it is still there.
        """
        try:
            found = self._usage.rated(tenant_id, is_over=self._is_over, until=self._until)
            missing = difference(found.lines, self._before.get(tenant_id, []))
            for account in sorted(set(frozen) & _counting_less(missing)):
                check(tenant_id, account, cut)
        except (Unratable, EventsArchived) as error:
            self.problems[tenant_id] = error
            return
        if found.unpriced:
            self.problems[tenant_id] = found
        else:
            self.rated.append(TenantRated(tenant_id, found.lines, missing))
            self.late += _late(tenant_id, [line for line in missing if line.billing_account in frozen])

    def added_to(self, earlier: PeriodRated) -> PeriodRated:
        """What was found until this month: lines and problems as they are by now, what was posted in all."""
        posted = {tenant.tenant_id: tenant.posted for tenant in earlier.tenants}
        return replace(
            earlier,
            tenants=tuple(replace(t, posted=(*posted.get(t.tenant_id, ()), *t.posted)) for t in self.rated),
            late=(*earlier.late, *self.late),
            unpriced=tuple(u for p in self.problems.values() if isinstance(p, Rating) for u in p.unpriced),
            unratable=tuple(str(p) for p in self.problems.values() if not isinstance(p, Rating)),
        )


def _waiting(too_old: Mapping[str, Sequence[UnbillableEvent]]) -> tuple[tuple[str, UnbillableEvent], ...]:
    """By tenant what nobody has approved to stay unbilled."""
    return tuple(
        (tenant_id, each)
        for tenant_id, listed in sorted(too_old.items())
        for each in listed
        if each.approved_by is None
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
    month: BillingPeriod,
    rated: Sequence[TenantRated],
    problems: Mapping[str, Rating | Unratable | EventsArchived],
    terms: Mapping[str, str],
    now: datetime,
) -> None:
    """Append the differences, their accrual entries, and where each tenant stands."""
    states = rated_line_store.tenant_periods(connection, period)
    numbers = {t.tenant_id: states[t.tenant_id].rating_no if t.tenant_id in states else 0 for t in rated}
    numbers |= {t.tenant_id: numbers[t.tenant_id] + 1 for t in rated if t.posted}
    new_states = [TenantPeriod(tenant_id, number, None, terms.get(tenant_id)) for tenant_id, number in numbers.items()]
    for tenant_id, problem in problems.items():
        text = "; ".join(map(str, problem.unpriced)) if isinstance(problem, Rating) else str(problem)
        number = states[tenant_id].rating_no if tenant_id in states else 0
        new_states.append(TenantPeriod(tenant_id, number, text, terms.get(tenant_id)))
    changed = [state for state in new_states if states.get(state.tenant_id) != state]
    rated_line_store.set_tenant_periods(connection, period, changed, now)
    by_payer: dict[tuple[str, str], list[RatedLine]] = defaultdict(list)
    for tenant in rated:
        for line in tenant.posted:
            by_payer[tenant.tenant_id, line.billing_account].append(line)
    accounts = account_store.accounts(connection, {account for _, account in by_payer})
    closed = closed_books(connection, month.name)
    entries = {
        payer: accrual(
            lines,
            legal_entity=accounts[payer[1]].legal_entity,
            period=period,
            month=month,
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
        accrued_to=min(month.end, period.end),
    )
