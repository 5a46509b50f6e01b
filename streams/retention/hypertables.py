"""What there is of TimescaleDB: its edition, the intervals of chunks, compression where the edition has it."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import psycopg

from streams import audit

COMMUNITY: Final = "timescale"
APACHE: Final = "apache"
COMPRESSED: Final = {"events": ("tenant_id", "completed_at"), "windows_1m": ("tenant_id", "bucket")}
"""Tables that compress: what a segment is by, and its order."""


def edition(connection: psycopg.Connection) -> str:
    """`timescale` (community: compression, policies) or `apache` (neither)."""
    row = connection.execute("select current_setting('timescaledb.license', true)").fetchone()
    return str(row[0]) if row and row[0] else APACHE


def shared_memory(connection: psycopg.Connection) -> int:
    """PostgreSQL's own memory for pages, in bytes."""
    row = connection.execute("select pg_size_bytes(current_setting('shared_buffers'))").fetchone()
    assert row is not None, "a function always has a row"
    return int(row[0])


def intervals(connection: psycopg.Connection) -> dict[str, timedelta]:
    """The interval that new chunks of each hypertable get."""
    rows = connection.execute(
        "select hypertable_name, time_interval from timescaledb_information.dimensions"
        " where hypertable_schema = 'usage' order by 1"
    )
    return dict(rows.fetchall())


def set_interval(connection: psycopg.Connection, table: str, interval: timedelta, *, actor: str) -> bool:
    """Set the interval of chunks to come; False if it is that already. Chunks that are there stay as they are."""
    if intervals(connection).get(table) == interval:
        return False
    connection.execute("select set_chunk_time_interval(%s::regclass, %s::interval)", (f"usage.{table}", interval))
    audit.record(connection, actor, "chunks.interval", table, {"hours": interval / timedelta(hours=1)})
    return True


def compress_after(connection: psycopg.Connection, after: timedelta, *, actor: str) -> list[str]:
    """On the community edition: let TimescaleDB compress chunks that are older. Returns the tables; none on Apache-2.

    `after` lies beyond the horizon, so that what may still be superseded or corrected is not compressed yet.
    """
    if edition(connection) != COMMUNITY:
        return []
    for table, (segment, order) in COMPRESSED.items():
        connection.execute(
            f"alter table usage.{table} set (timescaledb.compress, timescaledb.compress_segmentby = '{segment}',"
            f" timescaledb.compress_orderby = '{order}')"
        )
        connection.execute(
            "select add_compression_policy(%s::regclass, %s::interval, if_not_exists => true)",
            (f"usage.{table}", after),
        )
    audit.record(connection, actor, "chunks.compress", "events", {"after_days": after / timedelta(days=1)})
    return list(COMPRESSED)
