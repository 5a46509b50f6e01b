"""Reading what findings are judged by: boots and their numbers, refused and counted events, partitions passed over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Final
from uuid import UUID

import psycopg

from reconciliation.findings.numbers import MissingNumbers, PassedOver, Sample
from reconciliation.findings.signs import AT_LEAST, CLOCK_OFF, BootClock, Copied, SameAttempt, Seen, Twins
from serving_adapter.events import UsageEvent, completed_at, decode, decode_known_fields
from serving_adapter.identity import Identity, content_digest_of, identity_of
from streams.completeness import number_sets, number_store
from streams.completeness.complete_to import BootKey
from streams.completeness.completeness_store import SINCE_LAST_HEARD, counts_of_boots
from streams.completeness.number_sets import Segments
from streams.completeness.witnesses import Counts
from streams.ingest import stored_versions
from streams.rules.identity_keys import identity_key

MOST_ROWS: Final = 200_000
"""Events of one kind that a look takes into memory, some 200 MB: what is more is found once these are mended."""
BATCH: Final = 2000
ALONE: Final = "unnumbered events"
_MISSING: Final = f"""
    select g.replica_id, g.boot_id, sum(g.missing)::int8, coalesce(max(b.last_seq), 0), max(n.proven_to),
        coalesce(max(m.reported_at), max(b.heartbeat_at)), min(b.begun_at),
        bool_or(f.replica_id is not null and b.farewell_at is null), max(g.last_number), coalesce(max(n.highest), 0)
    from usage.gaps as g
    left join usage.boots as b using (replica_id, boot_id)
    left join usage.boot_numbers as n using (replica_id, boot_id)
    left join usage.boot_write_offs as w using (replica_id, boot_id)
    left join usage.boot_findings as f on f.replica_id = g.replica_id and f.boot_id = g.boot_id
        and f.finding = 'no_farewell' and {SINCE_LAST_HEARD}
    left join lateral (
        select min(reported_at) as reported_at from usage.heartbeat_marks as m
        where m.replica_id = g.replica_id and m.boot_id = g.boot_id and m.last_seq >= g.last_number
    ) as m on true
    where g.closed_at is null and w.replica_id is null group by g.replica_id, g.boot_id order by 1, 2
"""
_SAMPLES: Final = """
    select tenant_id, model, count(*),
        avg(input_tokens)::float8, coalesce(stddev_samp(input_tokens), 0)::float8,
        avg(output_tokens)::float8, coalesce(stddev_samp(output_tokens), 0)::float8,
        avg(cache_hit_tokens)::float8, coalesce(stddev_samp(cache_hit_tokens), 0)::float8
    from usage.counting_events where completed_at >= %s and completed_at < %s and kind = 'usage'
    group by tenant_id, model
"""
_TAKEN_BACK: Final = """
    with taken_back as (
        select tenant_id, request_id, attempt, sum(input_tokens) as input_tokens, sum(output_tokens) as output_tokens
        from usage.counting_events
        where completed_at >= %(begin)s and completed_at < %(end)s and kind = 'correction'
        group by 1, 2, 3
    )
"""
# To the microsecond: many emitters stamp milliseconds, and chance then makes twins of equal requests
_TWICE: Final = """
    , twice as (
        select tenant_id, model, {at} as at, input_tokens, output_tokens, cache_hit_tokens
        from usage.counting_events
        where completed_at >= %(begin)s and completed_at < %(end)s and kind = 'usage' and purpose = 'tenant'
          and input_tokens + output_tokens > 0 {fine}
        group by 1, 2, 3, 4, 5, 6 having count(*) > 1 {coarse}
    )
    select e.tenant_id, e.model, twice.at, e.input_tokens, e.output_tokens, e.cache_hit_tokens, e.raw
    from twice join usage.counting_events as e
        using (tenant_id, model, input_tokens, output_tokens, cache_hit_tokens)
    where {of_it} = twice.at
      and e.completed_at >= %(begin)s and e.completed_at < %(end)s and e.kind = 'usage' and not exists (
        select from taken_back as t
        where (t.tenant_id, t.request_id, t.attempt) = (e.tenant_id, e.request_id, e.attempt)
            and (t.input_tokens, t.output_tokens) = (-e.input_tokens, -e.output_tokens))
    order by 1, 2, 3, 4, 5, 6, e.ingested_at, e.source, e.position
    limit %(most)s
