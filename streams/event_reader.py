"""A tenant's single events, wherever they are: in the database, or only in the archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import psycopg

from streams.archive_manifest import COLUMNS, bucket_of
from streams.archive_store import archived_days, midnight
from streams.usage_store import UsageTotals

if TYPE_CHECKING:
    from streams.archive_files import Archive

IN_DATABASE: Final = "database"
IN_ARCHIVE: Final = "archive"
_EVENTS: Final = """
    select completed_at, request_id, attempt, kind, correction_no, model, status, usage_source, rating_band, purpose,
        input_tokens, cache_hit_tokens, output_tokens, gpu_us, source, position, raw,
        not exists (select from usage.superseded_events as s where s.source = e.source and s.position = e.position)
    from usage.present_events as e
    where tenant_id = %(tenant)s and completed_at >= %(start)s and completed_at < %(end)s
      and (%(request)s::text is null or request_id = %(request)s)
    order by completed_at, request_id, attempt, kind desc, correction_no, source, position
"""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One raw event, and whether it counts: one that another took the place of does not."""

    completed_at: datetime
    request_id: str
    attempt: int
    kind: str
    correction_no: int
    model: str
    status: str
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
    """A tenant's events in [start, end), by completion; `open_archive` is called if a day is only there.

    Raises ArchiveDamaged, ArchiveUnavailable.
    """
    at = start
    for held in archived_days(connection, start, end):
        if held.is_gone:
            day = midnight(held.day)
            after = min(end, day + timedelta(days=1))
            yield from _in_database(connection, tenant_id, at, day, request_id)
            archive = open_archive()
            manifest = archive.manifest(held.day, held.manifest_sha256)
            bucket = bucket_of(tenant_id, manifest.buckets)
            yield from _from_archive(archive.rows(manifest, bucket, tenant_id), max(at, day), after, request_id)
            at = after
    yield from _in_database(connection, tenant_id, at, end, request_id)


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


def _stored(row: tuple[Any, ...], kept_in: str) -> StoredEvent:
    return StoredEvent(*row, kept_in)  # type: ignore[call-arg]  # as many as it has fields
