"""Raw events on their way to the archive and back, in the database: days, digests, what was dropped or recalled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final

import psycopg

from streams.errors import CannotArchive, EventsArchived
from streams.retention.archive_manifest import COLUMNS, Manifest
from streams.retention.retention_store import LOCKED_WITHIN
from streams.rules.windows import WINDOW_KEY, WINDOW_SUMS

_COLUMNS: Final = ", ".join(COLUMNS[:-1])
_COUNTS: Final = (
    "not exists (select from usage.superseded_events as s where s.source = e.source and s.position = e.position)"
)
_DAY: Final = "e.completed_at >= %(start)s and e.completed_at < %(end)s"
_ROWS: Final = f"select {_COLUMNS}, {_COUNTS} as counts from usage.events as e where {_DAY}"
_BUCKET: Final = "('x' || left(md5(tenant_id), 4))::bit(16)::int"
FETCHED: Final = 10_000
"""Rows of a cursor at a time."""
EVER: Final = (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC))

Row = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class ArchivedDay:
    """A day that is in the archive, or a supplement to it."""

    day: date
    part: int
    rows: int
    rows_digest: Decimal
    manifest_sha256: bytes
    dropped_at: datetime | None
    recalled: bool

    @property
    def is_gone(self) -> bool:
        """Whether its events are only in the archive."""
        return self.dropped_at is not None and not self.recalled


def midnight(day: date) -> datetime:
    """The beginning of a day, UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _bounds(day: date) -> dict[str, object]:
    return {"start": midnight(day), "end": midnight(day) + timedelta(days=1)}


