"""Received numbers and gaps in the database: folding what chunks brought, and naming what is missing.

Chunks only add rows (`usage.number_fills`, `usage.replica_usage_fills`); one check at a time takes them out and folds
them into sets and sums. So workers that apply events of one replica never wait for each other, and what is derived of
numbers lags by one check, on the safe side. Counts are read with those that are not folded (`usage.replica_counts`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

import psycopg

from streams.completeness import gaps, number_sets
from streams.completeness.complete_to import BootKey
from streams.completeness.completeness_store import forgotten_boots, get_boot
from streams.completeness.gaps import Gap, Looked
from streams.completeness.number_sets import Ranges, Segments

FOLD_USAGE: Final = """
    with taken as (delete from usage.replica_usage_fills returning *)
    insert into usage.replica_usage as u
        (replica_id, boot_id, tenant_id, model, events, input_tokens, output_tokens, cache_hit_tokens,
         engine_input_beyond, engine_output_beyond, engine_cached_beyond, lost)
    select replica_id, boot_id, tenant_id, model, sum(events), sum(input_tokens), sum(output_tokens),
           sum(cache_hit_tokens), sum(engine_input_beyond), sum(engine_output_beyond), sum(engine_cached_beyond),
           sum(lost)
    from taken group by replica_id, boot_id, tenant_id, model
    on conflict (replica_id, boot_id, tenant_id, model) do update set
        events = u.events + excluded.events, input_tokens = u.input_tokens + excluded.input_tokens,
        output_tokens = u.output_tokens + excluded.output_tokens,
        cache_hit_tokens = u.cache_hit_tokens + excluded.cache_hit_tokens,
        engine_input_beyond = u.engine_input_beyond + excluded.engine_input_beyond,
        engine_output_beyond = u.engine_output_beyond + excluded.engine_output_beyond,
        engine_cached_beyond = u.engine_cached_beyond + excluded.engine_cached_beyond,
        lost = u.lost + excluded.lost
"""

PROVE: Final = """
    with proven as (
        delete from usage.heartbeat_marks as m
        where m.last_seq <= coalesce((select received_through from usage.boot_numbers as n
                                      where n.replica_id = m.replica_id and n.boot_id = m.boot_id), 0)
        returning m.replica_id, m.boot_id, coalesce(m.proves_to, m.reported_at) as proves_to
    )
    insert into usage.boot_numbers as n (replica_id, boot_id, proven_to, first_filled_at)
    select replica_id, boot_id, max(proves_to), %s from proven group by replica_id, boot_id
    on conflict (replica_id, boot_id) do update set proven_to = greatest(n.proven_to, excluded.proven_to)
"""

MOST_MARKS: Final = 1000
"""Heartbeats of one boot that wait for their numbers. Beyond, every second one is forgotten: its time is then proven a
little later, by the next."""
THIN_MARKS: Final = """
    delete from usage.heartbeat_marks where ctid in (
        select at from (
            select ctid as at, count(*) over (partition by replica_id, boot_id) as marks,
                   row_number() over (partition by replica_id, boot_id order by reported_at desc) as back
            from usage.heartbeat_marks
        ) as counted where marks > %s and back %% 2 = 0
    )
"""

NUMBERS_A_TIME: Final = 100_000
"""Numbers a transaction: a second's worth of the fastest line, some megabytes."""
FILLS_A_FETCH: Final = 1000


def fold_counts(connection: psycopg.Connection) -> None:
    """Fold what chunks counted. It changes no answer, so it may wait until there is much of one key."""
    connection.execute(FOLD_USAGE)


def fold(connection: psycopg.Connection, now: datetime, most: int = NUMBERS_A_TIME) -> bool:
    """Fold what chunks brought since the last time: numbers, gaps that fill, heartbeats that are proven.

    In the caller's transaction. About `most` numbers, so that a backlog does not become one long transaction; False if
    there are more, and the rest is for the next ones. While the numbers of a backlog are being taken, a boot lacks
    numbers, and is not compared.
    """
    arrived, is_all = _taken(connection, most)
    for key in forgotten_boots(connection, arrived) if arrived else ():
        del arrived[key]  # its numbers were let go of: the late one is no gap's end
    if arrived:
        _fill(connection, {key: number_sets.of_numbers(numbers) for key, numbers in arrived.items()}, now)
    connection.execute(PROVE, (now,))
    return is_all


def _taken(connection: psycopg.Connection, most: int) -> tuple[dict[BootKey, list[int]], bool]:
    """About `most` numbers of those that chunks brought, taken out of the table; whether these were all."""
    arrived: dict[BootKey, list[int]] = defaultdict(list)
    rows: list[str] = []
    count = 0
    with connection.cursor("fills", binary=True) as cursor:
        cursor.itersize = FILLS_A_FETCH
        cursor.execute("select ctid::text, replica_id, boot_id, numbers from usage.number_fills")
        for row, replica_id, boot_id, numbers in cursor:
            arrived[replica_id, boot_id].extend(numbers)
            rows.append(row)
            count += len(numbers)
            if count >= most:
                break
        is_all = count < most
    connection.execute("delete from usage.number_fills where ctid = any(%s::tid[])", (rows,))
    return arrived, is_all


