"""Record what a pool of GPUs costs an hour, from when on."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Engine

from billing.costs import pool_store
from billing.costs.pools import Pool, PoolVersion
from billing.database import raw, transaction
from billing.errors import PoolRefused
from billing.money import plain
from billing.periods import written
from streams import audit


def set_gpu_pool(engine: Engine, pool: Pool, *, actor: str, dry_run: bool = False) -> list[PoolVersion]:
    """Record the versions that are not recorded yet; which those are. Raises PoolRefused.

    It is a memo book, from which nothing is booked or invoiced: what a pool cost in the past can be put right any time.
    """
    with transaction(engine, dry_run=dry_run) as connection:
        pool_store.lock(connection)
        known = next((each for each in pool_store.pools(connection) if each.name == pool.name), None)
        if known is not None and known.currency != pool.currency:
            raise PoolRefused(f"pool {pool.name} is paid in {known.currency}: give one in {pool.currency} another name")
        new = [version for version in pool.versions if known is None or version not in known.versions]
        pool_store.add(connection, pool, new, actor)
        for version in new:
            detail = {
                "from": written(version.since), "currency": pool.currency, "gpus": version.gpus,
                "gpu_hour": plain(version.gpu_hour), "overhead_hour": plain(version.overhead_hour),
            }  # fmt: skip
            audit.record(raw(connection), actor, "cost.pool", pool.name, detail)
    return new


def gpu_pools(engine: Engine, *, as_of: datetime | None = None) -> list[Pool]:
    """All pools, or what was recorded of them by a moment."""
    with transaction(engine) as connection:
        return pool_store.pools(connection, as_of=as_of)