"""
_MILLISECONDS: Final = "extract(microseconds from completed_at)::int8 %% 1000"
_TWINS: Final = _TAKEN_BACK + _TWICE.format(
    at="completed_at", of_it="e.completed_at", fine=f"and {_MILLISECONDS} <> 0", coarse=""
)
_NEAR_TWINS: Final = _TAKEN_BACK + _TWICE.format(
    at="date_trunc('milliseconds', completed_at)", of_it="date_trunc('milliseconds', e.completed_at)", fine="",
    coarse=f"and bool_or({_MILLISECONDS} = 0)",
)  # fmt: skip
_BESIDE: Final = """
    select count(*) from usage.counting_events
    where completed_at >= %s and completed_at <= %s + interval '1 millisecond' and kind = 'usage'
      and purpose = 'tenant' and (position(%s::bytea in raw) > 0) = %s
"""
_LATE: Final = """
    select raw, ingested_at from usage.counting_events
    where completed_at >= %(begin)s and completed_at < %(end)s and kind = 'usage' and source like 'kafka:%%'
      and ingested_at - completed_at >= %(off)s limit %(most)s
"""
_IN_TIME: Final = """
    select exists (select from usage.counting_events where completed_at >= %(first)s - %(off)s
        and completed_at <= %(last)s and ingested_at between %(first)s and %(last)s
        and ingested_at - completed_at < %(off)s and position(%(boot)s::bytea in raw) > 0)
"""
_UP: Final = """
    cross join (
        select least(begun_at, heartbeat_at, first_received_at) - interval '2 days' as first,
            greatest(heartbeat_at, last_received_at) + interval '2 days' as last
        from usage.boots where replica_id = %(replica)s and boot_id = %(boot)s
    ) as up
"""
# In the bucket of what they correct; by tenant, since events have no index of kinds
_CORRECTED: Final = f"""
    select c.raw, e.raw from usage.counting_events as c join usage.counting_events as e
        using (tenant_id, completed_at, request_id, attempt)
    {_UP}
    where c.tenant_id = any(%(tenants)s) and c.kind = 'correction' and e.kind = 'usage'
      and c.completed_at between up.first and up.last
    limit %(most)s
"""
_NUMBERED: Final = f"""
    select e.raw from usage.counting_events as e {_UP}
    where e.tenant_id = any(%(tenants)s) and e.model = %(model)s and e.kind = 'usage'
      and e.completed_at between up.first and up.last and position(%(mark)s::bytea in e.raw) > 0
    order by e.ingested_at, e.source, e.position limit %(most)s
"""
_COUNTED_AT: Final = "select uuid_send(key), completed_at from usage.event_identities where key = any(%s)"
_HELD: Final = """
    select message, appended_at from usage.quarantine as q where reason = %s and strpos(detail, %s) > 0
      and not exists (select from usage.quarantine_resolutions as r where r.quarantine_id = q.quarantine_id)
    order by quarantine_id limit %s
