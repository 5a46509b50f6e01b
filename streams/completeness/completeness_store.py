"""Reading boots, gaps, and what replicas and events say; writing what was found about a boot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Literal

import psycopg
from psycopg.rows import class_row

from streams import audit
from streams.alerts import Alert
from streams.completeness.complete_to import Boot, BootKey, Completeness, TenantShare, complete_to, tenant_complete_to
from streams.completeness.witnesses import Comparable, Counts, Difference, comparable, differences
from streams.errors import UnknownBoot

_BOOTS: Final = """
    select replica_id, boot_id, b.first_received_at, b.last_received_at, b.begun_at, b.heartbeat_at,
           coalesce(b.last_seq, 0) as last_seq, b.started, b.ended, b.open, b.clock_offset_ms, b.farewell_at,
           b.quiet_since, coalesce(b.not_durable, false) as not_durable, b.durable_to,
           coalesce(n.received_through, 0) as received_through, coalesce(n.highest, 0) as highest, n.proven_to,
           w.replica_id is not null as written_off
    from usage.boots as b full join usage.boot_numbers as n using (replica_id, boot_id)
    left join usage.boot_write_offs as w using (replica_id, boot_id)
"""
_UNFINISHED: Final = """
    where w.replica_id is null and (b.farewell_at is null or b.not_durable
          or coalesce(n.received_through, 0) < greatest(b.last_seq, coalesce(n.highest, 0)))
