"""The register of unbillable usage in the database: events that came later than their contract bills (money 7)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, func, select
from sqlalchemy.dialects.postgresql import insert

from billing import tables
from billing.periods import BillingPeriod
from streams.rules.windows import AttemptUsage, UsageQuantity

EventKey = tuple[str, int, str, int]
"""Of a tenant's event: request, attempt, kind, correction."""
_KEYS: Final = ("model", "adapter", "region", "tier", "status", "fault", "usage_source", "rating_band")
_COUNTS: Final = ("requests", "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us")


@dataclass(frozen=True, slots=True)
class UnbillableEvent:
    """An event that is too old to be billed: what it counts, by which horizon, and who approved that."""

    billing_account: str
    kind: str
    correction_no: int
    usage: AttemptUsage
    billed_to: datetime
    horizon_days: int
    unbillable_no: int = 0
    approved_by: str | None = None
    reason: str | None = None

    @property
    def key(self) -> EventKey:
        """What tells it from the tenant's other events."""
        return self.usage.request_id, self.usage.attempt, self.kind, self.correction_no


def judged_below(connection: Connection, period: BillingPeriod) -> dict[str, int]:
    """Up to which position of each source the period's late usage was judged; nothing if it never was."""
    table = tables.late_cuts
    query = (
        select(table.c.below)
        .where(table.c.period_start == period.start, table.c.period_end == period.end)
        .order_by(table.c.late_cut_no.desc())
        .limit(1)
    )
    return dict(connection.execute(query).scalar() or {})


def judged(
    connection: Connection, period: BillingPeriod, below: Mapping[str, int], found: Iterable[UnbillableEvent]
) -> None:
    """Record that late usage was judged up to these positions, and what of it is too old."""
    rows = [
        {
            "billing_account": each.billing_account,
            "kind": each.kind,
            "correction_no": each.correction_no,
            "request_id": each.usage.request_id,
            "attempt": each.usage.attempt,
            "completed_at": each.usage.completed_at,
            "billed_to": each.billed_to,
            "horizon_days": each.horizon_days,
            **asdict(each.usage.quantity),
        }
        for each in found
    ]
    if rows:
        connection.execute(insert(tables.unbillable_usage).on_conflict_do_nothing(), rows)
    connection.execute(
        tables.late_cuts.insert().values(period_start=period.start, period_end=period.end, below=dict(below))
    )


def of_period(
    connection: Connection, period: BillingPeriod, tenants: Collection[str] | None = None
) -> dict[str, list[UnbillableEvent]]:
    """What is too old among the events that completed in a period, by tenant, in order of completion."""
    table, approvals = tables.unbillable_usage, tables.unbillable_approvals
    query = (
        select(table, approvals.c.approved_by, approvals.c.reason)
        .join(approvals, approvals.c.unbillable_no == table.c.unbillable_no, isouter=True)
        .where(table.c.completed_at >= period.start, table.c.completed_at < period.end)
        .order_by(table.c.completed_at, table.c.unbillable_no)
    )
    if tenants is not None:
        query = query.where(table.c.tenant_id.in_(tenants))
    found: dict[str, list[UnbillableEvent]] = defaultdict(list)
    for row in connection.execute(query):
        found[row.tenant_id].append(_event(row))
    return dict(found)


def last(connection: Connection) -> int:
    """The last number of the register; 0 while it is empty."""
    column = tables.unbillable_usage.c.unbillable_no
    return int(connection.execute(select(func.coalesce(func.max(column), 0))).scalar_one())


def approve(connection: Connection, numbers: Collection[int], reason: str, actor: str) -> int:
    """Record who approved that events stay unbilled; how many of them nobody had approved."""
    rows = [{"unbillable_no": number, "approved_by": actor, "reason": reason} for number in sorted(numbers)]
    if not rows:
        return 0
    made = connection.execute(
        insert(tables.unbillable_approvals)
        .values(rows)
        .on_conflict_do_nothing()
        .returning(tables.unbillable_approvals.c.unbillable_no)
    )
    return len(made.all())


def _event(row: Row[Any]) -> UnbillableEvent:
    quantity = UsageQuantity(row.tenant_id, *(getattr(row, name) for name in (*_KEYS, *_COUNTS)))
    return UnbillableEvent(
        row.billing_account,
        row.kind,
        row.correction_no,
        AttemptUsage(row.request_id, row.attempt, row.completed_at, quantity),
        row.billed_to,
        row.horizon_days,
        row.unbillable_no,
        row.approved_by,
        row.reason,
    )
