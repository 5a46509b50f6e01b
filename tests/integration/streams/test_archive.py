"""Raw events into the archive, out of the database, and back: on a folder, with real Parquet files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psycopg
import pyarrow.parquet as pq
import pytest

from serving_adapter.identity import Identity, event_id_of
from streams.database import connect
from streams.errors import ArchiveDamaged, EventsArchived
from streams.ingest import passed_positions
from streams.ingest.apply import ChunkApplier
from streams.retention import archive, archive_store, retention_store
from streams.retention.archive_files import Archive
from streams.retention.expiry import Retention
from streams.rules import stale_bands
from streams.rules.chunks import Chunk, Record
from streams.rules.ingest_rules import set_band_rules
from streams.rules.rating_bands import BandKind, BandRule
from streams.settings import RetentionSettings
from streams.usage import usage_store
from streams.usage.event_reader import events_of, totals_of
from streams.usage.rebuild import rebuild
from tests.builders import SOURCE, uuid_v7
from tests.integration.streams.test_retention import at

OCTOBER = datetime(2026, 10, 1, tzinfo=UTC)
NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)
LATER = datetime(2027, 1, 15, tzinfo=UTC)
DAY = timedelta(days=1)
MONTH = (OCTOBER, NOVEMBER)


@pytest.fixture
def connection(own_database_url: str) -> Iterator[psycopg.Connection]:
    """As the owner of the tables: dropping chunks is the owner's."""
    with connect(own_database_url, as_login=True) as opened:
        yield opened


@pytest.fixture
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    """A folder; with IN_A_STORE an object store."""
    return Archive(request.getfixturevalue("store") if hasattr(request, "param") else str(tmp_path / "archive"))


IN_A_STORE = pytest.mark.parametrize("files", ["store"], indirect=True)


@pytest.fixture
def october(applier: ChunkApplier, connection: psycopg.Connection) -> ChunkApplier:
    """Three days of October with a second attempt, a weaker and a stronger source; one event of November."""
    records: list[Record] = []

    def add(completed: datetime, **changed: object) -> None:
        records.append(at(len(records), completed, completed, **changed))

    for day in range(3):
        for n in range(40):
            add(OCTOBER + day * DAY + n * timedelta(minutes=35), output_tokens=n)
    add(OCTOBER + DAY, request_id="twice", attempt=1, status="error")
    add(OCTOBER + DAY + timedelta(minutes=1), request_id="twice", attempt=2)
    add(OCTOBER + 2 * DAY, request_id="better", usage_source="estimate", output_tokens=1)
    add(OCTOBER + 2 * DAY + timedelta(minutes=9), request_id="better", output_tokens=2)
    add(NOVEMBER, request_id="november")
    applier.apply(Chunk(SOURCE, records))
    return applier


def close_and_drop(connection: psycopg.Connection, files: Archive, closed: datetime = NOVEMBER) -> list[date]:
    """As `streams retain` does it."""
    retention_store.set_closed_before(connection, closed, actor="ada")
    Retention(connection, RetentionSettings()).step(LATER, at_once=True)
    return archive.drop(connection, files, LATER, actor="ada")


def count(connection: psycopg.Connection, table: str) -> int:
    row = connection.execute(f"select count(*) from usage.{table}").fetchone()
    assert row is not None
    return int(row[0])


def test_what_is_dropped_can_still_be_explained_and_adds_up_to_the_hours(
    connection: psycopg.Connection, october: ChunkApplier, files: Archive
) -> None:
    def explained() -> list[object]:
        found = events_of(connection, lambda: files, "tenant_1", OCTOBER, NOVEMBER + DAY)
        return [(e.completed_at, e.request_id, e.attempt, e.output_tokens, e.raw, e.counts) for e in found]

    before, hours = explained(), usage_store.usage_of(connection, "tenant_1", OCTOBER, NOVEMBER + DAY, ())[0].totals
    written = archive.archive_days(connection, files, *MONTH, actor="ada")
    assert [(day.day.day, day.rows, day.changed) for day in written] == [(1, 40, True), (2, 42, True), (3, 42, True)]
    assert close_and_drop(connection, files) == [day.day for day in written]
    assert (count(connection, "events"), count(connection, "windows_1m")) == (1, 1)
    assert explained() == before
    kept_in = {e.kept_in for e in events_of(connection, lambda: files, "tenant_1", *MONTH)}
    assert kept_in == {"archive"}
    totals = totals_of(events_of(connection, lambda: files, "tenant_1", OCTOBER, NOVEMBER + DAY))
    assert totals == hours == usage_store.usage_of(connection, "tenant_1", OCTOBER, NOVEMBER + DAY, ())[0].totals
    one = list(events_of(connection, lambda: files, "tenant_1", *MONTH, request_id="better"))
    assert [(e.usage_source, e.counts) for e in one] == [("estimate", False), ("engine", True)]
    assert passed_positions.stored_counts(connection) == passed_positions.counted_outcomes(connection)


