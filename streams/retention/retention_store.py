"""What expires, in the database: identities, the feed for quotas, boots that ended; and what moves the horizon.

Nothing here decides how old is old enough (streams/rules/horizon.py) or when (streams/retention/expiry.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import psycopg
from psycopg import sql

from streams import audit

LOCKED_WITHIN: Final = "1s"
"""How long a lock that ingestion waits behind may be waited for; not got, it is tried again in the next round."""
SWEPT: Final = ("event_identities_other", "event_identities_rest", "event_versions", "identity_ages")
"""Tables of identities that are swept row by row; those of UUIDv7 go with their weeks."""
_OLDER: Final = sql.SQL(
    "usage.identified_at(t.key, t.completed_at) < %(before)s"
    " and not exists (select from usage.identity_ages as a where a.key = t.key and a.completed_at >= %(before)s)"
    # A version goes with its identity, never before it
    " and (t.key < '80000000-0000-0000-0000-000000000000' or not exists (select from usage.event_identities as i"
    "      where i.key = t.key and i.completed_at >= %(before)s))"
)
"""Whether an identity, by whatever time it was seen with, lies before."""
_PAGE_BYTES: Final = 8192
_BOOT_TABLES: Final = (
    "heartbeat_marks", "received_numbers", "replica_usage", "replica_reported", "engine_counters", "boot_numbers",
    "boots",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Swept:
    """A part of a sweep: rows that were forgotten, and whether the table's end is reached."""

    forgotten: int
    done: bool


def set_horizon(connection: psycopg.Connection, length: timedelta, *, actor: str) -> bool:
    """Set the horizon's length for all workers; False if it is that already."""
    changed = connection.execute(
        "update usage.ingest_rules set horizon = %(to)s where horizon <> %(to)s", {"to": length}
    ).rowcount
    if changed:
        audit.record(connection, actor, "horizon.set", "horizon", {"days": length / timedelta(days=1)})
    return bool(changed)


def set_closed_before(connection: psycopg.Connection, at: datetime | None, *, actor: str) -> bool:
    """Say up to when all periods are closed; False if that was known. It moves back when a period is opened again.

    Whoever closes periods calls this: streams know nothing of periods but this time.
    """
    changed = connection.execute(
        "update usage.ingest_rules set closed_before = %(to)s where closed_before is distinct from %(to)s", {"to": at}
    ).rowcount
    if changed:
        audit.record(connection, actor, "horizon.closed", "horizon", {"before": at.isoformat() if at else None})
    return bool(changed)


def move_forgotten(connection: psycopg.Connection, before: datetime) -> None:
    """Refuse from now on what lies before: only then may it be forgotten. No chunk is in flight meanwhile."""
    _move(connection, "forgotten_before", before)


def move_sealed(connection: psycopg.Connection, before: datetime) -> None:
    """Add nothing to the time before from now on: it can be archived for good. No chunk is in flight meanwhile."""
    _move(connection, "sealed_before", before)


def _move(connection: psycopg.Connection, column: str, before: datetime) -> None:
    with connection.transaction():
        connection.execute(f"set local lock_timeout = '{LOCKED_WITHIN}'")
        connection.execute("lock table usage.sources in exclusive mode")
        query = sql.SQL("update usage.ingest_rules set {0} = greatest({0}, %s)").format(sql.Identifier(column))
        connection.execute(query, (before,))


def add_weeks(connection: psycopg.Connection) -> None:
    """Make the partitions for the identities of this and the coming two weeks. Raises LockNotAvailable."""
    with connection.transaction():
        connection.execute(f"set local lock_timeout = '{LOCKED_WITHIN}'")
        connection.execute("select usage.add_identity_weeks(current_date, current_date + 14)")


def forget_weeks(connection: psycopg.Connection, before: datetime, *, dry_run: bool = False) -> int:
    """Drop the partitions of the weeks whose ids were all minted before; returns how many. Raises LockNotAvailable."""
    with connection.transaction():
        connection.execute(f"set local lock_timeout = '{LOCKED_WITHIN}'")
        row = connection.execute("select usage.forget_identity_weeks(%s, %s)", (before, dry_run)).fetchone()
    return int(row[0]) if row else 0


