"""Windows from raw events, beside the running ingestion: what differs, and putting it right.

Events go by the rating bands of today's rules: where a rule was changed late, that is a difference as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import psycopg
from psycopg import sql

from streams import audit
from streams.retention.archive_store import hold_archive, require_present
from streams.rules import stale_bands
from streams.rules.windows import WINDOW_KEY, WINDOW_SUMS
from streams.usage import rebanding

WIDTHS: Final = {"windows_1m": "1 minute", "windows_1h": "1 hour"}
DIFFERENCES_LISTED: Final = 1000
FETCHED: Final = 1000
"""Rows of a cursor at a time."""


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
    rebanded: int = 0
    """Events that have another rating band by today's rules."""


@dataclass(frozen=True, slots=True)
class _Compared:
    """What was found; which minutes of which hours differ, also none of an hour's; by which version of the rules of
    rating bands, and the minutes with events that have another band by them.
    """

    found: Rebuilt
    minutes: dict[datetime, set[datetime]]
    rebanded: set[datetime]
    bands_version: int


def rebuild(
    connection: psycopg.Connection, start: datetime, end: datetime, *, actor: str, apply: bool = False
) -> Rebuilt:
    """Compare the windows of [start, end), whole hours, with sums of events; with `apply`, replace those that differ.

    Comparing stops nobody: one snapshot has the chunks that are applied meanwhile in both or in neither. Only where a
    minute differs are the sources stopped and the minute compared again, so that no event is added between reading and
    writing: a minute a transaction, then its hour, which is compared with its minutes. A rebuild that is killed in
    between leaves some put right. `connection` is in autocommit mode. Raises EventsArchived.
    """
    compared = _compare(connection, start, end)
    if not apply:
        return compared.found
    replaced = rebanded = 0
    for hour, minutes in sorted(compared.minutes.items()):
        for minute in sorted(minutes):
            windows, events = _mend_minute(connection, minute, actor, reband=minute in compared.rebanded)
            replaced, rebanded = replaced + windows, rebanded + events
        replaced += _mend_hour(connection, hour, actor)
    if stale_bands.stale_bands(connection, start, end):
        _settle(connection, start, end, compared.bands_version)
    return replace(compared.found, replaced=replaced, rebanded=rebanded)


def _compare(connection: psycopg.Connection, start: datetime, end: datetime) -> _Compared:
    """Look only."""
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read")
        hold_archive(connection)
        require_present(connection, start, end)
        bands_version = stale_bands.rules_version(connection)
        rebanded = rebanding.stage(connection, start, end)
        rebanded_minutes = set(rebanding.staged_minutes(connection))
        minutes: dict[datetime, set[datetime]] = defaultdict(set)
        for minute in rebanded_minutes:
            minutes[minute.replace(minute=0)].add(minute)
        looked_at = 0
        listed: list[WindowDifference] = []
        for table, width in WIDTHS.items():
            looked_at += _count(connection, table, start, end)
            most = len(listed) + DIFFERENCES_LISTED
            for difference in _differences(connection, table, _sums_of_events(width), start, end):
                of_hour = minutes[difference.bucket.replace(minute=0)]
                if table == "windows_1m":
                    of_hour.add(difference.bucket)
                if len(listed) < most:
                    listed.append(difference)
    found = Rebuilt(looked_at, tuple(listed), rebanded=rebanded)
    return _Compared(found, dict(minutes), rebanded_minutes, bands_version)


def _mend_minute(connection: psycopg.Connection, minute: datetime, actor: str, *, reband: bool) -> tuple[int, int]:
    """Replace a minute's windows that differ from its events, and the bands of these; how many of each.

    Chunks wait meanwhile: 5 s for a minute of 200,000 events (with other work on both cores), longer where bands are
    looked at.
    """
    end = minute + timedelta(minutes=1)
    with connection.transaction():
        _stop_sources(connection, minute, end)
        rebanded = rebanding.stage(connection, minute, end if reband else minute)
        replaced = _put_right(connection, "windows_1m", _sums_of_events("1 minute"), minute, end)
        rebanding.apply(connection, minute, end)
        _note(connection, actor, minute, end, replaced, rebanded)
    return replaced, rebanded


def _mend_hour(connection: psycopg.Connection, hour: datetime, actor: str) -> int:
    """Replace an hour's windows that are not the sums of its minutes'; how many."""
    end = hour + timedelta(hours=1)
    with connection.transaction():
        _stop_sources(connection, hour, end)
        replaced = _put_right(connection, "windows_1h", _SUMS_OF_MINUTES, hour, end)
        _note(connection, actor, hour, end, replaced, 0)
    return replaced


