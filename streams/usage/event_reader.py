"""A tenant's single events, wherever they are: in the database, or only in the archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from heapq import merge
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import psycopg

from serving_adapter.events import Kind
from streams.retention.archive_manifest import COLUMNS, bucket_of
from streams.retention.archive_store import archived_days, midnight
from streams.usage.usage_store import UsageTotals

if TYPE_CHECKING:
    from streams.retention.archive_files import Archive

FETCHED: Final = 2000
"""Rows of a fetch: a megabyte, about."""
IN_DATABASE: Final = "database"
IN_ARCHIVE: Final = "archive"
_EVENTS: Final = """
    select completed_at, request_id, attempt, kind, correction_no, model, adapter, region, tier, status, fault,
        usage_source, rating_band, purpose, input_tokens, cache_hit_tokens, output_tokens, gpu_us, source, position,
        raw, not exists (select from usage.superseded_events as s where s.source = e.source and s.position = e.position)
    from usage.present_events as e
    where tenant_id = %(tenant)s and completed_at >= %(start)s and completed_at < %(end)s
      and (%(request)s::text is null or request_id = %(request)s)
    order by completed_at, request_id collate "C", attempt, kind desc, correction_no, source collate "C", position
"""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One raw event, and whether it counts: one that another took the place of does not."""

    completed_at: datetime
    request_id: str
    attempt: int
    kind: Kind
    correction_no: int
    model: str
    adapter: str
    region: str
    tier: str
    status: str
    fault: str
    usage_source: str
    rating_band: str
    purpose: str
    input_tokens: int
    cache_hit_tokens: int
    output_tokens: int
    gpu_us: int
    source: str
    position: int
    raw: bytes
    counts: bool
    kept_in: str


def events_of(
    connection: psycopg.Connection,
    open_archive: Callable[[], Archive],
    tenant_id: str,
    start: datetime,
    end: datetime,
    request_id: str | None = None,
) -> Iterator[StoredEvent]:
    """A tenant's events in [start, end), by completion; `open_archive` is called if some of a day are only there.

    Raises ArchiveDamaged, ArchiveUnavailable.
    """
    at = start
    gone = [held for held in archived_days(connection, start, end) if held.is_gone]
    for of, parts in groupby(gone, key=lambda held: held.day):
        day = midnight(of)
        first, after = max(at, day), min(end, day + timedelta(days=1))
        yield from _in_database(connection, tenant_id, at, day, request_id)
        archive, found = open_archive(), [_in_database(connection, tenant_id, first, after, request_id)]
        for held in parts:
            manifest = archive.manifest(held.day, held.manifest_sha256, held.part)
            rows = archive.rows(manifest, bucket_of(tenant_id, manifest.buckets), tenant_id)
            found.append(_from_archive(rows, first, after, request_id))
        yield from merge(*found, key=_order)
        at = after
    yield from _in_database(connection, tenant_id, at, end, request_id)


def positions(connection: psycopg.Connection) -> dict[str, int]:
    """How far each source of usage is applied: the position where it goes on."""
    rows = connection.execute("select source, next_position from usage.sources where feed = 'usage'")
    return dict(rows.fetchall())


def as_of(
    connection: psycopg.Connection, events: Iterator[StoredEvent], below: Mapping[str, int]
) -> Iterator[StoredEvent]:
    """Events as they were when each source was applied up to a position: without what came, or took a place, later."""
    for event in events:
        if event.position >= below.get(event.source, 0):
            continue
        if not event.counts:
            by = connection.execute(
                "select by_source, by_position from usage.superseded_events where source = %s and position = %s",
                (event.source, event.position),
            ).fetchone()
            if by is not None and by[1] >= below.get(by[0], 0):
                event = replace(event, counts=True)
        yield event


def totals_of(events: Iterator[StoredEvent]) -> UsageTotals:
    """Sums of events as windows add them up: those that count, of the tenant's own traffic."""
    requests = inputs = outputs = cached = gpu_us = 0
    for event in events:
        if event.counts and event.purpose == "tenant":
            requests += event.kind == "usage"
            inputs += event.input_tokens
            outputs += event.output_tokens
            cached += event.cache_hit_tokens
            gpu_us += event.gpu_us
    return UsageTotals(requests, inputs, outputs, cached, gpu_us)


def _in_database(
    connection: psycopg.Connection, tenant_id: str, start: datetime, end: datetime, request_id: str | None
) -> Iterator[StoredEvent]:
    if start >= end:
        return
    with connection.transaction(), connection.cursor(name="events") as cursor:
        cursor.itersize = FETCHED
        cursor.execute(_EVENTS, {"tenant": tenant_id, "start": start, "end": end, "request": request_id})
        for row in cursor:
            yield _stored(row, IN_DATABASE)


def _from_archive(
    rows: Iterator[tuple[Any, ...]], start: datetime, end: datetime, request_id: str | None
) -> Iterator[StoredEvent]:
    at = [COLUMNS.index(field.name) for field in fields(StoredEvent)[:-1]]
    for row in rows:
        event = _stored(tuple(row[i] for i in at), IN_ARCHIVE)
        if start <= event.completed_at < end and request_id in (None, event.request_id):
            yield event


def _order(event: StoredEvent) -> tuple[object, ...]:
    """As the database and the archive's files order a tenant's events."""
    named = (event.completed_at, event.request_id, event.attempt)
    return (*named, event.kind != "usage", event.correction_no, event.source, event.position)


def _stored(row: tuple[Any, ...], kept_in: str) -> StoredEvent:
    return StoredEvent(*row, kept_in)  # type: ignore[call-arg]  # as many as it has fields
