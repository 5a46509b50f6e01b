"""A gateway's log as a witness from outside the adapter: each request that it admitted must have its event.

Compared request by request, by identity, so that no boundary of time blurs it. What is missing is told apart: counted
under another tenant, served by a replica that nobody knows, lost under a number (then the numbers say so already), or
never metered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import psycopg

from reconciliation.findings.finding import Finding, Interval, Kind, Share
from reconciliation.replay.material import Found, NotMappable
from serving_adapter.events import UsageEvent, decode_completed
from serving_adapter.identity import identity_of
from streams.rules.identity_keys import identity_key

BATCH: Final = 2000
MOST_MISSING: Final = 200_000
"""So many are looked at one by one, about 100 MB: more than that are found once these are mended."""
NEAR: Final = timedelta(hours=1)
"""How far a gateway's time of a request may lie from its event's, where that is looked for under another name."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A request that the log has and that is not counted."""

    event: UsageEvent
    at: datetime


def missing(
    connection: psycopg.Connection, material: Iterable[Found | NotMappable], begin: datetime, end: datetime
) -> tuple[list[Missing], bool]:
    """What of a log, completed in [begin, end), is not counted under its identity; and whether that is all of it.

    Lines that are no event are none.
    """
    found: list[Missing] = []
    batch: dict[bytes, Missing] = {}
    for each in material:
        if isinstance(each, Found):
            event, at = decode_completed(each.message)
            if begin <= at < end:
                batch[identity_key(identity_of(event))] = Missing(event, at)
        if len(batch) == BATCH:
            found += _absent(connection, batch)
            batch = {}
        if len(found) >= MOST_MISSING:
            return found, False
    return found + _absent(connection, batch), True


def _absent(connection: psycopg.Connection, batch: Mapping[bytes, Missing]) -> list[Missing]:
    rows = connection.execute(
        "select uuid_send(key) from usage.event_identities where key = any(%s)",
        ([UUID(bytes=key) for key in batch],),
        binary=True,
    )
    known = {row[0] for row in rows}
    return [each for key, each in batch.items() if key not in known]


def counted_as(connection: psycopg.Connection, absent: Sequence[Missing]) -> dict[tuple[str, int], str]:
    """(request, attempt) → the tenant under which it is counted, of those that are counted at all."""
    if not absent:
        return {}
    times = [each.at for each in absent]
    rows = connection.execute(
        "select request_id, attempt, tenant_id from usage.counting_events"
        " where completed_at between %s and %s and kind = 'usage' and request_id = any(%s)",
        (min(times) - NEAR, max(times) + NEAR, [each.event.request_id for each in absent]),
    )
    return {(row[0], row[1]): row[2] for row in rows}


def known_replicas(connection: psycopg.Connection) -> set[str]:
    """Replicas that reported, or numbered an event."""
    rows = connection.execute("select replica_id from usage.boots union select replica_id from usage.boot_numbers")
    return {row[0] for row in rows}


def judge(
    log: str,
    absent: Sequence[Missing],
    others: Mapping[tuple[str, int], str],
    replicas: Collection[str],
    numbers_missing: Mapping[str, int],
) -> list[Finding]:
    """What missing requests mean. `numbers_missing`: by replica, how many numbers have not come."""
    groups: dict[tuple[Kind, str, str], list[Missing]] = defaultdict(list)
    for each in absent:
        replica = each.event.replica_id or ""
        other = others.get((each.event.request_id, each.event.attempt))
        if other is not None:
            groups[Kind.WRONG_TENANT, replica, other].append(each)
        elif replica and replica not in replicas:
            groups[Kind.UNREGISTERED_REPLICA, replica, ""].append(each)
        else:
            groups[Kind.UNMETERED_REQUESTS, replica, ""].append(each)
    found = []
    for (kind, replica, other), listed in sorted(groups.items()):
        gone = numbers_missing.get(replica, 0) if replica else sum(numbers_missing.values())
        if kind is Kind.UNMETERED_REQUESTS and gone >= len(listed):
            continue  # they are lost events, and a finding of their own
        subject = {"log": log, "replica_id": replica} | ({"counted_as": other} if other else {})
        times = [each.at for each in listed]
        found.append(Finding(kind, subject, _cause(kind, log, replica, other), _shares(listed), min(times), max(times)))
    return found


def _cause(kind: Kind, log: str, replica: str, other: str) -> str:
    if kind is Kind.WRONG_TENANT:
        return (
            f"{log} admitted them for others, and they are counted as {other}'s: look who names tenants to the adapter"
        )
    if kind is Kind.UNREGISTERED_REPLICA:
        return f"{log} sent them to {replica}, of which no report and no event ever came: it runs without the adapter"
    where = f"replica {replica}" if replica else "a replica that the log does not name"
    return f"{log} sent them to {where}, no event was made for them, and no number is missing"


def _shares(listed: Iterable[Missing]) -> tuple[Share, ...]:
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for each in listed:
        e = each.event
        for at, count in enumerate((1, e.input_tokens, e.output_tokens, e.cache_hit_tokens)):
            sums[e.tenant_id, e.model][at] += count
    return tuple(Share(*key, *map(Interval.exactly, counts)) for key, counts in sorted(sums.items()))