@IN_A_STORE
def test_a_sum_of_raw_events_that_are_only_in_the_archive_is_refused_until_they_are_recalled(
    connection: psycopg.Connection, october: ChunkApplier, files: Archive
) -> None:
    statuses = {"tenant_1": ["ok", "error"]}

    def read() -> list[object]:
        return [
            list(usage_store.raw_quantities(connection, *MONTH)),
            [found for found in usage_store.minute_quantities(connection, *MONTH) if found.requests],
            sorted(usage_store.delivered_quantities(connection, *MONTH, statuses), key=repr),
            list(usage_store.retried_usage(connection, *MONTH)),
        ]

    before = read()
    assert len(before[3]) == 2  # type: ignore[arg-type]
    archive.archive_days(connection, files, *MONTH, actor="ada")
    close_and_drop(connection, files)
    with pytest.raises(EventsArchived, match="2026-10-01 to 2026-10-03"):
        list(usage_store.raw_quantities(connection, *MONTH))
    for reading in (usage_store.minute_quantities, usage_store.retried_usage):
        with pytest.raises(EventsArchived):
            list(reading(connection, *MONTH))
    with pytest.raises(EventsArchived):
        rebuild(connection, *MONTH, actor="ada", apply=True)
    explained = [event.kept_in for event in events_of(connection, lambda: files, "tenant_1", *MONTH)]
    assert explained == ["archive"] * 124
    assert len(archive.recall(connection, files, *MONTH, actor="ada")) == 3
    assert archive.recall(connection, files, *MONTH, actor="ada") == []
    assert read() == before
    assert rebuild(connection, *MONTH, actor="ada").differences == ()
    assert archive.let_go(connection, actor="ada") == 3
    assert (count(connection, "recalled_events"), count(connection, "windows_1m")) == (0, 1)
    with pytest.raises(EventsArchived):
        list(usage_store.raw_quantities(connection, *MONTH))


def test_events_that_are_recalled_have_the_bands_of_todays_rules_and_follow_them(
    connection: psycopg.Connection, october: ChunkApplier, files: Archive, own_database_url: str
) -> None:
    corrects = str(event_id_of(Identity("tenant_1", "req-0", 1, "usage", 0)))
    less = {"request_id": "req-0", "kind": "correction", "correction_no": 1, "corrects": corrects, "input_tokens": -2}
    october.apply(Chunk(SOURCE, [at(125, OCTOBER, OCTOBER, **less, output_tokens=0, cache_hit_tokens=0)]))
    archive.archive_days(connection, files, *MONTH, actor="ada")
    close_and_drop(connection, files)

    def rule(step: int) -> list[BandRule]:
        return [BandRule("tenant_1", "", BandKind.CONTEXT, OCTOBER, steps=(step,))]

    def bands() -> list[list[object]]:
        sums = "select rating_band, sum({})::int8, sum(input_tokens)::int8 from usage.{} where {} < %s group by 1"
        asked = [("requests", "windows_1h", "bucket"), ("requests", "windows_1m", "bucket"),
                 ("(kind = 'usage')::int", "counting_events", "completed_at")]  # fmt: skip
        rows = [connection.execute(sums.format(*each), (NOVEMBER,)).fetchall() for each in asked]
        return [[row for row in each if any(row[1:])] for each in rows]

    set_band_rules(connection, "tenant_1", rule(10))
    archive.recall(connection, files, *MONTH, actor="ada")
    with connect(own_database_url) as application:
        rebuild(application, *MONTH, actor="ada", apply=True)
        assert stale_bands.stale_bands(connection, *MONTH) == []
        assert bands() == [[("context=10", 123, 1228)]] * 3
        set_band_rules(connection, "tenant_1", rule(11))
        rebuild(application, *MONTH, actor="ada", apply=True)
    assert bands() == [[("context=0", 123, 1228)]] * 3
    archive.let_go(connection, actor="ada")
    archive.recall(connection, files, *MONTH, actor="ada")
    assert bands() == [[("context=0", 123, 1228)]] * 3


