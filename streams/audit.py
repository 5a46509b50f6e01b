"""The audit log: who changed what, and when. Append-only, in the transaction of the change itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.types.json import Jsonb


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One administrative act."""

    audit_no: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: Mapping[str, Any]


def record(connection: psycopg.Connection, actor: str, action: str, subject: str, detail: Mapping[str, Any]) -> None:
    """Append one act, e.g. `("ada", "tenant.add", "tenant_123", {"name": "Acme"})`. No secrets in `detail`."""
    connection.execute(
        "insert into usage.audit_log (actor, action, subject, detail) values (%s, %s, %s, %s)",
        (actor, action, subject, Jsonb(dict(detail))),
    )


def entries(connection: psycopg.Connection, *, subject: str | None = None, limit: int = 100) -> list[AuditEntry]:
    """The latest acts, newest first."""
    rows = connection.execute(
        "select audit_no, at, actor, action, subject, detail from usage.audit_log"
        " where %(subject)s::text is null or subject = %(subject)s order by audit_no desc limit %(limit)s",
        {"subject": subject, "limit": limit},
    )
    return [AuditEntry(*row) for row in rows]