def blocks_of(connection: psycopg.Connection, table: str) -> int:
    """How many pages a table has."""
    row = connection.execute("select pg_relation_size(%s::regclass)", (f"usage.{table}",)).fetchone()
    return -(-int(row[0]) // _PAGE_BYTES) if row else 0


def sweep_is_due(connection: psycopg.Connection, table: str, before: datetime, every: timedelta) -> bool:
    """Whether a sweep is under way, or the last one went by a time that is older by `every`. Begins it."""
    row = connection.execute(
        "select swept is null, before from usage.identity_sweeps where table_name = %s", (table,)
    ).fetchone()
    if row is not None and (row[0] or before - row[1] < every):
        return bool(row[0])
    connection.execute(
        "insert into usage.identity_sweeps (table_name, before) values (%s, %s) on conflict (table_name)"
        " do update set next_block = 0, before = excluded.before, swept = null",
        (table, before),
    )
    return True


def sweep(connection: psycopg.Connection, table: str, blocks: int) -> Swept:
    """Go over the next pages of a table and delete the identities that are older than the sweep's time.

    In the order of the heap, so that it needs no index, reads each page once and holds no lock that an insert waits
    for. The next part goes on where this one ended, whoever makes it.
    """
    total = blocks_of(connection, table)
    with connection.transaction():
        row = connection.execute(
            "select next_block, before from usage.identity_sweeps where table_name = %s and swept is null for update",
            (table,),
        ).fetchone()
        if row is None:
            return Swept(0, True)
        first, before = row
        after = min(first + blocks, total)
        forgotten = connection.execute(
            sql.SQL("delete from usage.{} as t where ctid >= %(first)s::tid and ctid < %(after)s::tid and {}").format(
                sql.Identifier(table), _OLDER
            ),
            {"first": f"({first},0)", "after": f"({after},0)", "before": before},
        ).rowcount
        done = after >= total
        connection.execute(
            "update usage.identity_sweeps set next_block = %s, swept = case when %s then now() end"
            " where table_name = %s",
            (after, done, table),
        )
    return Swept(forgotten, done)


def older_identities(connection: psycopg.Connection, table: str, before: datetime) -> int:
    """How many rows a sweep would forget. Reads the whole table."""
    query = sql.SQL("select count(*) from usage.{} as t where {}").format(sql.Identifier(table), _OLDER)
    row = connection.execute(query, {"before": before}).fetchone()
    return int(row[0]) if row else 0


def drop_feed(connection: psycopg.Connection, before: datetime) -> int:
    """Drop the chunks of the quota feed that lie wholly before; returns how many. Raises LockNotAvailable."""
    with connection.transaction():
        connection.execute(f"set local lock_timeout = '{LOCKED_WITHIN}'")
        row = connection.execute("select usage.drop_feed_before(%s)", (before,)).fetchone()
    return int(row[0]) if row else 0


def fold_chunks(connection: psycopg.Connection, most: int) -> int:
    """Fold chunks of closed periods, and those of the open one that are hours old, into ranges; returns how many."""
    row = connection.execute("select usage.fold_applied_chunks(%s)", (most,)).fetchone()
    return int(row[0]) if row else 0


def foldable_chunks(connection: psycopg.Connection) -> int:
    """How many chunks may be folded: most of them will."""
    row = connection.execute(
        "select count(*) from usage.applied_chunks as c join usage.sources as s using (source)"
        " where usage.is_foldable(c.applied_at, c.next_position, (select closed_before from usage.ingest_rules),"
        " s.next_position)"
    ).fetchone()
    return int(row[0]) if row else 0


def older_feed(connection: psycopg.Connection, before: datetime) -> int:
    """How many chunks `drop_feed` would drop."""
    rows = connection.execute("select show_chunks('usage.quota_feed', older_than => %s::timestamptz)", (before,))
    return len(rows.fetchall())


# Ended with nothing open: a farewell with all its numbers here, all of it from a disk, or a person's word that nothing
# more will come.
_ENDED: Final = """
    select b.replica_id, b.boot_id, coalesce(n.received_through, 0), b.last_received_at
    from usage.boots as b left join usage.boot_numbers as n using (replica_id, boot_id)
    where b.last_received_at < %(before)s
      and not exists (select from usage.replica_usage_fills as f
                      where f.replica_id = b.replica_id and f.boot_id = b.boot_id)
      and (exists (select from usage.boot_write_offs as w
                   where w.replica_id = b.replica_id and w.boot_id = b.boot_id)
           or (b.farewell_at is not null and not b.not_durable and coalesce(n.received_through, 0) >= b.last_seq
               and not exists (select from usage.gaps as g where g.replica_id = b.replica_id
                               and g.boot_id = b.boot_id and g.closed_at is null)))
    order by b.last_received_at limit %(limit)s
"""


def ended_boots(connection: psycopg.Connection, before: datetime, limit: int) -> list[tuple[str, str, int, datetime]]:
    """Boots last heard of before: replica, boot, numbers received, last heard of."""
    return connection.execute(_ENDED, {"before": before, "limit": limit}).fetchall()


def forget_boots(connection: psycopg.Connection, before: datetime, limit: int) -> int:
    """Keep one row of each ended boot, and let numbers, counts and marks go. Gaps and findings stay as history."""
    with connection.transaction():
        found = ended_boots(connection, before, limit)
        for replica_id, boot_id, through, last in found:
            connection.execute(
                "insert into usage.ended_boots (replica_id, boot_id, received_through, events, last_received_at)"
                " select %(replica)s, %(boot)s, %(through)s, coalesce(sum(events), 0)::int8, %(last)s"
                " from usage.replica_usage where replica_id = %(replica)s and boot_id = %(boot)s",
                {"replica": replica_id, "boot": boot_id, "through": through, "last": last},
            )
            for table in _BOOT_TABLES:
                query = sql.SQL("delete from usage.{} where replica_id = %s and boot_id = %s")
                connection.execute(query.format(sql.Identifier(table)), (replica_id, boot_id))
    return len(found)