def test_nothing_is_dropped_while_its_period_is_open_its_horizon_not_over_or_its_archive_missing(
    connection: psycopg.Connection, october: ChunkApplier, files: Archive
) -> None:
    retention_store.set_closed_before(connection, LATER, actor="ada")
    retention_store.move_forgotten(connection, LATER)
    retention_store.set_closed_before(connection, None, actor="ada")  # opened again
    assert archive.drop(connection, files, LATER, actor="ada") == []
    retention_store.set_closed_before(connection, NOVEMBER, actor="ada")
    assert archive.droppable(connection, LATER).hindered_by == "2026-10-01 is not in the archive"
    archive.archive_days(connection, files, OCTOBER, OCTOBER + DAY, actor="ada")
    found = archive.droppable(connection, LATER)
    assert (found.days, found.hindered_by) == ((date(2026, 10, 1),), "2026-10-02 is not in the archive")
    assert count(connection, "events") == 125


def test_days_behind_the_horizon_alone_are_dropped(
    connection: psycopg.Connection, october: ChunkApplier, files: Archive
) -> None:
    archive.archive_days(connection, files, *MONTH, actor="ada")
    retention_store.set_closed_before(connection, NOVEMBER, actor="ada")
    now = OCTOBER + 47 * DAY + timedelta(hours=1)  # two whole days lie 45 days and five minutes back
    Retention(connection, RetentionSettings()).step(now, at_once=True)
    assert archive.drop(connection, files, now, actor="ada") == [date(2026, 10, 1), date(2026, 10, 2)]
    assert count(connection, "events") == 43


def test_what_was_attempted_before_an_open_month_stays_until_it_is_closed_and_is_asked_for_afterwards(
    connection: psycopg.Connection, applier: ChunkApplier, files: Archive
) -> None:
    """Else both attempts of a request would bill."""
    second = timedelta(seconds=1)
    times = [NOVEMBER - 8 * DAY, NOVEMBER - second, NOVEMBER + second]
    named: list[dict[str, object]] = [{}, {"request_id": "r", "status": "aborted"}, {"request_id": "r", "attempt": 2}]
    applier.apply(Chunk(SOURCE, [at(n, *[times[n]] * 2, **each) for n, each in enumerate(named)]))
    month = (NOVEMBER, NOVEMBER + 30 * DAY)
    archive.archive_days(connection, files, OCTOBER, month[1], actor="ada")
    assert close_and_drop(connection, files) == [date(2026, 10, 24)]
    both = list(usage_store.retried_usage(connection, *month))
    assert [each.attempt for each in both] == [1, 2]
    assert close_and_drop(connection, files, month[1]) == [date(2026, 10, 31), date(2026, 11, 1)]
    archive.recall(connection, files, *month, actor="ada")
    with pytest.raises(EventsArchived, match="2026-10-31 are only in the archive"):
        list(usage_store.retried_usage(connection, *month))
    archive.recall(connection, files, NOVEMBER - DAY, NOVEMBER, actor="ada")
    assert list(usage_store.retried_usage(connection, *month)) == both


def test_a_file_that_was_damaged_is_written_again_while_the_database_has_its_rows_and_refused_afterwards(
    connection: psycopg.Connection, october: ChunkApplier, files: Archive, tmp_path: Path
) -> None:
    archive.archive_days(connection, files, *MONTH, actor="ada")
    (first, *others) = sorted((tmp_path / "archive").rglob("*.parquet"))
    first.write_bytes(first.read_bytes()[:-9] + b"123456789")
    again = archive.archive_days(connection, files, *MONTH, actor="ada")
    assert [day.changed for day in again] == [True, False, False]
    shutil.rmtree(others[0].parent)
    close_and_drop(connection, files)  # verifies, and mends what is missing before it drops
    first.write_bytes(first.read_bytes()[:-9] + b"123456789")
    with pytest.raises(ArchiveDamaged):
        archive.recall(connection, files, *MONTH, actor="ada")
    (tmp_path / "archive/events/day=2026-10-02/manifest.json").write_bytes(b"{}")
    with pytest.raises(ArchiveDamaged, match="not the one that was written"):
        list(events_of(connection, lambda: files, "tenant_1", OCTOBER + DAY, OCTOBER + 2 * DAY))


