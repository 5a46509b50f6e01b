"""Rated lines in the database: differences are appended, the sum of a tenant's rows is what its period costs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, func, select, text
from sqlalchemy.dialects.postgresql import insert

from billing import tables
from billing.database import add_rows, connection
from billing.periods import BillingPeriod
from billing.rating import LineIdentity, RatedLine


@dataclass(frozen=True, slots=True)
class TenantPeriod:
    """Where the rating of a tenant's period stands: how often something was posted, what hinders, by which terms."""

    tenant_id: str
    rating_no: int
    problem: str | None
    terms: str | None = None
    """The digest of what it was rated by (`plans/term_digests.py`)."""


def lock_period(connection: Connection, period: BillingPeriod, *, shared: bool = False) -> None:
    """Let ratings and drafts of one period go one after another, until the transaction ends.

    Shared holders (freezing invoices) go beside each other, not beside a rating.
    """
    lock = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
    connection.execute(select(lock(_lock_key(period))))


@contextmanager
def locked_snapshot(engine: Engine, period: BillingPeriod) -> Iterator[Connection]:
    """A transaction that sees one moment only, which is after it has got the period's lock."""
    with connection(engine) as opened:
        with opened.begin():
            opened.execute(select(func.pg_advisory_lock(_lock_key(period))))
        try:
            with opened.begin():
                opened.execute(text("set transaction isolation level repeatable read"))
                yield opened
        finally:
            if opened.invalidated:
                opened.close()  # the session is gone, and the lock with it
            else:
                with opened.begin():
                    opened.execute(select(func.pg_advisory_unlock(_lock_key(period))))


def _lock_key(period: BillingPeriod) -> ColumnElement[Any]:
    return func.hashtextextended(f"rating/{period.name}", 0)


def tenant_periods(
    connection: Connection, period: BillingPeriod, tenants: Collection[str] | None = None
) -> dict[str, TenantPeriod]:
    """Tenants that were rated in the period; all of them unless some are named."""
    table = tables.tenant_periods
    query = select(table.c.tenant_id, table.c.rating_no, table.c.problem, table.c.terms).where(
        table.c.period_start == period.start, table.c.period_end == period.end
    )
    if tenants is not None:
        query = query.where(table.c.tenant_id.in_(tenants))
    return {row.tenant_id: TenantPeriod(*row) for row in connection.execute(query)}


def problems_in(connection: Connection, span: BillingPeriod) -> list[tuple[str, str]]:
    """What hinders tenants from being rated in the billing periods that have time in a span, by tenant."""
    table = tables.tenant_periods
    query = select(table.c.tenant_id, table.c.problem).where(
        table.c.period_start < span.end, table.c.period_end > span.start, table.c.problem.is_not(None)
    )
    return [(row[0], row[1]) for row in connection.execute(query.order_by(table.c.tenant_id, table.c.period_start))]


def problems(connection: Connection, up_to: datetime) -> dict[BillingPeriod, dict[str, str]]:
    """What hinders the rating of tenants, by period of those that end by a moment, in order."""
    table = tables.tenant_periods
    query = (
        select(table.c.period_start, table.c.period_end, table.c.tenant_id, table.c.problem)
        .where(table.c.period_end <= up_to, table.c.problem.is_not(None))
        .order_by(table.c.period_start, table.c.tenant_id)
    )
    found: dict[BillingPeriod, dict[str, str]] = {}
    for start, end, tenant_id, problem in connection.execute(query):
        found.setdefault(BillingPeriod(start, end), {})[tenant_id] = problem
    return found


def set_tenant_periods(
    connection: Connection, period: BillingPeriod, states: Iterable[TenantPeriod], now: datetime
) -> None:
    """Record where the rating of tenants stands."""
    rows = [
        {
            "tenant_id": state.tenant_id,
            "period_start": period.start,
            "period_end": period.end,
            "rating_no": state.rating_no,
            "rated_at": now,
            "problem": state.problem,
            "terms": state.terms,
        }
        for state in states
    ]
    if not rows:
        return
    statement = insert(tables.tenant_periods)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["tenant_id", "period_start", "period_end"],
            set_={name: statement.excluded[name] for name in ("rating_no", "rated_at", "problem", "terms")},
        ),
        rows,
    )


def posted(
    connection: Connection,
    period: BillingPeriod,
    *,
    billing_account: str | None = None,
    until: datetime | None = None,
    up_to_line: int | None = None,
) -> dict[str, list[RatedLine]]:
    """Every row of a period by tenant, in the order of posting; `until`: of the months that end by then.

    `up_to_line`: those that were there when this was the last number (`last_line`).
    """
    table = tables.rated_lines
    query = (
        select(table)
        .where(table.c.period_start == period.start, table.c.period_end == period.end)
        .order_by(table.c.tenant_id, table.c.rated_line_no)
    )
    if billing_account is not None:
        query = query.where(table.c.billing_account == billing_account)
    if until is not None:
        query = query.where(_accrued_to() <= until)
    if up_to_line is not None:
        query = query.where(table.c.rated_line_no <= up_to_line)
    return _lines_by_tenant(connection.execute(query))


