"""Windows from raw events, beside the running ingestion: what differs, and putting it right.

Events go by the rating bands of today's rules: where a rule was changed late, that is a difference as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import psycopg
from psycopg import sql

from streams import audit
from streams.retention.archive_store import hold_archive, require_present
from streams.rules import stale_bands
from streams.rules.windows import WIDTHS, WINDOW_KEY, WINDOW_SUMS, add_to_windows
from streams.usage import rebanding

DIFFERENCES_LISTED: Final = 1000
FETCHED: Final = 1000
"""Rows of a cursor at a time."""
MEND_TIMES: Final = 10
REBUILD_LOCK: Final = 0x7265_6275
"""The letters "rebu": of two rebuilds the second adds what is missing once the first has."""


@dataclass(frozen=True, slots=True)
class WindowDifference:
    """A window that is not the sum of its events. Sums in the order of WINDOW_SUMS; None where there is no such row."""

    table: str
    bucket: datetime
    key: tuple[str, ...]
    stored: tuple[int, ...] | None
    events: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild looked at, and found; of the differences the first DIFFERENCES_LISTED of each table."""

    windows: int
    differences: tuple[WindowDifference, ...]
    replaced: int = 0
    """Windows that were changed; one that events of several steps leave or enter, in each of them."""
    rebanded: int = 0
    """Events that have another rating band by today's rules."""


@dataclass(frozen=True, slots=True)
class _Compared:
    """What was found; which minutes differ, and in which hours anything does; by which version of the rules of rating
    bands.
    """

    found: Rebuilt
    minutes: frozenset[datetime]
    hours: frozenset[datetime]
    bands_version: int


def rebuild(
    connection: psycopg.Connection, start: datetime, end: datetime, *, actor: str, apply: bool = False
) -> Rebuilt:
    """Compare the windows of [start, end), whole hours, with sums of events; with `apply`, put right those that differ.

    Comparing stops nobody: one snapshot has the chunks that are applied meanwhile in both or in neither. Nor does
    putting right: what a window lacks of its events in a snapshot, it lacks whatever chunks add to both, so that it is
    added to the window as it stands by then. A minute is a transaction, then its hour, which is compared with its
    minutes. Only where events change their band the sources are stopped, for a few events at a time (`rebanding`). A
    rebuild that is killed in between leaves some put right. `connection` is in autocommit mode. Raises EventsArchived.
    """
    compared = _compare(connection, start, end)
    if not apply:
        return compared.found
    replaced, rebanded = rebanding.move(connection, actor, start, end, compared.bands_version)
    for minute in sorted(compared.minutes):
        replaced += _mend(connection, "windows_1m", minute, minute + timedelta(minutes=1), actor)
    for hour in sorted(compared.hours):
        replaced += _mend(connection, "windows_1h", hour, hour + timedelta(hours=1), actor)
    if stale_bands.stale_bands(connection, start, end):
        _settle(connection, start, end, compared.bands_version)
    return replace(compared.found, replaced=replaced, rebanded=rebanded)


def _compare(connection: psycopg.Connection, start: datetime, end: datetime) -> _Compared:
    """Look only. What has another band by today's rules stays staged."""
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read")
        hold_archive(connection)
        require_present(connection, start, end)
        bands_version = stale_bands.rules_version(connection)
        rebanded = rebanding.stage(connection, start, end)
        minutes, hours = set[datetime](), set[datetime]()
        looked_at = 0
        listed: list[WindowDifference] = []
        for table, width in WIDTHS.items():
            looked_at += _count(connection, table, start, end)
            most = len(listed) + DIFFERENCES_LISTED
            for difference in _differences(connection, table, _sums_of_events(width, banded=True), start, end):
                hours.add(difference.bucket.replace(minute=0))
                if table == "windows_1m":
                    minutes.add(difference.bucket)
                if len(listed) < most:
                    listed.append(difference)
    found = Rebuilt(looked_at, tuple(listed), rebanded=rebanded)
    return _Compared(found, frozenset(minutes), frozenset(hours), bands_version)


def _mend(connection: psycopg.Connection, table: str, start: datetime, end: datetime, actor: str) -> int:
    """Put a time's windows right; how many differed. A chunk that counts in several statements may be in its way."""
    for left in reversed(range(MEND_TIMES)):
        try:
            return _mend_once(connection, table, start, end, actor)
        except psycopg.errors.DeadlockDetected:
            if not left:
                raise
    raise AssertionError("the last time returns or raises")


def _mend_once(connection: psycopg.Connection, table: str, start: datetime, end: datetime, actor: str) -> int:
    """Add to a time's windows what they lack, and take away what they have too much; how many differed.

    Minutes are compared with their events, hours with their minutes: in one statement, so that it has one snapshot, and
    none before that of whoever rebuilt last.
    """
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(%s)", (REBUILD_LOCK,))
        hold_archive(connection)
        require_present(connection, start, end)
        sums = _sums_of_events(WIDTHS[table], banded=False) if table == "windows_1m" else _SUMS_OF_MINUTES
        query = sql.SQL("{differing}, summed as (select bucket as minute, {key}, {lacking} {from_}) {add}").format(
            differing=_differing(table, sums),
            key=_COLUMNS,
            lacking=sql.SQL(", ").join(
                sql.SQL("coalesce(e.{0}, 0) - coalesce(w.{0}, 0) as {0}").format(sql.Identifier(name))
                for name in WINDOW_SUMS
            ),
            from_=_WHERE_THEY_DIFFER,
            add=sql.SQL(add_to_windows(table, WIDTHS[table])),
        )
        replaced = connection.execute(query, {"start": start, "end": end}).rowcount
        if replaced:
            detail = {"from": start.isoformat(), "to": end.isoformat(), "windows": replaced}
            audit.record(connection, actor, "windows.rebuild", "windows", detail)
    return replaced