def thin_marks(connection: psycopg.Connection, most: int = MOST_MARKS) -> None:
    """Keep the marks of a boot that has been held back for long few."""
    connection.execute(THIN_MARKS, (most,))


def name_gaps(connection: psycopg.Connection, now: datetime, settle: timedelta) -> None:
    """Look at numbers that have been known for `settle` and name those that are missing."""
    rows = connection.execute(
        "select replica_id, boot_id, coalesce(n.received_through, 0),"
        " greatest(coalesce(n.highest, 0), coalesce(b.last_seq, 0)) as known, coalesce(n.named_through, 0),"
        " n.due_through, n.due_at"
        " from usage.boot_numbers as n full join usage.boots as b using (replica_id, boot_id)"
        " where greatest(coalesce(n.highest, 0), coalesce(b.last_seq, 0)) > coalesce(n.named_through, 0)"
    ).fetchall()
    for replica_id, boot_id, through, known, named_through, due_through, due_at in rows:
        key = (replica_id, boot_id)
        before = Looked(named_through, due_through, due_at)
        after, due = gaps.look(before, known, now, settle)
        if due:
            first, last, since = due
            absent = _missing(connection, key, through, first, last)
            if absent:
                open_gaps = _open_gaps(connection, [key])[key]
                _store_gaps(connection, [(key, gap) for gap in gaps.named(open_gaps, absent, since)], now)
        if after != before:
            connection.execute(
                "insert into usage.boot_numbers (replica_id, boot_id, named_through, due_through, due_at,"
                " first_filled_at) values (%s, %s, %s, %s, %s, %s) on conflict (replica_id, boot_id) do update set"
                " named_through = excluded.named_through, due_through = excluded.due_through,"
                " due_at = excluded.due_at",
                (*key, after.named_through, after.due_through, after.due_at, now),
            )


def missing_numbers(connection: psycopg.Connection, key: BootKey) -> Ranges:
    """The numbers in a boot's open gaps that have not arrived, one by one: what a gap that grew over others holds.

    Raises UnknownBoot.
    """
    boot = get_boot(connection, key)
    return tuple(
        run
        for gap in sorted(_open_gaps(connection, [key])[key], key=lambda gap: gap.first)
        for run in _missing(connection, key, boot.received_through, gap.first, gap.last)
    )


def _fill(connection: psycopg.Connection, arrived: dict[BootKey, dict[int, int]], now: datetime) -> None:
    """Add numbers to those of their boots, and close the gaps that they fill."""
    keys = list(arrived)
    positions = _positions(connection, keys)
    wanted = {key: {*numbers, number_sets.segment_of(positions[key][0] + 1)} for key, numbers in arrived.items()}
    stored = _segments(connection, [(key, segment) for key, segments in wanted.items() for segment in segments])
    open_gaps = _open_gaps(connection, keys)
    changed_gaps: list[tuple[BootKey, Gap]] = []
    states: list[tuple[str, str, int, int, datetime]] = []
    segments: list[tuple[str, str, int, int]] = []
    for key, numbers in arrived.items():
        through, highest = positions[key]
        done = number_sets.fill(through, stored[key], numbers)
        following = number_sets.segment_of(done.received_through + 1)
        if following not in wanted[key]:
            stored[key] |= _following(connection, key, following)
            done = number_sets.fill(through, stored[key], numbers)
        changed_gaps += [(key, gap) for gap in gaps.filled(open_gaps[key], done.fresh)]
        highest = max(highest, number_sets.highest(numbers))
        states.append((*key, done.received_through, highest, now))
        segments += [(*key, segment, bits) for segment, bits in done.segments.items()]
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into usage.boot_numbers (replica_id, boot_id, received_through, highest, first_filled_at)"
            " values (%s, %s, %s, %s, %s) on conflict (replica_id, boot_id) do update set"
            " received_through = excluded.received_through, highest = excluded.highest",
            states,
        )
    _store_segments(connection, segments)
    _store_gaps(connection, changed_gaps, now)


def received(connection: psycopg.Connection, keys: Sequence[BootKey]) -> dict[BootKey, tuple[int, Segments]]:
    """Of each boot up to where all numbers are here, and what of them is here beyond; folded or not."""
    positions = _positions(connection, keys)
    stored: dict[BootKey, dict[int, int]] = {key: {} for key in positions}
    which = "(replica_id, boot_id) in (select * from unnest(%s::text[], %s::text[]))"
    rows = connection.execute(
        f"select replica_id, boot_id, segment, numbers from usage.received_numbers where {which}",
        _columns(keys, 2), binary=True,
    )  # fmt: skip
    for replica_id, boot_id, segment, numbers in rows:
        stored[replica_id, boot_id][segment] = number_sets.from_bytes(numbers)
    fills = connection.execute(
        f"select replica_id, boot_id, numbers from usage.number_fills where {which}", _columns(keys, 2)
    )
    for replica_id, boot_id, arrived in fills:
        for segment, bits in number_sets.of_numbers(arrived).items():
            mine = stored[replica_id, boot_id]
            mine[segment] = mine.get(segment, 0) | bits
    return {key: (through, stored[key]) for key, (through, _) in positions.items()}