"""


def missing_numbers(connection: psycopg.Connection) -> list[MissingNumbers]:
    """Every boot with an open gap that nobody has written off."""
    rows = connection.execute(_MISSING).fetchall()
    keys = [(row[0], row[1]) for row in rows]
    reported, counted = (counts_of_boots(connection, of, keys) for of in ("replica_reported", "replica_counts"))
    received = number_store.received(connection, keys)
    found = []
    for replica_id, boot_id, missing, last_seq, proven_to, by, begun_at, broke_off, last_missing, highest in rows:
        key, begins = (replica_id, boot_id), proven_to or begun_at
        ends = by if by is None or begins is None else max(by, begins)
        said = reported.get(key, {})
        samples = None
        if sum(counts.events for counts in said.values()) != last_seq and begins is not None:
            samples = _samples(connection, begins - timedelta(days=1), (ends or begins) + timedelta(days=1))
        found.append(
            MissingNumbers(replica_id, boot_id, missing, last_seq, said, counted.get(key, {}), begins, ends,
                           broke_off, samples, last_missing,
                           max(_not_received(max(last_seq, highest), *received[key]) - missing, 0))
        )  # fmt: skip
    return found


def _not_received(known: int, through: int, beyond: Segments) -> int:
    """How many of the numbers 1…known have not come."""
    return known - through - number_sets.count(number_sets.within(beyond, through + 1, known))


def _samples(
    connection: psycopg.Connection, begin: datetime, end: datetime
) -> dict[tuple[str, str], Sample]:  # fmt: skip
    rows = connection.execute(_SAMPLES, (begin, end))
    return {
        (tenant_id, model): Sample(events, (of[0], of[1]), (of[2], of[3]), (of[4], of[5]))
        for tenant_id, model, events, *of in rows
    }


def passed_over(connection: psycopg.Connection) -> list[PassedOver]:
    """Partitions of which something was never applied, and those that stand still."""
    rows = connection.execute(
        "select source, stopped_because, null, null from usage.sources"
        " where feed = 'usage' and source like 'kafka:%' and stopped_because is not null"
        " union all select source, reason, from_position, to_position from usage.position_resolutions"
        " join usage.sources using (source) where feed = 'usage' order by 1"
    ).fetchall()
    numbers = connection.execute("select source from usage.sources where feed = 'usage' and source like 'kafka:%'")
    partitions = max((_partition(source) for (source,) in numbers), default=0) + 1
    return [
        PassedOver(_partition(source), partitions,
                   f"{source} stands still: {why}" if begin is None
                   else f"positions {begin:,} to {end:,} of {source} were passed over ({why})")
        for source, why, begin, end in rows
    ]  # fmt: skip


def _partition(source: str) -> int:
    return int(source.rpartition("/")[2].partition("@")[0])


def unreported_boots(connection: psycopg.Connection) -> list[tuple[BootKey, list[Seen], datetime]]:
    """Boots that numbered events, and of which no report ever came."""
    rows = connection.execute(
        "select replica_id, boot_id, first_filled_at from usage.boot_numbers as n where not exists"
        " (select from usage.boots as b where b.replica_id = n.replica_id and b.boot_id = n.boot_id)"
        " and not exists (select from usage.boot_write_offs as w where w.replica_id = n.replica_id"
        " and w.boot_id = n.boot_id) order by 1, 2"
    ).fetchall()
    counted = counts_of_boots(connection, "replica_counts", [(row[0], row[1]) for row in rows])
    found = []
    for replica_id, boot_id, at in rows:
        mine = counted.get((replica_id, boot_id), {})
        found.append(((replica_id, boot_id), [Seen(*of, counts) for of, counts in mine.items()], at))
    return found


def taken_back(
    connection: psycopg.Connection, boots: Iterable[BootKey]
) -> dict[BootKey, dict[tuple[str, str], Counts]]:  # fmt: skip
    """Of each of some boots the tokens of its events that corrections have taken back whole, by tenant and model.

    Not what a boot numbers itself: that is counted as its own.
    """
    keys = sorted(set(boots))
    counted = counts_of_boots(connection, "replica_counts", keys)
    found: dict[BootKey, dict[tuple[str, str], Counts]] = {}
    for key in keys:
        tenants = sorted({tenant_id for tenant_id, _ in counted.get(key, ())})
        given = {"replica": key[0], "boot": key[1], "tenants": tenants, "most": MOST_ROWS}
        left: dict[Identity, tuple[UsageEvent, Counts]] = {}
        for correction, event in connection.execute(_CORRECTED, given, binary=True):
            back, of = decode(correction), decode(event)
            if back.seq is None and of.seq is not None and (of.replica_id, of.boot_id) == key:
                _, before = left.get(identity_of(of), (of, _tokens(of)))
                left[identity_of(of)] = of, before.plus(_tokens(back))
        sums: dict[tuple[str, str], Counts] = defaultdict(Counts)
        for of, remains in left.values():
            if not any(remains):
                sums[of.tenant_id, of.model] = sums[of.tenant_id, of.model].plus(_tokens(of))
        found[key] = dict(sums)
    return found


def _tokens(event: UsageEvent) -> Counts:
    return Counts(0, event.input_tokens, event.output_tokens, event.cache_hit_tokens)


def clocks(connection: psycopg.Connection, begin: datetime, end: datetime) -> tuple[list[BootClock], bool]:
    """Boots whose events came late or lie in the future, all of them for a while; and whether these are all."""
    given = {"begin": begin, "end": end, "off": CLOCK_OFF, "most": MOST_ROWS}
    late = [(decode(raw), at) for raw, at in connection.execute(_LATE, given, binary=True)]
    held = connection.execute(_HELD, ("future", "", MOST_ROWS), binary=True).fetchall()
    ahead = [(event, at) for message, at in held if (event := decode_known_fields(message)) is not None]
    offsets = {
        (row[0], row[1]): row[2]
        for row in connection.execute(
            "select replica_id, boot_id, (extract(epoch from heartbeat_at - last_received_at) * 1000)::int8"
            " from usage.boots where heartbeat_at is not null"
        )
    }
    found = []
    for events, is_ahead in ((late, False), (ahead, True)):
        by_boot: dict[BootKey, list[tuple[UsageEvent, datetime]]] = defaultdict(list)
        for event, at in events:
            if event.replica_id and event.boot_id:
                by_boot[event.replica_id, event.boot_id].append((event, at))
        for key, mine in sorted(by_boot.items()):
            lags = [at - completed_at(event) for event, at in mine]
            received = [at for _, at in mine]
            if not is_ahead and _came_in_time(connection, key[1], min(received), max(received)):
                continue
            times = [completed_at(event) for event, _ in mine]
            found.append(
                BootClock(*key, min(lags), max(lags), _seen(event for event, _ in mine), min(times), max(times),
                          offsets.get(key), is_ahead)
            )  # fmt: skip
    return found, max(len(late), len(held)) < MOST_ROWS


def _came_in_time(connection: psycopg.Connection, boot_id: str, first: datetime, last: datetime) -> bool:
    """Whether events of a boot came in time while others of it came late: then it is no clock."""
    given = {"first": first, "last": last, "off": CLOCK_OFF, "boot": boot_id.encode()}
    row = connection.execute(_IN_TIME, given).fetchone()
    return bool(row and row[0])


def twins(connection: psycopg.Connection, begin: datetime, end: datetime) -> tuple[list[Twins], bool]:
    """Events that came again under other ids, by who sent them first and who again; and whether these are all.

    One whose tokens corrections have taken back is none.
    """
    again, is_all = _again(connection, begin, end)
    found = [
        Twins(emitter, of, _seen(events), min(map(completed_at, events)), max(map(completed_at, events)))
        for (emitter, of), events in sorted(again.items())
    ]
    return found, is_all


def near_twins(connection: psycopg.Connection, begin: datetime, end: datetime) -> tuple[list[Twins], bool]:
    """The same to the millisecond, where one emitter stamps no finer, between two emitters; and whether these are all.

    Only where contents differ: among equal requests chance makes as many.
    """
    again, is_all = _nearly_again(connection, begin, end)
    found = []
    for (emitter, of), events in sorted(again.items()):
        contents = {(e.tenant_id, e.model, e.input_tokens, e.output_tokens, e.cache_hit_tokens) for e in events}
        times = [completed_at(event) for event in events]
        if len(contents) >= AT_LEAST:
            mark = b'"seq"' if of == ALONE else of.rpartition("/")[2].encode()
            row = connection.execute(_BESIDE, (min(times), max(times), mark, of != ALONE)).fetchone()
            beside = int(row[0]) if row else 0
            found.append(Twins(emitter, of, _seen(events), min(times), max(times), beside))
    return found, is_all


def sent_again(
    connection: psycopg.Connection, begin: datetime, end: datetime, emitter: str, of: str
) -> list[UsageEvent]:  # fmt: skip
    """The events of `emitter` in [begin, end) that are twins of another one's."""
    exactly, _ = _again(connection, begin, end)
    return exactly.get((emitter, of)) or _nearly_again(connection, begin, end)[0].get((emitter, of), [])


