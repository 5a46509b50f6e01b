"""Reading the quarantine: refused messages, whole, with where they came from and why."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

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


_COLUMNS = "quarantine_id, source, position, reason, detail, tenant_id, appended_at, quarantined_at, message"


def listing(
    connection: psycopg.Connection, *, reason: str | None = None, tenant_id: str | None = None, limit: int = 100
) -> list[Quarantined]:
    """The latest refused messages, newest first."""
    rows = connection.execute(
        f"select {_COLUMNS} from usage.quarantine where (%(reason)s::text is null or reason = %(reason)s)"
        " and (%(tenant)s::text is null or tenant_id = %(tenant)s) order by quarantine_id desc limit %(limit)s",
        {"reason": reason, "tenant": tenant_id, "limit": limit},
    )
    return [Quarantined(*row) for row in rows]


def get(connection: psycopg.Connection, quarantine_id: int) -> Quarantined | None:
    """One refused message."""
    row = connection.execute(
        f"select {_COLUMNS} from usage.quarantine where quarantine_id = %s", (quarantine_id,)
    ).fetchone()
    return Quarantined(*row) if row else None


def counts(connection: psycopg.Connection) -> dict[str, int]:
    """How many messages are in quarantine, by reason."""
    rows = connection.execute("select reason, count(*) from usage.quarantine group by reason order by reason")
    return dict(rows.fetchall())
