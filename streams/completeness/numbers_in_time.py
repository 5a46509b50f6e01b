"""Which boots may have made events in a span of time, and which of their numbers are missing."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import psycopg
from psycopg.rows import class_row

from streams.completeness.completeness_store import StoredGap

_WITHIN: Final = """
    coalesce(n.proven_to, b.begun_at, b.first_received_at, '-infinity') < %(end)s
    and coalesce((
        select min(m.reported_at) from usage.heartbeat_marks as m
        where (m.replica_id, m.boot_id) = (g.replica_id, g.boot_id) and m.last_seq >= g.last_number
    ), b.farewell_at, b.heartbeat_at, 'infinity') >= %(begin)s
"""
"""From what was proven before it to the first heartbeat that knew of all of it; where none is kept, to the last."""


def missing_between(connection: psycopg.Connection, begin: datetime, end: datetime) -> list[StoredGap]:
    """Open gaps that may hold events completed in [begin, end), of boots that nobody has written off."""
    with connection.cursor(row_factory=class_row(StoredGap)) as cursor:
        return cursor.execute(
            "select g.replica_id, g.boot_id, first_number, last_number, missing, since, alerted_at, closed_at"
            " from usage.gaps as g left join usage.boots as b using (replica_id, boot_id)"
            " left join usage.boot_numbers as n using (replica_id, boot_id)"
            " left join usage.boot_write_offs as w using (replica_id, boot_id)"
            f" where closed_at is null and w.replica_id is null and {_WITHIN} order by 1, 2, 3",
            {"begin": begin, "end": end},
        ).fetchall()


def boots_between(connection: psycopg.Connection, begin: datetime, end: datetime) -> int:
    """How many boots may have made events in [begin, end)."""
    row = connection.execute(
        "select count(*) from usage.boots as b full join usage.boot_numbers as n using (replica_id, boot_id)"
        " where coalesce(b.begun_at, b.first_received_at, '-infinity') < %(end)s"
        " and coalesce(b.farewell_at, b.heartbeat_at, 'infinity') >= %(begin)s",
        {"begin": begin, "end": end},
    ).fetchone()
    return int(row[0]) if row else 0
