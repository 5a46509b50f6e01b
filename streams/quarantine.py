"""Reading the quarantine: refused messages, whole, with where they came from and why."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

import psycopg


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One refused message."""

    quarantine_id: int
    source: str
    position: int
    reason: str
    detail: str
    tenant_id: str | None
    appended_at: datetime
    quarantined_at: datetime
    message: bytes
    estimated_value: Decimal | None
    currency: str | None
    outcome: str | None
    """None while it waits, `released` or `discarded`."""
    resolved_by: str | None


_QUERY: Final = (
    "select q.quarantine_id, q.source, q.position, q.reason, q.detail, q.tenant_id, q.appended_at, q.quarantined_at,"
    " q.message, q.estimated_value, q.currency, r.outcome, r.actor"
    " from usage.quarantine as q left join usage.quarantine_resolutions as r using (quarantine_id)"
)


def listing(
    connection: psycopg.Connection,
    *,
    reason: str | None = None,
    tenant_id: str | None = None,
    resolved: bool = False,
    limit: int = 100,
) -> list[Quarantined]:
    """The latest refused messages that wait (with `resolved`: all), newest first."""
    rows = connection.execute(
        _QUERY + " where (%(reason)s::text is null or q.reason = %(reason)s)"
        " and (%(tenant)s::text is null or q.tenant_id = %(tenant)s) and (%(resolved)s or r.outcome is null)"
        " order by q.quarantine_id desc limit %(limit)s",
        {"reason": reason, "tenant": tenant_id, "resolved": resolved, "limit": limit},
    )
    return [Quarantined(*row) for row in rows]


def get(connection: psycopg.Connection, quarantine_id: int) -> Quarantined | None:
    """One refused message."""
    row = connection.execute(_QUERY + " where q.quarantine_id = %s", (quarantine_id,)).fetchone()
    return Quarantined(*row) if row else None


def counts(connection: psycopg.Connection) -> dict[str, int]:
    """How many messages wait in quarantine, by reason."""
    rows = connection.execute(
        "select reason, count(*) from usage.quarantine as q where not exists (select from"
        " usage.quarantine_resolutions as r where r.quarantine_id = q.quarantine_id) group by reason order by reason"
    )
    return dict(rows.fetchall())