"""
_THESE_BOOTS: Final = "(replica_id, boot_id) in (select * from unnest(%s::text[], %s::text[]))"
_OF_THIS_BOOT: Final = "f.replica_id = b.replica_id and f.boot_id = b.boot_id"
SINCE_LAST_HEARD: Final = "f.found_at >= b.last_received_at"
"""Of a finding that a boot is over: whether it stands. While Kafka is away all boots are silent, and they go on."""
ALERT_AGAIN_AFTER: Final = timedelta(hours=1)
CountsTable = Literal["replica_reported", "replica_counts"]


@dataclass(frozen=True, slots=True)
class StoredGap:
    """A gap: `missing` of first_number…last_number, known since `since`."""

    replica_id: str
    boot_id: str
    first_number: int
    last_number: int
    missing: int
    since: datetime
    alerted_at: datetime | None
    closed_at: datetime | None


@dataclass(frozen=True, slots=True)
class BootDifference:
    """What heartbeats of a boot and counted events do not agree on, for one tenant and model."""

    replica_id: str
    boot_id: str
    tenant_id: str
    model: str
    comparable: str
    reported: Counts
    counted: Counts


def unfinished_boots(connection: psycopg.Connection) -> list[Boot]:
    """Boots of which something is still to be expected."""
    with connection.cursor(row_factory=class_row(Boot)) as cursor:
        return cursor.execute(_BOOTS + _UNFINISHED + " order by replica_id, boot_id").fetchall()


def all_boots(connection: psycopg.Connection) -> list[Boot]:
    """Every boot that reported, or numbered an event; with its highest number, folded or not, as what is counted is."""
    with connection.cursor(row_factory=class_row(Boot)) as cursor:
        boots = cursor.execute(_BOOTS + " order by replica_id, boot_id").fetchall()
    arrived = {
        (replica_id, boot_id): highest
        for replica_id, boot_id, highest in connection.execute(
            "select replica_id, boot_id, max(number) from usage.number_fills, unnest(numbers) as number group by 1, 2"
        )
    }
    return [replace(boot, highest=max(boot.highest, arrived.get(boot.key, 0))) for boot in boots]


def get_boot(connection: psycopg.Connection, key: BootKey) -> Boot:
    """One boot. Raises UnknownBoot, also where it is so long over that its numbers were let go of."""
    with connection.cursor(row_factory=class_row(Boot)) as cursor:
        boot = cursor.execute(_BOOTS + " where replica_id = %s and boot_id = %s", key).fetchone()
    if boot is not None:
        return boot
    if forgotten_boots(connection, [key]):
        raise UnknownBoot(
            f"boot {key[1]} of replica {key[0]} is over, and its numbers were let go of (docs/retention.md)"
        )
    raise UnknownBoot(f"no boot {key[1]} of replica {key[0]}: `tollbook streams status --json` lists them")


def last_farewell(connection: psycopg.Connection) -> datetime | None:
    """The latest time at which a boot said farewell; none that was written off."""
    row = connection.execute(
        "select max(greatest(b.farewell_at, n.proven_to)) from usage.boots as b"
        " left join usage.boot_numbers as n using (replica_id, boot_id)"
        " left join usage.boot_write_offs as w using (replica_id, boot_id)"
        " where b.farewell_at is not null and w.replica_id is null"
    ).fetchone()
    return row[0] if row else None


def complete_to_overall(connection: psycopg.Connection) -> Completeness:
    """The time up to which every known replica has reported everything."""
    return complete_to(unfinished_boots(connection), last_farewell(connection))


def complete_to_of(connection: psycopg.Connection, tenant_id: str) -> Completeness:
    """The same for one tenant. What an emitter numbers over HTTP can be missed only by those it may speak for."""
    boots = unfinished_boots(connection)
    of_others = _emitters_of_others(connection, tenant_id, [b.key for b in boots if b.first_received_at is None])
    boots = [boot for boot in boots if boot.key not in of_others]
    shares = _shares(connection, tenant_id, [boot.key for boot in boots if boot.farewell_at is not None])
    return tenant_complete_to(boots, shares, last_farewell(connection))


def _emitters_of_others(
    connection: psycopg.Connection, tenant_id: str, unreported: Sequence[BootKey]
) -> set[BootKey]:  # fmt: skip
    """Those of the given boots whose numbers are given by holders of keys, none of whom ever might speak for a tenant.

    They number under their keys' names alone (`http/http_events.py`), and have no way to send heartbeats.
    """
    if not unreported:
        return set()
    rows = connection.execute(
        "select b.replica_id, b.boot_id from unnest(%s::text[], %s::text[]) as b (replica_id, boot_id)"
        " join usage.access_keys as k on k.kind = 'emitter' and (b.replica_id = k.name"
        "  or starts_with(b.replica_id, k.name || '.') or starts_with(b.replica_id, k.name || '/'))"
        " group by 1, 2 having not bool_or(%s = any(k.tenants) or (k.all_tenants and not starts_with(%s, '_')))",
        (*map(list, zip(*unreported, strict=True)), tenant_id, tenant_id),
    )
    return {(row[0], row[1]) for row in rows}


def _shares(connection: psycopg.Connection, tenant_id: str, keys: Sequence[BootKey]) -> dict[BootKey, TenantShare]:
    """The tenant's part of each of these boots."""
    rows = connection.execute(
        "select k.replica_id, k.boot_id,"
        " (select coalesce(sum(events), 0)::int8 from usage.replica_reported as r"
        "  where r.replica_id = k.replica_id and r.boot_id = k.boot_id and r.tenant_id = %(tenant)s),"
        " (select coalesce(sum(events), 0)::int8 from usage.replica_counts as u"
        "  where u.replica_id = k.replica_id and u.boot_id = k.boot_id and u.tenant_id = %(tenant)s),"
        " (select coalesce(sum(events), 0)::int8 from usage.replica_reported as r"
        "  where r.replica_id = k.replica_id and r.boot_id = k.boot_id)"
        " from unnest(%(replicas)s::text[], %(boots)s::text[]) as k (replica_id, boot_id)",
        {"tenant": tenant_id, "replicas": [key[0] for key in keys], "boots": [key[1] for key in keys]},
    )
    return {(row[0], row[1]): TenantShare(*row[2:]) for row in rows}


def unnumbered(connection: psycopg.Connection) -> dict[str, int]:
    """Events that carry no number, by tenant: counted, but their completeness cannot be proven."""
    rows = connection.execute(
        "select tenant_id, sum(events)::int8 from usage.replica_counts where replica_id = ''"
        " group by tenant_id order by tenant_id"
    )
    return dict(rows.fetchall())


def open_gaps(connection: psycopg.Connection, limit: int = 1000) -> list[StoredGap]:
    """Gaps of which something is still missing, the oldest first."""
    with connection.cursor(row_factory=class_row(StoredGap)) as cursor:
        return cursor.execute(
            "select replica_id, boot_id, first_number, last_number, missing, since, alerted_at, closed_at"
            " from usage.gaps where closed_at is null order by since, replica_id, boot_id, first_number limit %s",
            (limit,),
        ).fetchall()


