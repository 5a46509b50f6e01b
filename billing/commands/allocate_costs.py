"""What a month's GPU time cost, for whom, and what is left of what they pay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction

from sqlalchemy import Connection, Engine

from billing.costs import pool_store
from billing.costs.allocation import Allocation, Consumer, CostKind, GpuTime, allocate
from billing.costs.margins import Earned, Margin, Traffic, margins, spread_revenue
from billing.database import raw, transaction
from billing.invoicing import rated_line_store
from billing.ledger.exchange_rates import ExchangeRates
from billing.periods import BillingPeriod
from billing.posting import exchange_rate_store
from streams.usage import gpu_usage


@dataclass(frozen=True, slots=True)
class MonthMargins:
    """By tenant, model or adapter, in one currency. `unallocated`: idle time, overhead and the platform's own."""

    currency: str
    rows: tuple[Margin, ...]
    unallocated: Fraction
    problems: tuple[str, ...]


def allocate_costs(engine: Engine, month: BillingPeriod) -> Allocation:
    """Divide what each pool cost in a calendar month."""
    with transaction(engine) as connection:
        return _allocated(connection, month)


def month_margins(engine: Engine, month: BillingPeriod, *, by: Sequence[str], currency: str) -> MonthMargins:
    """What tenants bring less what their GPU time cost, in one currency, at the rates of the month's end.

    Revenue is what was rated and accrued for the month, before credits and tax. Raises RateMissing.
    """
    with transaction(engine) as connection:
        allocation = _allocated(connection, month)
        rates = ExchangeRates(exchange_rate_store.recorded(connection))
        last = month.end - timedelta(microseconds=1)
        traffic = {
            Consumer(*key): Traffic(*sums)
            for key, sums in gpu_usage.tenants_traffic(raw(connection), month.start, month.end)
        }
        earned = [
            Earned(line.identity.tenant_id, line.where[0], line.where[1], line.metric,
                   Fraction(line.amount) * rates.at(line.currency, currency, last))
            for line in rated_line_store.accrued_in(connection, month)
        ]  # fmt: skip
        cost: dict[Consumer, Fraction] = defaultdict(Fraction)
        rest = Fraction()
        for part in allocation.lines:
            amount = Fraction(part.amount) * rates.at(part.currency, currency, last)
            if part.kind is CostKind.USAGE:
                cost[part.consumer] += amount
            else:
                rest += amount
    found = margins(spread_revenue(earned, traffic), cost, traffic, by)
    return MonthMargins(currency, tuple(found), rest, allocation.problems)


def _allocated(connection: Connection, month: BillingPeriod) -> Allocation:
    return allocate(pool_store.pools(connection), _times(connection, month), month.start, month.end)


def _times(connection: Connection, month: BillingPeriod) -> Iterable[GpuTime]:
    for row in gpu_usage.gpu_time(raw(connection), month.start, month.end):
        consumer = Consumer(row.tenant_id, row.model, row.adapter)
        yield GpuTime(row.hour, row.pool, consumer, row.is_tenants, row.gpu_us)
