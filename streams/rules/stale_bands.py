"""Times of tenants whose stored events have rating bands by older rules: not to be rated before they are rebuilt."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg


@dataclass(frozen=True, slots=True, order=True)
class StaleBands:
    """Whole hours of a tenant, [start, end), for which `streams rebuild` is due."""

    tenant_id: str
    start: datetime
    end: datetime


def stale_bands(connection: psycopg.Connection, start: datetime, end: datetime) -> list[StaleBands]:
    """What is stale in [start, end), by tenant and time."""
    rows = connection.execute(
        "select tenant_id, stale_from, stale_to from usage.stale_bands where stale_from < %s and stale_to > %s"
        " order by tenant_id, stale_from",
        (end, start),
    )
    return [StaleBands(*row) for row in rows]


def rules_version(connection: psycopg.Connection) -> int:
    """Grows with each change of the rules of rating bands."""
    row = connection.execute("select rating_bands_version from usage.ingest_rules").fetchone()
    assert row is not None, "the row is made with its table and cannot be deleted"
    return int(row[0])


_OR_LONGER: Final = (
    "on conflict (tenant_id, stale_from) do update set stale_to = greatest(stale_bands.stale_to, excluded.stale_to)"
)


def note(connection: psycopg.Connection, tenant_id: str, since: datetime) -> None:
    """Note that from a moment on a tenant's events, if it has any, were marked by other rules than it has."""
    connection.execute(
        "insert into usage.stale_bands"
        " select tenant_id, min(bucket), max(bucket) + interval '1 hour' from usage.windows_1h"
        " where tenant_id = %s and bucket >= date_trunc('hour', %s::timestamptz) group by tenant_id"
        f" {_OR_LONGER}",
        (tenant_id, since),
    )


def settle(connection: psycopg.Connection, start: datetime, end: datetime) -> None:
    """Note that [start, end) goes by today's rules."""
    overlapping = stale_bands(connection, start, end)
    connection.execute("delete from usage.stale_bands where stale_from < %s and stale_to > %s", (end, start))
    left = [
        (stale.tenant_id, since, until)
        for stale in overlapping
        for since, until in ((stale.start, start), (end, stale.end))
        if since < until
    ]
    with connection.cursor() as cursor:
        cursor.executemany(
            f"insert into usage.stale_bands values (%s, %s, %s) {_OR_LONGER}",
            left,
        )
