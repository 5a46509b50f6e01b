"""What `tollbook streams status` shows: how far each partition is, what is missing, and what cannot be proven."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import psycopg

from console import witnesses
from console.output import document, err, listing, out
from streams import tenants
from streams.completeness import completeness_store, engine_store
from streams.ingest.logs import Log
from streams.ingest.sources import Feed
from streams.usage import quarantine
from streams.workers import status

GAPS_SHOWN: Final = 20
HELD_BACK_SHOWN: Final = 5
PARTITION_COLUMNS: Final = (
    "partition", "next_offset", "end_offset", "lag", "per_second", "applied", "duplicates", "quarantined", "late",
    "last_applied_at",
)  # fmt: skip
GAP_COLUMNS: Final = ("replica_id", "boot_id", "first_number", "last_number", "missing", "since", "alerted_at")


def show(
    connection: psycopg.Connection,
    logs: Mapping[Feed, Log],
    tenant_id: str | None = None,
    *,
    as_json: bool = False,
    as_csv: bool = False,
) -> None:
    """The status once; with a tenant's "complete to", if it is named. Totals and CSV are of usage.

    Raises UnknownTenant.
    """
    rows = {feed: [asdict(row) for row in status.partitions(connection, log)] for feed, log in logs.items()}
    usage = rows["usage"]
    refused = quarantine.counts(connection)
    if as_json:
        document(
            {
                "topic": logs["usage"].topic, "partitions": usage, "lag": _total_lag(usage),
                "per_second": sum(row["per_second"] for row in usage), "late": sum(row["late"] for row in usage),
                "replicas": {"topic": logs["replicas"].topic, "partitions": rows["replicas"]}, "quarantine": refused,
            }
            | _completeness(connection)
            | ({"tenant": _of_tenant(connection, tenant_id)} if tenant_id is not None else {})
        )  # fmt: skip
        return
    for feed, log in logs.items():
        if feed == "usage" or not as_csv:
            listing(rows[feed], PARTITION_COLUMNS, as_csv=as_csv, title=log.topic)
    if as_csv:
        return
    for feed, log in logs.items():
        for row in rows[feed]:
            if row["stopped_because"]:
                err.print(f"partition {row['partition']} of {log.topic} STOPPED: {row['stopped_because']}")
    out.print("quarantine: " + (", ".join(f"{reason} {count}" for reason, count in refused.items()) or "empty"))
    _print_completeness(connection)
    if tenant_id is not None:
        complete = _of_tenant(connection, tenant_id)["complete_to"]
        told = f"{complete:%Y-%m-%d %H:%M:%S.%f} UTC" if complete is not None else "unknown"
        out.print(f"complete to, for {tenant_id}: {told}")


def _of_tenant(connection: psycopg.Connection, tenant_id: str) -> dict[str, Any]:
    """A tenant's own part of completeness: replicas that never served it hold nothing back once they said farewell."""
    tenants.get(connection, tenant_id)
    complete = completeness_store.complete_to_of(connection, tenant_id)
    return {
        "tenant_id": tenant_id, "complete_to": complete.complete_to,
        "held_back_by": [{"replica_id": replica, "boot_id": boot} for replica, boot in complete.held_back_by],
    }  # fmt: skip


def _total_lag(rows: list[dict[str, Any]]) -> int | None:
    """Messages that wait in all partitions; None where one partition's position is about another log."""
    lags: list[int | None] = [row["lag"] for row in rows]
    known = [lag for lag in lags if lag is not None]
    return sum(known) if len(known) == len(lags) else None


def _completeness(connection: psycopg.Connection) -> dict[str, Any]:
    """What is known about completeness, for machines."""
    complete = completeness_store.complete_to_overall(connection)
    unnumbered = completeness_store.unnumbered(connection)
    return {
        "complete_to": complete.complete_to,
        "held_back_by": [{"replica_id": replica, "boot_id": boot} for replica, boot in complete.held_back_by],
        "open_gaps_in_all": completeness_store.count_open_gaps(connection),
        "open_gaps": [asdict(gap) for gap in completeness_store.open_gaps(connection)],
        "boots_without_farewell": [
            {"replica_id": boot.replica_id, "boot_id": boot.boot_id, "last_received_at": boot.last_received_at,
             "last_seq": boot.last_seq, "received_through": boot.received_through}
            for boot in completeness_store.broken_off(connection)
        ],
        "boots_not_durable": [
            {"replica_id": boot.replica_id, "boot_id": boot.boot_id, "durable_to": boot.durable_to}
            for boot in completeness_store.not_durable(connection)
        ],
        "unnumbered": {"total": sum(unnumbered.values()), "by_tenant": unnumbered},
        "differences": [
            asdict(found) | {"reported": found.reported._asdict(), "counted": found.counted._asdict()}
            for found in completeness_store.boot_differences(connection)
        ],
        "engines": witnesses.as_document(engine_store.report(connection)),
    }  # fmt: skip


def _print_completeness(connection: psycopg.Connection) -> None:
    """What is known about completeness, for people."""
    complete = completeness_store.complete_to_overall(connection)
    if complete.complete_to is not None:
        out.print(f"complete to: {complete.complete_to:%Y-%m-%d %H:%M:%S.%f} UTC, as far as replicas are known")
    elif complete.held_back_by:
        out.print("complete to: unknown, some replicas number their events but have not reported")
    else:
        out.print("complete to: unknown, no replica has reported")
    if held := complete.held_back_by:
        named = ", ".join(f"{replica}/{boot}" for replica, boot in held[:HELD_BACK_SHOWN])
        more = f" and {len(held) - HELD_BACK_SHOWN:,} more" if len(held) > HELD_BACK_SHOWN else ""
        out.print(f"no later because of {named}{more}", markup=False, soft_wrap=True)
    unnumbered = sum(completeness_store.unnumbered(connection).values())
    if unnumbered:
        out.print(f"unnumbered: {unnumbered:,} events, whose completeness cannot be proven")
    found = completeness_store.open_gaps(connection, GAPS_SHOWN)
    if found:
        in_all = completeness_store.count_open_gaps(connection)
        title = f"open gaps, the oldest first: {len(found)} of {in_all:,}"
        listing([asdict(gap) for gap in found], GAP_COLUMNS, title=title)
    for boot in completeness_store.broken_off(connection)[:GAPS_SHOWN]:
        err.print(
            f"boot {boot.boot_id} of {boot.replica_id} ended without a farewell; last number {boot.last_seq},"
            f" received through {boot.received_through}",
        )
    for boot in completeness_store.not_durable(connection)[:GAPS_SHOWN]:
        err.print(f"boot {boot.boot_id} of {boot.replica_id} served requests that no disk had (streams write-off)")
    witnesses.show(engine_store.report(connection))
