"""Raw events out of the database into the archive, and back: day by day, verified before anything is dropped.

A day is written from one snapshot, read back, and noted with a digest over its rows. Before it is dropped it is sealed
(nothing enters its time any more), its rows are compared with that digest once more, and its files with their manifest.
Each step can be killed and repeated.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import psycopg

from serving_adapter.events import decode
from streams import audit
from streams.errors import ArchiveDamaged, CannotArchive
from streams.retention import archive_store, retention_store
from streams.retention.archive_manifest import COLUMNS, Manifest, buckets_for
from streams.retention.archive_store import EVER, ArchivedDay, midnight
from streams.rules import ingest_rules
from streams.rules.horizon import ATTEMPTS_APART
from streams.rules.rating_bands import RatingBands

if TYPE_CHECKING:
    from streams.retention.archive_files import Archive, Row

ARCHIVE_LOCK: Final = 0x6172_6368
"""The letters "arch": one at a time writes to the archive."""
_COMPLETED, _TENANT, _REQUEST, _ATTEMPT, _KIND, _BAND, _RAW = map(
    COLUMNS.index, ("completed_at", "tenant_id", "request_id", "attempt", "kind", "rating_band", "raw")
)

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DayWritten:
    """A day in the archive; `changed` if it was written now."""

    day: date
    rows: int
    files: int
    bytes: int
    changed: bool


@dataclass(frozen=True, slots=True)
class DayToWrite:
    """A day with events; `there` if the archive has it as it is now, so that it would not be written."""

    day: date
    rows: int
    there: bool


@dataclass(frozen=True, slots=True)
class Dropping:
    """What may be dropped: days before `before`, and what hinders more of it."""

    before: datetime | None
    days: tuple[date, ...]
    hindered_by: str | None


def archive_days(
    connection: psycopg.Connection,
    archive: Archive,
    start: datetime,
    end: datetime,
    *,
    actor: str,
    progress: Progress = lambda _: None,
) -> list[DayWritten]:
    """Write every day with events that overlaps [start, end), unless it is there already, unchanged."""
    with _alone(connection):
        written = []
        for day in archive_store.days_with_events(connection, start, end):
            done = _archive_day(connection, archive, day, actor)
            progress(f"{day}: {done.rows:,} events in {done.files} files{'' if done.changed else ', there already'}")
            written.append(done)
    return written


def days_to_write(connection: psycopg.Connection, archive: Archive, start: datetime, end: datetime) -> list[DayToWrite]:
    """What `archive_days` would do: it reads events and files alike, and writes nothing."""
    found = []
    for day in archive_store.days_with_events(connection, start, end):
        with _snapshot(connection):
            rows, digest = archive_store.digest(connection, day)
            _, known = archive_store.part_to_write(connection, day)
            found.append(DayToWrite(day, rows, _there(archive, known, rows, digest) is not None))
    return found


def _archive_day(connection: psycopg.Connection, archive: Archive, day: date, actor: str) -> DayWritten:
    """Write one day, if it is not there or not as it is now; what came to a dropped one, as a supplement."""
    with _snapshot(connection):
        rows, digest = archive_store.digest(connection, day)
        part, known = archive_store.part_to_write(connection, day)
        there = _there(archive, known, rows, digest)
        if there is not None:
            return _written(there, changed=False)
        buckets = buckets_for(rows)
        stored = archive_store.rows_by_bucket(connection, day, buckets)
        files = tuple(
            archive.write(day, bucket, (row for _, row in group), part)
            for bucket, group in itertools.groupby(stored, key=lambda each: each[0])
        )
        sources = archive_store.sources_of(connection, day)
        manifest = Manifest(day, buckets, files, sources, str(digest), part)
    if manifest.rows != rows:
        raise ArchiveDamaged(f"{day}: {manifest.rows} rows were written, the database has {rows}")
    path, sha256 = archive.publish(manifest)
    with connection.transaction():
        archive_store.record(connection, manifest, path, sha256)
        detail = {"part": part, "rows": rows, "root": manifest.root, "files": len(files), "where": archive.where}
        audit.record(connection, actor, "events.archive", str(day), detail)
    return _written(manifest, changed=True)


@contextmanager
def _snapshot(connection: psycopg.Connection) -> Iterator[None]:
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read")
        # Files are written and read back between two fetches; nobody waits for what this transaction holds.
        connection.execute("set local idle_in_transaction_session_timeout = 0")
        yield


def _there(archive: Archive, known: ArchivedDay | None, rows: int, digest: Decimal) -> Manifest | None:
    """The manifest of what is known of a day, if the archive has it with these rows, unharmed."""
    if known is not None and (known.rows, known.rows_digest) == (rows, digest):
        return _intact(archive, known)
    return None


def _intact(archive: Archive, known: ArchivedDay) -> Manifest | None:
    """The day's manifest if it and its files are as they were written."""
    try:
        manifest = archive.manifest(known.day, known.manifest_sha256, known.part)
        archive.verify(manifest)
    except ArchiveDamaged:
        return None
    return manifest


def _written(manifest: Manifest, *, changed: bool) -> DayWritten:
    size = sum(file.bytes for file in manifest.files)
    return DayWritten(manifest.day, manifest.rows, len(manifest.files), size, changed)