def _positions(connection: psycopg.Connection, keys: Sequence[BootKey]) -> dict[BootKey, tuple[int, int]]:
    """(received through, highest) of each boot; zeros for a new one."""
    found = dict.fromkeys(keys, (0, 0))
    rows = connection.execute(
        "select replica_id, boot_id, received_through, highest from usage.boot_numbers"
        " where (replica_id, boot_id) in (select * from unnest(%s::text[], %s::text[]))",
        _columns(keys, 2),
    )
    return found | {(row[0], row[1]): (row[2], row[3]) for row in rows}


def _segments(connection: psycopg.Connection, wanted: Iterable[tuple[BootKey, int]]) -> dict[BootKey, dict[int, int]]:
    """The stored bits of the wanted segments."""
    found: dict[BootKey, dict[int, int]] = defaultdict(dict)
    rows = connection.execute(
        "select replica_id, boot_id, segment, numbers from usage.received_numbers"
        " where (replica_id, boot_id, segment) in (select * from unnest(%s::text[], %s::text[], %s::int8[]))",
        _columns([(*key, segment) for key, segment in wanted], 3),
        binary=True,
    )
    for replica_id, boot_id, segment, numbers in rows:
        found[replica_id, boot_id][segment] = number_sets.from_bytes(numbers)
    return found


def _following(connection: psycopg.Connection, key: BootKey, segment: int) -> dict[int, int]:
    """All stored segments from one on: when a gap was closed, everything behind it may join."""
    rows = connection.execute(
        "select segment, numbers from usage.received_numbers where replica_id = %s and boot_id = %s and segment >= %s",
        (*key, segment),
        binary=True,
    )
    return {row[0]: number_sets.from_bytes(row[1]) for row in rows}


def _missing(connection: psycopg.Connection, key: BootKey, through: int, first: int, last: int) -> Ranges:
    """What of first…last has not arrived, where all up to `through` has."""
    first = max(first, through + 1)
    if first > last:
        return ()
    rows = connection.execute(
        "select segment, numbers from usage.received_numbers"
        " where replica_id = %s and boot_id = %s and segment between %s and %s",
        (*key, number_sets.segment_of(first), number_sets.segment_of(last)),
        binary=True,
    )
    received: Segments = {row[0]: number_sets.from_bytes(row[1]) for row in rows}
    return number_sets.missing(received, first, last)


def _open_gaps(connection: psycopg.Connection, keys: Sequence[BootKey]) -> dict[BootKey, list[Gap]]:
    """The open gaps of each boot."""
    found: dict[BootKey, list[Gap]] = {key: [] for key in keys}
    rows = connection.execute(
        "select replica_id, boot_id, first_number, last_number, missing, since from usage.gaps"
        " where closed_at is null and (replica_id, boot_id) in (select * from unnest(%s::text[], %s::text[]))",
        _columns(keys, 2),
    )
    for replica_id, boot_id, *gap in rows:
        found[replica_id, boot_id].append(Gap(*gap))
    return found


def _store_gaps(connection: psycopg.Connection, changed: Sequence[tuple[BootKey, Gap]], now: datetime) -> None:
    """Write gaps that are new, have grown, or of which something arrived; one without a missing number is closed."""
    if not changed:
        return
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into usage.gaps as g"
            " (replica_id, boot_id, first_number, last_number, missing, since, grown_at, closed_at)"
            " values (%s, %s, %s, %s, %s, %s, %s, %s) on conflict (replica_id, boot_id, first_number) do update set"
            " last_number = excluded.last_number, missing = excluded.missing, closed_at = excluded.closed_at,"
            " grown_at = coalesce(g.grown_at, excluded.grown_at)",
            [
                (*key, gap.first, gap.last, gap.missing, gap.since, gap.grown_at, None if gap.missing else now)
                for key, gap in changed
            ],
        )


def _store_segments(connection: psycopg.Connection, changed: Sequence[tuple[str, str, int, int]]) -> None:
    """Write segments; those of which nothing is left beyond `received_through` go."""
    gone = [(replica, boot, segment) for replica, boot, segment, bits in changed if not bits]
    if gone:
        connection.execute(
            "delete from usage.received_numbers"
            " where (replica_id, boot_id, segment) in (select * from unnest(%s::text[], %s::text[], %s::int8[]))",
            _columns(gone, 3),
        )
    kept = [(*row, number_sets.to_bytes(bits)) for *row, bits in changed if bits]
    if kept:
        connection.execute(
            "insert into usage.received_numbers (replica_id, boot_id, segment, numbers)"
            " select * from unnest(%s::text[], %s::text[], %s::int8[], %s::bytea[])"
            " on conflict (replica_id, boot_id, segment) do update set numbers = excluded.numbers",
            _columns(kept, 4),
        )


def _columns(rows: Sequence[tuple[object, ...]], width: int) -> list[list[object]]:
    """Rows as one array per column, for `unnest`."""
    return [[row[at] for row in rows] for at in range(width)]
