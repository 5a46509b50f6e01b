"""Pools of GPUs in the database: added, never changed."""

from __future__ import annotations

from datetime import datetime
from itertools import groupby

from sqlalchemy import Connection, func, select

from billing import tables
from billing.costs.pools import Pool, PoolVersion


def lock(connection: Connection) -> None:
    """Let changes of pools go one after another, until the transaction ends."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("gpu_pools", 0))))


def add(connection: Connection, pool: Pool, versions: list[PoolVersion], actor: str) -> None:
    """Record versions; one that was recorded for the same hour before is replaced by it."""
    for version in versions:
        connection.execute(
            tables.gpu_pool_versions.insert().values(
                pool=pool.name,
                currency=pool.currency,
                valid_from=version.since,
                gpus=version.gpus,
                gpu_hour=version.gpu_hour,
                overhead_hour=version.overhead_hour,
                recorded_by=actor,
            )
        )


def pools(connection: Connection, *, as_of: datetime | None = None) -> list[Pool]:
    """All pools, by name, with the versions that hold (or did, by what was recorded by a moment)."""
    table = tables.gpu_pool_versions
    query = select(table).order_by(table.c.pool, table.c.valid_from, table.c.gpu_pool_version_no)
    if as_of is not None:
        query = query.where(table.c.recorded_at <= as_of)
    found = []
    for name, rows in groupby(connection.execute(query), key=lambda row: str(row.pool)):
        listed = list(rows)
        latest = {row.valid_from: row for row in listed}
        versions = (PoolVersion(at, row.gpus, row.gpu_hour, row.overhead_hour) for at, row in sorted(latest.items()))
        found.append(Pool(name, listed[0].currency, tuple(versions)))
    return found