def count_open_gaps(connection: psycopg.Connection) -> int:
    """How many gaps are open."""
    row = connection.execute("select count(*) from usage.gaps where closed_at is null").fetchone()
    assert row is not None, "an aggregate always has a row"
    return int(row[0])


_TELL_GAPS: Final = """
    with due as (
        select * from usage.gaps where closed_at is null and (
            (alerted_at is null and since <= %(settled)s)
            or (grown_at <= %(settled)s and (missing >= 2 * told_missing or told_at <= %(again)s)))
    ), told as (
        update usage.gaps as g set alerted_at = coalesce(g.alerted_at, %(now)s), told_at = %(now)s,
            told_missing = g.missing, grown_at = null
        from due where (g.replica_id, g.boot_id, g.first_number) = (due.replica_id, due.boot_id, due.first_number)
    )
    select replica_id, boot_id, first_number, last_number, missing, since, grown_at, told_missing,
        alerted_at is not null from due
"""


def gap_alerts(connection: psycopg.Connection, now: datetime, after: timedelta) -> list[Alert]:
    """Mark the gaps that are older than `after` as alerted, and return what to raise.

    One that has grown since is alerted again: when twice as much is missing, and otherwise an hour after the last time.
    """
    given = {"now": now, "settled": now - after, "again": now - ALERT_AGAIN_AFTER}
    found = []
    for replica_id, boot_id, first, last, missing, since, grown_at, told, again in connection.execute(
        _TELL_GAPS, given
    ):
        subject = {"replica_id": replica_id, "boot_id": boot_id, "first_number": first}
        detail = f"{missing} of the numbers {first} to {last} of boot {boot_id} have not arrived since "
        if again:
            subject |= {"missing": missing, "grown_at": grown_at.isoformat()}
            detail += f"{since.isoformat()}, some of them since {grown_at.isoformat()}; it was alerted with {told}"
        else:
            detail += since.isoformat()
        found.append(Alert("gap", replica_id, subject, detail, now))
    return found


def reported_boots(connection: psycopg.Connection, finding: str) -> list[Boot]:
    """Boots that have reported and are not over, or are not durable, and of which `finding` is not known yet.

    None that was written off. That a boot broke off is known for as long as nothing more is heard of it.
    """
    with connection.cursor(row_factory=class_row(Boot)) as cursor:
        return cursor.execute(
            _BOOTS + " where w.replica_id is null and (b.farewell_at is null or b.not_durable)"
            " and b.replica_id is not null and not exists (select from usage.boot_findings as f"
            f" where {_OF_THIS_BOOT} and f.finding = %s and (f.finding <> 'no_farewell' or {SINCE_LAST_HEARD}))",
            (finding,),
        ).fetchall()


def latest_beginnings(connection: psycopg.Connection) -> dict[str, Boot]:
    """Of each replica, the boot that was heard of last for the first time."""
    with connection.cursor(row_factory=class_row(Boot)) as cursor:
        rows = cursor.execute(
            "select distinct on (replica_id) replica_id, boot_id, first_received_at from usage.boots"
            " order by replica_id, first_received_at desc"
        ).fetchall()
    return {boot.replica_id: boot for boot in rows}


def record_finding(connection: psycopg.Connection, boot: Boot, finding: str, alert: Alert) -> None:
    """Note that something was found about a boot, once."""
    connection.execute(
        "insert into usage.boot_findings (replica_id, boot_id, finding, alert_id, found_at)"
        " values (%s, %s, %s, %s, %s) on conflict do nothing",
        (boot.replica_id, boot.boot_id, finding, alert.alert_id, alert.raised_at),
    )


def broken_off(connection: psycopg.Connection) -> list[Boot]:
    """Boots that were found to have ended without a farewell, and have not been heard of since."""
    with connection.cursor(row_factory=class_row(Boot)) as cursor:
        return cursor.execute(
            _BOOTS + " where b.farewell_at is null and w.replica_id is null and exists (select from"
            f" usage.boot_findings as f where {_OF_THIS_BOOT} and f.finding = 'no_farewell' and {SINCE_LAST_HEARD})"
            " order by b.last_received_at"
        ).fetchall()


