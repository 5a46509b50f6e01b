"""A gateway's log as a witness from outside the adapter: each request that it admitted must have its event.

Compared request by request, by identity, so that no boundary of time blurs it. What is missing is told apart: counted
under another tenant, served by a replica that nobody knows, lost under a number (then the numbers say so already), or
never metered. A log has no numbers: where a tenant and model lost events, what is more than those was never metered,
at least.
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
    lost: Mapping[str, Sequence[Share]],
) -> list[Finding]:
    """What missing requests mean. `lost`: by replica, what was lost under its numbers."""
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
        among: Sequence[Share] = ()
        if kind is Kind.UNMETERED_REQUESTS:
            among = lost.get(replica, ()) if replica else [share for shares in lost.values() for share in shares]
        shares = _beyond(_shares(listed), among)
        if not shares:
            continue  # they are lost events, and a finding of their own
        keys = {(share.tenant_id, share.model) for share in shares}
        times = [each.at for each in listed if (each.event.tenant_id, each.event.model) in keys]
        guessed = any(share.events.low != share.events.high for share in shares)
        subject = {"log": log, "replica_id": replica} | ({"counted_as": other} if other else {})
        cause = _cause(kind, log, replica, other, bool(among))
        estimated_from = "the log: what was lost under numbers may be among it" if guessed else ""
        found.append(Finding(kind, subject, cause, shares, min(times), max(times), estimated_from))
    return found


def _beyond(listed: Sequence[Share], lost: Sequence[Share]) -> tuple[Share, ...]:
    """What a log misses beyond what was lost of the same tenant and model: at least the rest, at most all of it."""
    most: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for share in lost:
        for at, size in enumerate(_sizes(share)):
            most[share.tenant_id, share.model][at] += size.high
    anybodys = most.pop(("", ""), [0])[0]
    rest = [share for share in listed if share.events.low > most[share.tenant_id, share.model][0]]
    if sum(share.events.low - most[share.tenant_id, share.model][0] for share in rest) <= anybodys:
        return ()
    found = []
    for share in rest:
        events, *tokens = most[share.tenant_id, share.model]
        gone = [events + anybodys, *(share.tokens.high if anybodys else size for size in tokens)]
        sizes = [Interval(max(s.low - g, 0), s.high) if gone[0] else s
                 for s, g in zip(_sizes(share), gone, strict=True)]  # fmt: skip
        found.append(Share(share.tenant_id, share.model, *sizes))
    return tuple(found)


def _sizes(share: Share) -> tuple[Interval, ...]:
    return (share.events, share.input_tokens, share.output_tokens, share.cache_hit_tokens)


def _cause(kind: Kind, log: str, replica: str, other: str, some_lost: bool) -> str:
    if kind is Kind.WRONG_TENANT:
        return (
            f"{log} admitted them for others, and they are counted as {other}'s: look who names tenants to the adapter"
        )
    if kind is Kind.UNREGISTERED_REPLICA:
        return f"{log} sent them to {replica}, of which no report and no event ever came: it runs without the adapter"
    where = f"replica {replica}" if replica else "a replica that the log does not name"
    and_more = "more of them than were lost under numbers" if some_lost else "no number is missing"
    return f"{log} sent them to {where}, no event was made for them, and {and_more}"


def _shares(listed: Iterable[Missing]) -> tuple[Share, ...]:
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for each in listed:
        e = each.event
        for at, count in enumerate((1, e.input_tokens, e.output_tokens, e.cache_hit_tokens)):
            sums[e.tenant_id, e.model][at] += count
    return tuple(Share(*key, *map(Interval.exactly, counts)) for key, counts in sorted(sums.items()))