def test_an_event_that_came_after_the_archiving_is_archived_before_the_drop_and_none_comes_afterwards(
    connection: psycopg.Connection, october: ChunkApplier, files: Archive
) -> None:
    archive.archive_days(connection, files, *MONTH, actor="ada")
    late = at(125, OCTOBER + timedelta(hours=5), OCTOBER + 30 * DAY, request_id="late")
    assert october.apply(Chunk(SOURCE, [late])).applied == 1
    close_and_drop(connection, files)
    held = archive_store.archived_days(connection, OCTOBER, OCTOBER + DAY)
    assert [day.rows for day in held] == [41]
    too_late = at(126, OCTOBER + timedelta(hours=5), OCTOBER + 30 * DAY, request_id="too-late")
    assert october.apply(Chunk(SOURCE, [too_late])).quarantined == 1
    with pytest.raises(psycopg.Error, match="only in the archive"):
        connection.execute("update usage.archived_days set rows = 0")


def test_archiving_and_dropping_go_on_where_they_were_interrupted(
    connection: psycopg.Connection, october: ChunkApplier, files: Archive
) -> None:
    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archive.archive_days(connection, files, *MONTH, actor="ada", progress=stop)
    assert [day.changed for day in archive.archive_days(connection, files, *MONTH, actor="ada")] == [False, True, True]
    retention_store.set_closed_before(connection, NOVEMBER, actor="ada")
    Retention(connection, RetentionSettings()).step(LATER, at_once=True)
    with pytest.raises(KeyboardInterrupt):
        archive.drop(connection, files, LATER, actor="ada", progress=stop)
    assert count(connection, "events") == 125  # sealed, and all there
    assert len(archive.drop(connection, files, LATER, actor="ada")) == 3
    assert archive.drop(connection, files, LATER, actor="ada") == []


def test_what_belongs_to_an_archived_event_cannot_change_it_any_more(
    connection: psycopg.Connection, october: ChunkApplier, files: Archive
) -> None:
    """Its identity may be younger than its completion: then it is known still, and its raw event is not there."""
    minted = uuid_v7(NOVEMBER + 70 * DAY)
    early = at(125, OCTOBER + timedelta(hours=5), OCTOBER + 30 * DAY, request_id=minted, usage_source="gateway")
    assert october.apply(Chunk(SOURCE, [early])).applied == 1
    archive.archive_days(connection, files, *MONTH, actor="ada")
    close_and_drop(connection, files)
    again = at(126, NOVEMBER, LATER, request_id=minted, output_tokens=99)
    done = october.apply(Chunk(SOURCE, [again]))
    assert (done.applied, done.quarantined) == (0, 1)
    hours = usage_store.usage_of(connection, "tenant_1", OCTOBER, NOVEMBER + DAY, ())[0].totals
    assert hours == totals_of(events_of(connection, lambda: files, "tenant_1", OCTOBER, NOVEMBER + DAY))


def test_the_same_day_written_twice_is_the_same_file(
    connection: psycopg.Connection, october: ChunkApplier, files: Archive, tmp_path: Path
) -> None:
    archive.archive_days(connection, files, *MONTH, actor="ada")
    names = sorted(path.name for path in (tmp_path / "archive").rglob("*.parquet"))
    other = Archive(str(tmp_path / "other"))
    archive.archive_days(connection, other, *MONTH, actor="ada")
    assert sorted(path.name for path in (tmp_path / "other").rglob("*.parquet")) == names
    table = pq.read_table(next((tmp_path / "archive/events/day=2026-10-01").rglob("*.parquet")), partitioning=None)
    assert table.num_rows == 40
    assert bytes(table["raw"][0].as_py()).startswith(b'{"tenant_id": "tenant_1"')
