"""Boots that work, at their last heartbeat: what they stated then beside what was counted up to that number.

A heartbeat's last number and its totals are of one moment, and each event that an adapter numbers is one of its totals.
So where totals of all heartbeats add up to the last number n, they are what was made under 1…n, to the token; and once
all of 1…n have come, what was counted of the boot, less its events beyond n, is the same to the token. Events beyond n
completed after the time that the heartbeat proves: they are few, and read one by one. That these are all of them their
numbers say; where one of them is not found there, as one that waits in quarantine, nothing is compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic, sleep
from typing import Final

import psycopg

from serving_adapter.events import decode
from streams.completeness import number_sets, number_store
from streams.completeness.complete_to import BootKey
from streams.completeness.completeness_store import BootDifference, counts_of_boots
from streams.completeness.number_sets import Segments
from streams.completeness.witnesses import Comparable, Counts, TenantModel
from streams.rules.chunks import number_of

MOST_EVENTS: Final = 200_000
"""Events beyond all boots' last heartbeats that a look reads, some 200 MB: with more nothing is compared."""
TOGETHER: Final = timedelta(minutes=5)
"""Boots whose last heartbeat is older than the latest by more are read at another look, or once they are over."""
PATIENCE_S: Final = 10.0
"""What was made before a heartbeat is counted within a second or two."""
LOOK_AGAIN_S: Final = 0.5
NONE: Final = Counts()
# A boot that is over, that was written off, or that lacks numbers by name, is judged otherwise
_STATED: Final = """
    select replica_id, boot_id, b.last_seq, greatest(n.proven_to, max(coalesce(m.proves_to, m.reported_at))),
        b.last_received_at >= clock_timestamp() - interval '1 minute'
    from usage.boots as b left join usage.boot_numbers as n using (replica_id, boot_id)
    left join usage.heartbeat_marks as m using (replica_id, boot_id)
    where b.farewell_at is null and b.last_seq > 0
      and not exists (select from usage.boot_write_offs as w
                      where w.replica_id = b.replica_id and w.boot_id = b.boot_id)
      and not exists (select from usage.gaps as g
                      where g.replica_id = b.replica_id and g.boot_id = b.boot_id and g.closed_at is null)
    group by replica_id, boot_id, b.last_seq, n.proven_to, b.last_received_at order by 1, 2
"""
_BEYOND: Final = """
    select raw from usage.events
    where tenant_id = any(%s) and completed_at >= %s and position('"seq"'::bytea in raw) > 0 limit %s
"""


@dataclass(frozen=True, slots=True)
class Stated:
    """What a boot stated at a heartbeat of all its numbers up to `last_seq`; later ones completed after `since`."""

    key: BootKey
    last_seq: int
    since: datetime
    totals: Mapping[TenantModel, Counts]
    is_heard: bool = False
    """Whether its heartbeats come, so that its events may be waited for."""


def stated(connection: psycopg.Connection, patience_s: float = PATIENCE_S) -> list[Stated]:
    """What boots that work stated last, once all of it has come; or after `patience_s`, whatever of it has."""
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        rows = connection.execute(_STATED).fetchall()
        totals = counts_of_boots(connection, "replica_reported", [(row[0], row[1]) for row in rows])
    found = [
        Stated((replica_id, boot_id), last_seq, since, totals[replica_id, boot_id], is_heard)
        for replica_id, boot_id, last_seq, since, is_heard in rows
        if since is not None and sum(counts.events for counts in totals[replica_id, boot_id].values()) == last_seq
    ]
    latest = max((each.since for each in found), default=None)
    found = [each for each in found if latest is not None and each.since >= latest - TOGETHER]
    until = monotonic() + patience_s
    while (waiting := [each for each in found if each.is_heard]) and monotonic() < until:
        if len(_arrived(waiting, number_store.received(connection, [each.key for each in waiting]))) == len(waiting):
            break
        sleep(LOOK_AGAIN_S)
    return found


def compared(connection: psycopg.Connection, found: Iterable[Stated]) -> dict[BootKey, list[BootDifference]]:
    """Of each of these boots that can be compared what differs at its heartbeat, exactly; mostly nothing.

    In the caller's transaction, which sees one moment, after `stated` did.
    """
    listed = list(found)
    received = number_store.received(connection, [each.key for each in listed])
    here = _arrived(listed, received)
    if not here:
        return {}
    counted = counts_of_boots(connection, "replica_counts", [each.key for each in here])
    beyond = _beyond(connection, here, counted)
    if beyond is None:
        return {}
    differing = {}
    for each in here:
        numbers, sums = beyond[each.key]
        if len(numbers) != _numbers_beyond(each.last_seq, *received[each.key]):
            continue
        keys = counted[each.key].keys() | sums.keys() | each.totals.keys()
        both = (
            (of, each.totals.get(of, NONE), counted[each.key].get(of, NONE).minus(sums.get(of, NONE)))
            for of in sorted(keys)
        )
        differing[each.key] = [
            BootDifference(*each.key, *of, Comparable.EXACT.value, said, was) for of, said, was in both if said != was
        ]
    return differing


def _arrived(found: Iterable[Stated], received: Mapping[BootKey, tuple[int, Segments]]) -> list[Stated]:
    """Those of which all numbers up to the heartbeat's have come."""
    return [
        each
        for each in found
        for through, segments in [received[each.key]]
        if through >= each.last_seq or not number_sets.missing(segments, through + 1, each.last_seq)
    ]


def _numbers_beyond(last_seq: int, through: int, segments: Segments) -> int:
    """How many numbers beyond a heartbeat's have come."""
    highest = number_sets.highest(segments) if segments else 0
    later = number_sets.within(segments, max(through, last_seq) + 1, highest)
    return max(through - last_seq, 0) + number_sets.count(later)


def _beyond(
    connection: psycopg.Connection, here: Collection[Stated], counted: Mapping[BootKey, Mapping[TenantModel, Counts]]
) -> dict[BootKey, tuple[set[int], dict[TenantModel, Counts]]] | None:
    """Of each boot its events beyond the heartbeat: their numbers, and what they come to; None where they are too many.

    All that were applied, as the counts are of these.
    """
    tenants = sorted({tenant_id for each in here for tenant_id, _ in counted[each.key]})
    since = min(each.since for each in here)
    rows = connection.execute(_BEYOND, (tenants, since, MOST_EVENTS), binary=True).fetchall()
    if len(rows) == MOST_EVENTS:
        return None
    last = {each.key: each.last_seq for each in here}
    numbers: dict[BootKey, set[int]] = {key: set() for key in last}
    sums: dict[BootKey, dict[TenantModel, Counts]] = {key: defaultdict(Counts) for key in last}
    for (raw,) in rows:
        event = decode(raw)
        number = number_of(event)
        key = (number.replica_id, number.boot_id) if number else ("", "")
        if number is not None and key in last and number.seq > last[key]:
            of = event.tenant_id, event.model
            mine = Counts(1, event.input_tokens, event.output_tokens, event.cache_hit_tokens)
            numbers[key].add(number.seq)
            sums[key][of] = sums[key][of].plus(mine)
    return {key: (numbers[key], sums[key]) for key in last}
