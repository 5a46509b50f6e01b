"""A gateway's log as a witness from outside the adapter: each request that it admitted must have its event.

Compared request by request, by identity, so that no boundary of time blurs it; and in sums by tenant, model and hour
(`hours.py`). What is missing is told apart: counted under another tenant, served by a replica that nobody knows, lost
under a number (then the numbers say so already), held in quarantine (which says so), or never metered. A log has no
numbers: where a tenant and model lost events, what is more than those was never metered, at least.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import psycopg

from reconciliation.findings.finding import Finding, HourShare, Interval, Kind, Share
from reconciliation.findings.hours import Admitted, hour_of
from reconciliation.replay.material import Found, NotMappable
from serving_adapter.events import UsageEvent, decode_completed, decode_known_fields
from serving_adapter.identity import identity_of
from streams.rules.identity_keys import identity_key

BATCH: Final = 2000
MOST_MISSING: Final = 200_000
"""So many are looked at one by one, about 100 MB: more than that are found once these are mended."""
NEAR: Final = timedelta(hours=1)
"""How far a gateway's time of a request may lie from its event's."""
_HELD: Final = """
    select message from usage.quarantine as q where tenant_id = any(%s) and not exists (
        select from usage.quarantine_resolutions as r where r.quarantine_id = q.quarantine_id)
    order by quarantine_id limit %s
"""


@dataclass(frozen=True, slots=True)
class Missing:
    """A request that the log has and that is not counted."""

    event: UsageEvent
    at: datetime


@dataclass(frozen=True, slots=True)
class Read:
    """What a log says: what of it is missing, whether that is all, and the times of its first and last line."""

    missing: Sequence[Missing]
    is_all: bool
    first: datetime | None
    last: datetime | None

    def reach(self, begin: datetime, end: datetime) -> tuple[datetime, datetime]:
        """The part of [begin, end) of which the log says anything: lines of before may have been taken away."""
        if self.first is None or self.last is None:
            return begin, begin
        return max(begin, self.first), min(end, self.last + timedelta(microseconds=1))


def read(
    connection: psycopg.Connection,
    material: Iterable[Found | NotMappable],
    begin: datetime,
    end: datetime,
    admitted: Admitted,
) -> Read:
    """Read a log: what completed in [begin, end) and is not counted under its identity. Adds to `admitted` each request
    once. Lines that are no event are none."""
    absent: dict[bytes, Missing] = {}
    batch: dict[bytes, Missing] = {}
    first: datetime | None = None
    last: datetime | None = None
    for each in material:
        if isinstance(each, Found):
            event, at = decode_completed(each.message)
            first, last = min(first or at, at), max(last or at, at)
            if begin - NEAR <= at < end + NEAR:
                batch.setdefault(identity_key(identity_of(event)), Missing(event, at))
        if len(batch) == BATCH:
            _take(connection, batch, begin, end, admitted, absent)
            batch = {}
        if len(absent) >= MOST_MISSING:
            return Read(list(absent.values()), False, first, last)
    _take(connection, batch, begin, end, admitted, absent)
    return Read(list(absent.values()), True, first, last)


def _take(
    connection: psycopg.Connection, batch: Mapping[bytes, Missing], begin: datetime, end: datetime,
    admitted: Admitted, absent: dict[bytes, Missing],
) -> None:  # fmt: skip
    rows = connection.execute(
        "select uuid_send(key), completed_at from usage.event_identities where key = any(%s)",
        ([UUID(bytes=key) for key in batch],),
        binary=True,
    )
    known = {bytes(key): at for key, at in rows}
    for key, each in batch.items():
        counted_at = known.get(key)
        if counted_at is None and begin <= each.at < end:
            absent.setdefault(key, each)
        if counted_at is not None or each.at < end:  # what is under way is neither
            admitted.add(key, each.event, each.at, counted_at)


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


def not_held(connection: psycopg.Connection, absent: Sequence[Missing]) -> list[Missing]:
    """Those of which no event waits in quarantine: there is one of the others, and the quarantine says why."""
    if not absent:
        return []
    tenants = sorted({each.event.tenant_id for each in absent})
    held = set()
    for (message,) in connection.execute(_HELD, (tenants, MOST_MISSING), binary=True):
        if (event := decode_known_fields(bytes(message))) is not None:
            held.add(identity_of(event))
    return [each for each in absent if identity_of(each.event) not in held]


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
        mine = [each for each in listed if (each.event.tenant_id, each.event.model) in keys]
        times = [each.at for each in mine]
        guessed = any(share.events.low != share.events.high for share in shares)
        subject = {"log": log, "replica_id": replica} | ({"counted_as": other} if other else {})
        cause = _cause(kind, log, replica, other, bool(among))
        estimated_from = "the log: what was lost under numbers may be among it" if guessed else ""
        found.append(
            Finding(kind, subject, cause, shares, min(times), max(times), estimated_from, hours=_hours(mine))
        )  # fmt: skip
    return found


def _hours(listed: Iterable[Missing]) -> tuple[HourShare, ...]:
    """The same by hour, of the log's times."""
    sums: dict[tuple[str, str, datetime], list[int]] = defaultdict(lambda: [0, 0])
    for each in listed:
        e = each.event
        hour = sums[e.tenant_id, e.model, hour_of(each.at)]
        hour[0] += 1
        hour[1] += e.input_tokens + e.output_tokens
    return tuple(HourShare(*key, *counts) for key, counts in sorted(sums.items()))


def _beyond(listed: Sequence[Share], lost: Sequence[Share]) -> tuple[Share, ...]:
    """What a log misses beyond what was lost of the same tenant and model: at least the rest, at most all of it."""
    most: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for share in lost:
        for at, size in enumerate(share.sizes):
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
                 for s, g in zip(share.sizes, gone, strict=True)]  # fmt: skip
        found.append(Share(share.tenant_id, share.model, *sizes))
    return tuple(found)


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
