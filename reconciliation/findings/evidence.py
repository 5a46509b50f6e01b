"""Reading what findings are judged by: boots and their numbers, refused and counted events, partitions passed over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import groupby
from typing import Final

import psycopg

from reconciliation.findings.numbers import MissingNumbers, PassedOver, Sample
from reconciliation.findings.signs import AT_LEAST, CLOCK_OFF, BootClock, SameAttempt, Seen, Twins
from serving_adapter.events import UsageEvent, completed_at, decode, decode_known_fields
from streams.completeness import number_sets, number_store
from streams.completeness.complete_to import BootKey
from streams.completeness.completeness_store import SINCE_LAST_HEARD, counts_of_boots
from streams.completeness.number_sets import Segments
from streams.completeness.witnesses import Counts

MOST_ROWS: Final = 200_000
"""Events of one kind that a look takes into memory, some 200 MB: what is more is found once these are mended."""
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
    found = [
        Twins(emitter, of, _seen(events), min(map(completed_at, events)), max(map(completed_at, events)))
        for (emitter, of), events in sorted(again.items())
    ]
    return found, len(rows) < MOST_ROWS


def near_twins(connection: psycopg.Connection, begin: datetime, end: datetime) -> tuple[list[Twins], bool]:
    """The same to the millisecond, where one emitter stamps no finer, between two emitters; and whether these are all.

    Only where contents differ: among equal requests chance makes as many.
    """
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
    found = []
    for (emitter, of), events in sorted(again.items()):
        contents = {(e.tenant_id, e.model, e.input_tokens, e.output_tokens, e.cache_hit_tokens) for e in events}
        times = [completed_at(event) for event in events]
        if len(contents) >= AT_LEAST:
            mark = b'"seq"' if of == ALONE else of.rpartition("/")[2].encode()
            row = connection.execute(_BESIDE, (min(times), max(times), mark, of != ALONE)).fetchone()
            beside = int(row[0]) if row else 0
            found.append(Twins(emitter, of, _seen(events), min(times), max(times), beside))
    return found, len(rows) < MOST_ROWS


def _emitter(event: UsageEvent) -> str:
    return f"{event.replica_id}/{event.boot_id}" if event.replica_id and event.seq else ALONE


def same_attempts(connection: psycopg.Connection) -> tuple[list[SameAttempt], bool]:
    """What waits in quarantine because another replica had numbered the same attempt; and whether that is all."""
    given = ("conflict", "numbered by another replica or boot", MOST_ROWS)
    held = connection.execute(_HELD, given, binary=True).fetchall()
    by_replica: dict[str, list[UsageEvent]] = defaultdict(list)
    for message, _ in held:
        if (event := decode_known_fields(message)) is not None:
            by_replica[event.replica_id or ""].append(event)
    found = [
        SameAttempt(replica_id, _seen(events), min(map(completed_at, events)), max(map(completed_at, events)))
        for replica_id, events in sorted(by_replica.items())
    ]
    return found, len(held) < MOST_ROWS


def _seen(events: Iterable[UsageEvent]) -> tuple[Seen, ...]:
    sums: dict[tuple[str, str], Counts] = defaultdict(Counts)
    for e in events:
        one = (1, e.input_tokens, e.output_tokens, e.cache_hit_tokens)
        sums[e.tenant_id, e.model] = Counts(*(a + b for a, b in zip(sums[e.tenant_id, e.model], one, strict=True)))
    return tuple(Seen(*key, counts) for key, counts in sorted(sums.items()))