def _settle(connection: psycopg.Connection, start: datetime, end: datetime, bands_version: int) -> None:
    """Note that [start, end) goes by today's rules; not, where they have changed since it was compared."""
    with connection.transaction():
        connection.execute("lock table usage.sources in exclusive mode")  # who changes the rules takes it as well
        if stale_bands.rules_version(connection) == bands_version:
            stale_bands.settle(connection, start, end)


_COLUMNS: Final = sql.SQL(", ").join(map(sql.Identifier, WINDOW_KEY))
_KEY_OF_EVENTS: Final = (*map(sql.Identifier, WINDOW_KEY[:-1]), sql.SQL("band as rating_band"))
_STORED_SUMS: Final = sql.SQL(", ").join(sql.SQL("w.{}").format(sql.Identifier(name)) for name in WINDOW_SUMS)
_EVENT_SUMS: Final = sql.SQL(", ").join(sql.SQL("e.{}").format(sql.Identifier(name)) for name in WINDOW_SUMS)
_BANDS_AS_STAGED: Final = sql.SQL(
    "select e.*, coalesce(r.rating_band, e.rating_band) as band from usage.counting_events as e"
    " left join rebanded as r using (source, position)"
)
_BANDS_AS_STORED: Final = sql.SQL("select e.*, e.rating_band as band from usage.counting_events as e")


def _sums_of_events(width: str, *, banded: bool) -> sql.Composable:
    """By buckets of a width; `banded`: by the bands that are staged."""
    return sql.SQL(
        "select time_bucket({width}, completed_at) as bucket, {key_of_events}, count(*) as events,"
        " count(*) filter (where kind = 'usage') as requests, sum(input_tokens)::int8 as input_tokens,"
        " sum(cache_hit_tokens)::int8 as cache_hit_tokens, sum(output_tokens)::int8 as output_tokens,"
        " sum(gpu_us)::int8 as gpu_us"
        " from ({events} where e.completed_at >= %(start)s and e.completed_at < %(end)s) as c group by bucket, {key_by}"
    ).format(
        width=sql.Literal(width),
        events=_BANDS_AS_STAGED if banded else _BANDS_AS_STORED,
        key_of_events=sql.SQL(", ").join(_KEY_OF_EVENTS),
        key_by=sql.SQL(", ").join(map(sql.Identifier, (*WINDOW_KEY[:-1], "band"))),
    )


_NOT_ZERO: Final = sql.SQL("(events, requests, input_tokens, cache_hit_tokens, output_tokens, gpu_us)"
                           " <> (0, 0, 0, 0, 0, 0)")  # fmt: skip
_SUMS_OF_MINUTES: Final = sql.SQL(
    "select * from (select time_bucket('1 hour', bucket) as bucket, {key}, {sums} from usage.windows_1m"
    " where bucket >= %(start)s and bucket < %(end)s group by 1, {key}) as c where {not_zero}"
).format(
    key=_COLUMNS,
    sums=sql.SQL(", ").join(sql.SQL("sum({0})::int8 as {0}").format(sql.Identifier(name)) for name in WINDOW_SUMS),
    not_zero=_NOT_ZERO,
)
_WHERE_THEY_DIFFER: Final = sql.SQL(
    "from w full join e using (bucket, {key}) where ({stored}) is distinct from ({events})"
).format(key=_COLUMNS, stored=_STORED_SUMS, events=_EVENT_SUMS)


def _differing(table: str, sums: sql.Composable) -> sql.Composable:
    """Windows `w` and sums `e` of [start, end), to be compared."""
    return sql.SQL(
        "with e as ({sums}),"
        " w as (select * from usage.{table} where bucket >= %(start)s and bucket < %(end)s and {not_zero})"
    ).format(sums=sums, table=sql.Identifier(table), not_zero=_NOT_ZERO)


def _differences(
    connection: psycopg.Connection, table: str, sums: sql.Composable, start: datetime, end: datetime
) -> Iterator[WindowDifference]:
    query = sql.SQL("{differing} select bucket, {key}, {stored}, {events} {from_} order by bucket, {key}").format(
        differing=_differing(table, sums), key=_COLUMNS, stored=_STORED_SUMS, events=_EVENT_SUMS,
        from_=_WHERE_THEY_DIFFER,
    )  # fmt: skip
    keys, counts = len(WINDOW_KEY), len(WINDOW_SUMS)
    with connection.cursor(name="differences") as cursor:
        cursor.itersize = FETCHED
        for row in cursor.execute(query, {"start": start, "end": end}):
            stored, events = row[1 + keys : 1 + keys + counts], row[1 + keys + counts :]
            yield WindowDifference(
                table, row[0], tuple(row[1 : 1 + keys]),
                None if stored[0] is None else tuple(stored), None if events[0] is None else tuple(events),
            )  # fmt: skip


def _count(connection: psycopg.Connection, table: str, start: datetime, end: datetime) -> int:
    query = sql.SQL("select count(*) from usage.{} where bucket >= %s and bucket < %s").format(sql.Identifier(table))
    row = connection.execute(query, (start, end)).fetchone()
    return int(row[0]) if row else 0