def _again(
    connection: psycopg.Connection, begin: datetime, end: datetime
) -> tuple[dict[tuple[str, str], list[UsageEvent]], bool]:
    rows = connection.execute(_TWINS, {"begin": begin, "end": end, "most": MOST_ROWS}, binary=True).fetchall()
    again: dict[tuple[str, str], list[UsageEvent]] = defaultdict(list)
    first: tuple[object, str] | None = None
    for *same, raw in rows:
        event = decode(raw)
        emitter = _emitter(event)
        if first is not None and first[0] == same:
            again[emitter, first[1]].append(event)
        else:
            first = (same, emitter)
    return again, len(rows) < MOST_ROWS


def _nearly_again(
    connection: psycopg.Connection, begin: datetime, end: datetime
) -> tuple[dict[tuple[str, str], list[UsageEvent]], bool]:
    rows = connection.execute(_NEAR_TWINS, {"begin": begin, "end": end, "most": MOST_ROWS}, binary=True).fetchall()
    again: dict[tuple[str, str], list[UsageEvent]] = defaultdict(list)
    for _, group in groupby(rows, key=lambda row: row[:6]):
        by_emitter: dict[str, list[UsageEvent]] = defaultdict(list)
        for *_, raw in group:
            event = decode(raw)
            by_emitter[_emitter(event)].append(event)
        of, *others = sorted(by_emitter, key=lambda emitter: (emitter == ALONE, emitter))
        for other in others:
            again[other, of] += by_emitter[other][: len(by_emitter[of])]
    return again, len(rows) < MOST_ROWS