def last_line(connection: Connection) -> int:
    """The highest number of a row."""
    highest = connection.execute(select(func.coalesce(func.max(tables.rated_lines.c.rated_line_no), 0)))
    return int(highest.scalar_one())


def last_ratings(connection: Connection, period: BillingPeriod, *, up_to_line: int) -> dict[str, int]:
    """By tenant the number of the last rating that posted something of a period, by when this was the last line."""
    table = tables.rated_lines
    query = select(table.c.tenant_id, func.max(table.c.rating_no)).where(
        table.c.period_start == period.start, table.c.period_end == period.end, table.c.rated_line_no <= up_to_line
    )
    return {row[0]: row[1] for row in connection.execute(query.group_by(table.c.tenant_id))}


def accrued_in(connection: Connection, month: BillingPeriod) -> list[RatedLine]:
    """Every row that was accrued for an accounting period, of whatever billing period."""
    table = tables.rated_lines
    query = select(table).where(_accrued_to() > month.start, _accrued_to() <= month.end)
    found = _lines_by_tenant(connection.execute(query.order_by(table.c.tenant_id, table.c.rated_line_no)))
    return [line for lines in found.values() for line in lines]


def periods_ending_in(connection: Connection, month: BillingPeriod) -> list[BillingPeriod]:
    """The billing periods that were rated and end in a month, in order."""
    table = tables.tenant_periods
    query = select(table.c.period_start, table.c.period_end).distinct()
    query = query.where(table.c.period_end > month.start, table.c.period_end <= month.end)
    return sorted(BillingPeriod(*row) for row in connection.execute(query))


def _accrued_to() -> ColumnElement[datetime]:
    """Up to when usage was counted for a row: the end of its month, or of its period if that comes first."""
    return func.coalesce(tables.rated_lines.c.accrued_to, tables.rated_lines.c.period_end)


def _lines_by_tenant(rows: Iterable[Row[Any]]) -> dict[str, list[RatedLine]]:
    found: dict[str, list[RatedLine]] = {}
    for row in rows:
        line = rated_line(
            row, billing_account=row.billing_account, currency=row.currency, amount=row.amount, reason=row.reason
        )
        found.setdefault(row.tenant_id, []).append(line)
    return found


def amounts_by_tenant(connection: Connection) -> dict[tuple[str, str], Decimal]:
    """Everything that was ever rated: (tenant, currency) → exact amount."""
    table = tables.rated_lines
    key = (table.c.tenant_id, table.c.currency)
    return {
        (row[0], row[1]): row[2] for row in connection.execute(select(*key, func.sum(table.c.amount)).group_by(*key))
    }


def append(
    connection: Connection,
    period: BillingPeriod,
    lines: Collection[RatedLine],
    *,
    rating_nos: Mapping[str, int],
    entry_ids: Mapping[tuple[str, str], int],
    accrued_to: datetime,
) -> None:
    """Append lines, with the number of this rating by tenant and the accrual entry by tenant and billing account."""
    rows = [
        line_columns(line)
        | {
            "billing_account": line.billing_account,
            "period_start": period.start,
            "period_end": period.end,
            "accrued_to": accrued_to,
            "rating_no": rating_nos[line.identity.tenant_id],
            "currency": line.currency,
            "amount": line.amount,
            "reason": line.reason,
            "entry_id": entry_ids.get((line.identity.tenant_id, line.billing_account)),
        }
        for line in lines
    ]
    add_rows(connection, tables.rated_lines, rows)


def line_columns(line: RatedLine) -> dict[str, object]:
    """The columns that a rated line and an invoice line have in common."""
    of = line.identity
    model, adapter, region, tier = line.where
    return {
        "tenant_id": of.tenant_id,
        "subscription_id": of.subscription_id,
        "segment_no": of.segment_no,
        "service_start": line.service_start,
        "service_end": line.service_end,
        "plan": of.plan,
        "version": of.version,
        "charge_key": of.charge_key,
        "tier_no": of.tier_no,
        "kind": of.kind,
        "metric": str(line.metric),
        "model": model,
        "adapter": adapter,
        "region": region,
        "tier": tier,
        "unit_price": line.unit_price,
        "quantity": line.quantity,
        "tax_group": line.tax_group,
        "units": line.units,
        "free": line.free,
        "included": line.included,
    }


def rated_line(
    row: Row[tuple[object, ...]], *, billing_account: str, currency: str, amount: Decimal, reason: str
) -> RatedLine:
    """A rated line from a row with these columns; the rest as given."""
    return RatedLine(
        identity=LineIdentity(
            tenant_id=row.tenant_id,
            charge_key=row.charge_key,
            segment_no=row.segment_no,
            version=row.version,
            tier_no=row.tier_no,
            kind=row.kind,
            plan=row.plan,
            subscription_id=row.subscription_id,
        ),
        metric=row.metric,
        where=(row.model, row.adapter, row.region, row.tier),
        billing_account=billing_account,
        currency=currency,
        service_start=row.service_start,
        service_end=row.service_end,
        unit_price=row.unit_price,
        quantity=row.quantity,
        amount=amount,
        reason=reason,
        tax_group=row.tax_group,
        units=row.units,
        free=row.free,
        included=row.included,
    )