def droppable(connection: psycopg.Connection, now: datetime) -> Dropping:
    """Days that may be dropped at `now`: closed, behind the horizon, in the archive with all before them.

    Of those before an open period the last stay: requests may have been attempted there first.
    """
    horizon = ingest_rules.horizon(connection)
    behind = horizon.forget_before(now)
    if horizon.closed_before is None or behind is None:
        return Dropping(None, (), "no period is closed")
    latest = min(horizon.closed_before - ATTEMPTS_APART, behind)
    before, hindered_by = latest.replace(hour=0, minute=0, second=0, microsecond=0), None
    held = archive_store.archived_days(connection, *EVER)
    if any(each.recalled for each in held):
        return Dropping(None, (), "days are recalled: `tollbook events recall --end` lets go of them first")
    archived = {each.day for each in held}
    days = [day for day in archive_store.days_with_events(connection, EVER[0], before) if midnight(day) < before]
    missing = next((day for day in days if day not in archived), None)
    if missing is not None:
        before, hindered_by = midnight(missing), f"{missing} is not in the archive"
    return Dropping(before, tuple(day for day in days if midnight(day) < before), hindered_by)


def drop(
    connection: psycopg.Connection,
    archive: Archive,
    now: datetime,
    *,
    actor: str,
    progress: Progress = lambda _: None,
) -> list[date]:
    """Drop what `droppable` names, after verifying it; returns the days. The horizon has been moved before.

    Raises CannotArchive where a replay adds to such a day meanwhile.
    """
    found = droppable(connection, now)
    if found.before is None or not found.days:
        return []
    retention_store.move_sealed(connection, found.before)
    replayed = archive_store.count_replayed(connection)
    # From here on only replays add there: a late event that came after the archiving is archived now.
    archive_days(connection, archive, EVER[0], found.before, actor=actor, progress=progress)
    dropped = archive_store.drop_archived(connection, found.before, replayed)
    audit.record(connection, actor, "events.drop", "events", {"before": found.before.isoformat(), "days": len(dropped)})
    return dropped


def recallable(connection: psycopg.Connection, start: datetime, end: datetime) -> list[ArchivedDay]:
    """The days of [start, end) whose events are only in the archive."""
    return [held for held in archive_store.archived_days(connection, start, end) if held.is_gone]


def recall(
    connection: psycopg.Connection,
    archive: Archive,
    start: datetime,
    end: datetime,
    *,
    actor: str,
    progress: Progress = lambda _: None,
) -> list[date]:
    """Bring the dropped days of [start, end) back into the database, to be rated, rebuilt or disputed again.

    With the rating bands of today's rules, which may have changed since these days were dropped.
    """
    recalled = []
    with _alone(connection):
        bands = RatingBands(ingest_rules.band_rules(connection))
        for held in recallable(connection, start, end):
            manifest = archive.manifest(held.day, held.manifest_sha256, held.part)
            archive.verify(manifest)
            events = _by_todays_rules(archive.rows(manifest), bands)
            with connection.transaction():
                count = archive_store.recall(connection, held, events, actor=actor)
                if count != held.rows:
                    raise ArchiveDamaged(f"{held.day}: {count} rows were read, {held.rows} were archived")
                audit.record(connection, actor, "events.recall", str(held.day), {"part": held.part, "rows": count})
            progress(f"{held.day}: {count:,} events are back")
            recalled.append(held.day)
    return recalled


def _by_todays_rules(rows: Iterable[Row], bands: RatingBands) -> Iterator[Row]:
    """Rows without whether they count, each with its band. A correction follows what it corrects, whose band it has."""
    of: tuple[object, ...] = ()
    given = ""
    for *row, counts in rows:
        named = row[_TENANT], row[_COMPLETED], row[_REQUEST], row[_ATTEMPT]
        if row[_KIND] != "usage":
            row[_BAND] = given if named == of else row[_BAND]
        else:
            if row[_TENANT] in bands.tenants or row[_BAND]:
                row[_BAND] = bands.of_event(decode(row[_RAW]), row[_COMPLETED])
            if counts or named != of:
                of, given = named, row[_BAND]
        yield tuple(row)


def let_go(connection: psycopg.Connection, *, actor: str) -> int:
    """Take away again what was recalled; returns how many days. The archive keeps it."""
    sealed = ingest_rules.horizon(connection).sealed_before
    if sealed is None:
        return 0
    with connection.transaction():
        days = archive_store.let_go(connection, sealed)
        if days:
            audit.record(connection, actor, "events.let_go", "events", {"days": days})
    return days


@contextmanager
def _alone(connection: psycopg.Connection) -> Iterator[None]:
    """Nobody else writes to the archive meanwhile. Raises CannotArchive if somebody does."""
    row = connection.execute("select pg_try_advisory_lock(%s)", (ARCHIVE_LOCK,)).fetchone()
    if row is None or not row[0]:
        raise CannotArchive("somebody else is writing to the archive: wait for them, then run this again")
    try:
        yield
    finally:
        connection.execute("select pg_advisory_unlock(%s)", (ARCHIVE_LOCK,))