def not_durable(connection: psycopg.Connection) -> list[Boot]:
    """Boots that served what no disk had, and that nobody has written off."""
    with connection.cursor(row_factory=class_row(Boot)) as cursor:
        return cursor.execute(
            _BOOTS + " where b.not_durable and w.replica_id is null order by b.last_received_at"
        ).fetchall()


def written_off_in_vain(connection: psycopg.Connection) -> list[Boot]:
    """Boots that were written off, have been heard of since, and have not said farewell."""
    with connection.cursor(row_factory=class_row(Boot)) as cursor:
        return cursor.execute(
            _BOOTS + " where b.last_received_at > w.written_off_at and b.farewell_at is null order by replica_id"
        ).fetchall()


def write_off(connection: psycopg.Connection, key: BootKey, *, actor: str, reason: str) -> bool:
    """Note a person's word that nothing more will come of a boot; audited. False if it was written off already.

    Raises UnknownBoot.
    """
    replica_id, boot_id = key
    with connection.transaction():
        boot = get_boot(connection, key)
        if boot.written_off:
            return False
        connection.execute(
            "insert into usage.boot_write_offs (replica_id, boot_id, actor, reason) values (%s, %s, %s, %s)",
            (replica_id, boot_id, actor, reason),
        )
        detail = {"reason": reason, "received_through": boot.received_through, "known": boot.known}
        audit.record(connection, actor, "streams.write-off", f"{replica_id}/{boot_id}", detail)
    return True


def boot_differences(connection: psycopg.Connection) -> list[BootDifference]:
    """Where heartbeats' cumulative counts and counted events of a boot do not agree, as far as they compare now."""
    reported = _counts(connection, "replica_reported")
    counted = _counts(connection, "replica_counts")
    found = []
    for boot in all_boots(connection):
        if boot.first_received_at is None:
            continue  # it reported nothing
        how = comparable(boot.last_seq, boot.received_through, boot.highest)
        found += [
            _named(boot, how, difference)
            for difference in differences(reported.get(boot.key, {}), counted.get(boot.key, {}), how)
        ]
    return found


def counts_of_boots(
    connection: psycopg.Connection, table: CountsTable, boots: Sequence[BootKey]
) -> dict[BootKey, dict[tuple[str, str], Counts]]:
    """What some boots reported (`replica_reported`), or what was counted of them, by tenant and model."""
    return _counts(connection, table, [list(named) for named in zip(*boots, strict=True)] or [[], []])


def _counts(
    connection: psycopg.Connection, table: CountsTable, boots: Sequence[Sequence[str]] | None = None
) -> dict[BootKey, dict[tuple[str, str], Counts]]:
    """Of all boots, or of those whose replicas and boots are given."""
    found: dict[BootKey, dict[tuple[str, str], Counts]] = defaultdict(dict)
    which = "replica_id <> ''" if boots is None else _THESE_BOOTS
    rows = connection.execute(
        "select replica_id, boot_id, tenant_id, model, events, input_tokens, output_tokens, cache_hit_tokens"
        f" from usage.{table} where {which}",
        boots or (),
    )
    for replica_id, boot_id, tenant_id, model, *counts in rows:
        found[replica_id, boot_id][tenant_id, model] = Counts(*counts)
    return found


def _named(boot: Boot, how: Comparable, difference: Difference) -> BootDifference:
    tenant_id, model = difference.key
    return BootDifference(
        *boot.key, tenant_id, model, how.value, Counts(*difference.reported), Counts(*difference.counted)
    )


def forgotten_boots(connection: psycopg.Connection, boots: Iterable[BootKey]) -> set[BootKey]:
    """Those of the given boots that have ended and been forgotten."""
    keys = list(boots)
    rows = connection.execute(
        "select replica_id, boot_id from usage.ended_boots"
        " where (replica_id, boot_id) in (select * from unnest(%s::text[], %s::text[]))",
        ([key[0] for key in keys], [key[1] for key in keys]),
    )
    return {(row[0], row[1]) for row in rows}