def days_with_events(connection: psycopg.Connection, start: datetime, end: datetime) -> list[date]:
    """Days that have raw events in the database and overlap [start, end), by their chunks, then one by one."""
    rows = connection.execute(
        "select range_start, range_end from timescaledb_information.chunks where hypertable_schema = 'usage'"
        " and hypertable_name = 'events' and range_start < %s and range_end > %s",
        (end, start),
    ).fetchall()
    days = {
        (first + timedelta(days=n)).astimezone(UTC).date()
        for first, after in rows
        for n in range(-(-(after - first) // timedelta(days=1)))
    }
    return [
        day
        for day in sorted(days)
        if midnight(day) < end and midnight(day) + timedelta(days=1) > start and _has_events(connection, day)
    ]


def _has_events(connection: psycopg.Connection, day: date) -> bool:
    row = connection.execute(f"select exists (select from usage.events as e where {_DAY})", _bounds(day)).fetchone()
    return bool(row and row[0])


def digest(connection: psycopg.Connection, day: date) -> tuple[int, Decimal]:
    """How many rows a day has, and a sum of hashes over them: any change of any row changes it."""
    row = connection.execute(
        f"select count(*), coalesce(sum(hashtextextended(r::text, 0)::numeric), 0) from ({_ROWS}) as r", _bounds(day)
    ).fetchone()
    assert row is not None, "an aggregate always has a row"
    return int(row[0]), Decimal(row[1])


def rows_by_bucket(connection: psycopg.Connection, day: date, buckets: int) -> Iterator[tuple[int, Row]]:
    """A day's events with their bucket of tenants, in an order that is always the same. Needs a transaction."""
    with connection.cursor(name="archive", binary=True) as cursor:
        cursor.itersize = FETCHED
        cursor.execute(
            f'select {_BUCKET} %% %(buckets)s, r.* from ({_ROWS}) as r order by 1, tenant_id collate "C",'
            ' completed_at, request_id collate "C", attempt, kind desc, correction_no, source collate "C", position',
            _bounds(day) | {"buckets": buckets},
        )
        for bucket, *row in cursor:
            yield bucket, tuple(row)


def sources_of(connection: psycopg.Connection, day: date) -> dict[str, int]:
    """How many events of the day came from each source."""
    rows = connection.execute(
        f"select source, count(*) from usage.events as e where {_DAY} group by source", _bounds(day)
    )
    return dict(rows.fetchall())


def archived_days(connection: psycopg.Connection, start: datetime, end: datetime) -> list[ArchivedDay]:
    """Days in the archive that overlap [start, end), with their supplements."""
    rows = connection.execute(
        "select day, part, rows, rows_digest, manifest_sha256, dropped_at, r.day is not null"
        " from usage.archived_days as a left join usage.recalled_days as r using (day, part)"
        " where day > (%(start)s::timestamptz at time zone 'UTC')::date - 1 and day < %(end)s at time zone 'UTC'"
        " order by day, part",
        {"start": start, "end": end},
    )
    return [
        ArchivedDay(day, part, count, summed, bytes(sha256), dropped_at, recalled)
        for day, part, count, summed, sha256, dropped_at, recalled in rows
    ]


def part_to_write(connection: psycopg.Connection, day: date) -> tuple[int, ArchivedDay | None]:
    """The part of a day that the rows in the database belong to, and as what it is in the archive, if it is.

    What was dropped is never written again: rows that came since are a part of their own.
    """
    parts = archived_days(connection, midnight(day), midnight(day) + timedelta(days=1))
    if not parts or parts[-1].dropped_at is not None:
        return len(parts), None
    return parts[-1].part, parts[-1]


def record(connection: psycopg.Connection, manifest: Manifest, path: str, sha256: bytes) -> None:
    """Note that a part of a day is in the archive, in place of what was noted before. Needs a transaction."""
    of = (manifest.day, manifest.part)
    connection.execute("delete from usage.archived_counts where day = %s and part = %s", of)
    connection.execute(
        "insert into usage.archived_days (day, part, rows, rows_digest, manifest_path, manifest_sha256)"
        " values (%s, %s, %s, %s, %s, %s) on conflict (day, part) do update set rows = excluded.rows,"
        " rows_digest = excluded.rows_digest, manifest_path = excluded.manifest_path,"
        " manifest_sha256 = excluded.manifest_sha256, archived_at = now()",
        (*of, manifest.rows, Decimal(manifest.rows_digest), path, sha256),
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into usage.archived_counts (day, part, source, events) values (%s, %s, %s, %s)",
            [(*of, source, events) for source, events in manifest.sources.items()],
        )


def count_replayed(connection: psycopg.Connection) -> int:
    """How many events replays have brought in behind the horizon."""
    row = connection.execute("select count(*) from usage.replayed_identities").fetchone()
    assert row is not None, "an aggregate always has a row"
    return int(row[0])


def drop_archived(connection: psycopg.Connection, before: datetime, replayed: int) -> list[date]:
    """Drop raw events and 1-minute windows from before a midnight; all of their days are in the archive.

    `replayed`: `count_replayed` of before they were archived. Raises EventsArchived, and drops nothing, if a day is
    not there; CannotArchive if a replay has added events since; LockNotAvailable.
    """
    with connection.transaction():
        connection.execute(f"set local lock_timeout = '{LOCKED_WITHIN}'")
        connection.execute("lock table usage.archived_days in share row exclusive mode")
        if count_replayed(connection) != replayed:
            raise CannotArchive("a replay is adding events behind the horizon: run this again once it is through")
        there = days_with_events(connection, datetime.min.replace(tzinfo=UTC), before)
        known = {row[0] for row in connection.execute("select day from usage.archived_days where dropped_at is null")}
        if missing := [day for day in there if day not in known]:
            raise EventsArchived(f"{missing[0]} is not in the archive: nothing is dropped")
        for table in ("events", "windows_1m"):
            connection.execute(
                "select drop_chunks(%s::regclass, older_than => %s::timestamptz)", (f"usage.{table}", before)
            )
        left = days_with_events(connection, datetime.min.replace(tzinfo=UTC), before)
        assert not left, "chunks end at midnight"
        rows = connection.execute(
            "update usage.archived_days set dropped_at = now() where dropped_at is null"
            " and day < %s at time zone 'UTC' returning day",
            (before,),
        ).fetchall()
    return sorted(row[0] for row in rows)


def recall(connection: psycopg.Connection, held: ArchivedDay, rows: Iterable[Row], *, actor: str) -> int:
    """Bring a dropped part of a day back beside the others, with the day's 1-minute windows. Needs a transaction."""
    connection.execute(
        "insert into usage.recalled_days (day, part, actor) values (%s, %s, %s)", (held.day, held.part, actor)
    )
    count = 0
    with (
        connection.cursor() as cursor,
        cursor.copy(f"copy usage.recalled_events ({_COLUMNS}) from stdin (format binary)") as copy,
    ):
        copy.set_types(_TYPES)
        for row in rows:
            copy.write_row(row)
            count += 1
    key = ", ".join(WINDOW_KEY)
    # No event is added to the day meanwhile: its windows are the sums of all that is there
    connection.execute("lock table usage.archived_days in share row exclusive mode")
    connection.execute(
        f"insert into usage.windows_1m (bucket, {key}, events, requests, input_tokens, cache_hit_tokens,"
        " output_tokens, gpu_us)"
        f" select time_bucket('1 minute', completed_at) as bucket, {key}, count(*),"
        " count(*) filter (where kind = 'usage'), sum(input_tokens)::int8, sum(cache_hit_tokens)::int8,"
        " sum(output_tokens)::int8, sum(gpu_us)::int8"
        f" from usage.counting_events as e where {_DAY} group by bucket, {key}"
        f" on conflict (tenant_id, bucket, {', '.join(WINDOW_KEY[1:])}) do update set"
        f" {', '.join(f'{name} = excluded.{name}' for name in WINDOW_SUMS)}",
        _bounds(held.day),
    )
    return count


_TYPES: Final = [
    "timestamptz", "text", "text", "int4", "text", "int4", *["text"] * 10, *["int8"] * 4, "text", "int8",
    "timestamptz", "bytea",
]  # fmt: skip


def let_go(connection: psycopg.Connection, sealed_before: datetime) -> int:
    """Take away what was recalled; returns how many days."""
    with connection.transaction():
        connection.execute("lock table usage.archived_days in share row exclusive mode")
        connection.execute("truncate usage.recalled_events")
        connection.execute(
            "select drop_chunks('usage.windows_1m'::regclass, older_than => %s::timestamptz)", (sealed_before,)
        )
        return connection.execute("delete from usage.recalled_days").rowcount


def hold_archive(connection: psycopg.Connection) -> None:
    """Until the transaction ends nothing is dropped or recalled, and nothing that was recalled is let go."""
    connection.execute("lock table usage.archived_days in share mode")


def require_present(connection: psycopg.Connection, start: datetime, end: datetime) -> None:
    """Raises EventsArchived where raw events of [start, end) are only in the archive: sums would silently lack them."""
    gone = gone_days(connection, start, end)
    if gone:
        raise EventsArchived(
            f"raw events of {gone[0]}{f' to {gone[-1]}' if len(gone) > 1 else ''} are only in the archive:"
            " `tollbook events recall` brings them back"
        )


def gone_days(connection: psycopg.Connection, start: datetime, end: datetime) -> list[date]:
    """Days that overlap [start, end) of which raw events are only in the archive."""
    return [held.day for held in archived_days(connection, start, end) if held.is_gone]