def numbered_by(connection: psycopg.Connection, key: BootKey, model: str) -> tuple[list[UsageEvent], bool]:
    """A boot's events of a model that count, as they came; and whether these are all."""
    tenants = sorted({tenant for tenant, _ in counts_of_boots(connection, "replica_counts", [key]).get(key, ())})
    given = {"replica": key[0], "boot": key[1], "tenants": tenants, "model": model, "mark": key[1].encode(),
             "most": MOST_ROWS}  # fmt: skip
    rows = connection.execute(_NUMBERED, given, binary=True).fetchall()
    events = (decode(raw) for (raw,) in rows)
    mine = [event for event in events if event.seq is not None and (event.replica_id, event.boot_id) == key]
    return mine, len(rows) < MOST_ROWS


def _emitter(event: UsageEvent) -> str:
    return f"{event.replica_id}/{event.boot_id}" if event.replica_id and event.seq else ALONE


def same_attempts(connection: psycopg.Connection) -> tuple[list[SameAttempt], list[Copied], bool]:
    """What waits in quarantine because another boot had numbered its identity: served twice, or a copy; and whether
    that is all.

    A copy has the same content and the same time. Two dispatches of a request never have.
    """
    held = connection.execute(_HELD, ("conflict", "", MOST_ROWS), binary=True).fetchall()
    read = (decode_known_fields(message) for message, _ in held)
    events = [event for event in read if event is not None and event.kind == "usage" and event.seq is not None]
    served: dict[str, list[UsageEvent]] = defaultdict(list)
    copied: dict[tuple[str, str], list[UsageEvent]] = defaultdict(list)
    for begin in range(0, len(events), BATCH):
        part = events[begin : begin + BATCH]
        for event, other in zip(part, _counted(connection, part), strict=True):
            if other is None or other.seq is None or other.usage_source != event.usage_source:
                continue
            if _emitter(other) == _emitter(event):
                continue  # a conflict of content: one boot tells two things
            same = completed_at(other) == completed_at(event) and content_digest_of(other) == content_digest_of(event)
            if same:
                copied[_emitter(event), _emitter(other)].append(event)
            else:
                served[event.replica_id or ""].append(event)
    attempts = [SameAttempt(replica_id, _seen(found), *_span(found)) for replica_id, found in sorted(served.items())]
    copies = [Copied(*pair, _seen(found), *_span(found)) for pair, found in sorted(copied.items())]
    return attempts, copies, len(held) < MOST_ROWS


def _counted(connection: psycopg.Connection, events: Sequence[UsageEvent]) -> list[UsageEvent | None]:
    """What counts of the identity of each."""
    keys = [identity_key(identity_of(event)) for event in events]
    rows = connection.execute(_COUNTED_AT, ([UUID(bytes=key) for key in keys],), binary=True)
    times = {bytes(key): at for key, at in rows}
    asked = [(event, times[key]) for event, key in zip(events, keys, strict=True) if key in times]
    found = iter(stored_versions.counting(connection, asked))
    counted = (next(found) if key in times else [] for key in keys)
    return [next((decode(row.raw) for row in rows if row.kind == "usage"), None) for rows in counted]


def _span(events: Sequence[UsageEvent]) -> tuple[datetime, datetime]:
    times = [completed_at(event) for event in events]
    return min(times), max(times)


def _seen(events: Iterable[UsageEvent]) -> tuple[Seen, ...]:
    sums: dict[tuple[str, str], Counts] = defaultdict(Counts)
    for e in events:
        sums[e.tenant_id, e.model] = sums[e.tenant_id, e.model].plus(_tokens(e)._replace(events=1))
    return tuple(Seen(*key, counts) for key, counts in sorted(sums.items()))