def _stop_sources(connection: psycopg.Connection, start: datetime, end: datetime) -> None:
    """No chunk is in flight until the transaction ends, and the events of [start, end) stay where they are."""
    hold_archive(connection)
    connection.execute("lock table usage.sources in exclusive mode")
    require_present(connection, start, end)


def _put_right(connection: psycopg.Connection, table: str, sums: sql.Composable, start: datetime, end: datetime) -> int:
    replaced = 0
    for difference in _differences(connection, table, sums, start, end):
        _replace(connection, difference)
        replaced += 1
    return replaced


def _note(
    connection: psycopg.Connection, actor: str, start: datetime, end: datetime, replaced: int, rebanded: int
) -> None:
    if replaced or rebanded:
        detail = {"from": start.isoformat(), "to": end.isoformat(), "windows": replaced, "rebanded": rebanded}
        audit.record(connection, actor, "windows.rebuild", "windows", detail)


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


def _sums_of_events(width: str) -> sql.Composable:
    """By buckets of a width, and the bands as staged."""
    return sql.SQL(
        "select time_bucket({width}, completed_at) as bucket, {key_of_events}, count(*) as events,"
        " count(*) filter (where kind = 'usage') as requests, sum(input_tokens)::int8 as input_tokens,"
        " sum(cache_hit_tokens)::int8 as cache_hit_tokens, sum(output_tokens)::int8 as output_tokens,"
        " sum(gpu_us)::int8 as gpu_us"
        " from (select e.*, coalesce(r.rating_band, e.rating_band) as band from usage.counting_events as e"
        " left join rebanded as r using (source, position)"
        " where e.completed_at >= %(start)s and e.completed_at < %(end)s) as c group by bucket, {key_by}"
    ).format(
        width=sql.Literal(width),
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


def _differences(
    connection: psycopg.Connection, table: str, sums: sql.Composable, start: datetime, end: datetime
) -> Iterator[WindowDifference]:
    """As they are when it is asked, whatever is replaced while they are read."""
    query = sql.SQL(
        "with e as ({sums}),"
        " w as (select * from usage.{table} where bucket >= %(start)s and bucket < %(end)s and {not_zero})"
        " select bucket, {key}, {stored}, {events} from w full join e using (bucket, {key})"
        " where ({stored}) is distinct from ({events}) order by bucket, {key}"
    ).format(
        sums=sums,
        table=sql.Identifier(table),
        not_zero=_NOT_ZERO,
        key=_COLUMNS,
        stored=_STORED_SUMS,
        events=_EVENT_SUMS,
    )
    keys, counts = len(WINDOW_KEY), len(WINDOW_SUMS)
    with connection.cursor(name="differences") as cursor:
        cursor.itersize = FETCHED
        for row in cursor.execute(query, {"start": start, "end": end}):
            stored, events = row[1 + keys : 1 + keys + counts], row[1 + keys + counts :]
            yield WindowDifference(
                table, row[0], tuple(row[1 : 1 + keys]),
                None if stored[0] is None else tuple(stored), None if events[0] is None else tuple(events),
            )  # fmt: skip


def _replace(connection: psycopg.Connection, difference: WindowDifference) -> None:
    sums = difference.events or (0,) * len(WINDOW_SUMS)
    query = sql.SQL(
        "insert into usage.{table} (bucket, {key}, {sums}) values ({values})"
        " on conflict (tenant_id, bucket, {rest}) do update set {set}"
    ).format(
        table=sql.Identifier(difference.table),
        key=_COLUMNS,
        sums=sql.SQL(", ").join(map(sql.Identifier, WINDOW_SUMS)),
        values=sql.SQL(", ").join([sql.Placeholder()] * (1 + len(WINDOW_KEY) + len(WINDOW_SUMS))),
        rest=sql.SQL(", ").join(map(sql.Identifier, WINDOW_KEY[1:])),
        set=sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in WINDOW_SUMS),
    )
    connection.execute(query, (difference.bucket, *difference.key, *sums))


def _count(connection: psycopg.Connection, table: str, start: datetime, end: datetime) -> int:
    query = sql.SQL("select count(*) from usage.{} where bucket >= %s and bucket < %s").format(sql.Identifier(table))
    row = connection.execute(query, (start, end)).fetchone()
    return int(row[0]) if row else 0
