"""Single stored events with what only the raw message says: when the request started, and its labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg
from psycopg.rows import class_row

from serving_adapter.events import decode
from streams.retention.archive_store import require_present
from streams.rules.rating_bands import started_at

FETCHED: Final = 5000


@dataclass(frozen=True, slots=True)
class RequestEvent:
    """A stored event. Token counts are tokens, `gpu_us` microseconds; a correction's are signed deltas."""

    tenant_id: str
    request_id: str
    attempt: int
    kind: str
    correction_no: int
    completed_at: datetime
    model: str
    adapter: str
    region: str
    tier: str
    status: str
    fault: str
    usage_source: str
    input_tokens: int
    cache_hit_tokens: int
    output_tokens: int
    gpu_us: int
    raw: bytes

    def said(self) -> tuple[datetime, Mapping[str, str]]:
        """When the request started, and its labels."""
        event = decode(self.raw)
        return started_at(event, self.completed_at), event.labels or {}


_EVENTS: Final = """
    select tenant_id, request_id, attempt, kind, correction_no, completed_at, model, adapter, region, tier, status,
        fault, usage_source, input_tokens, cache_hit_tokens, output_tokens, gpu_us, raw
    from usage.counting_events
    where tenant_id = %s and completed_at >= %s and completed_at < %s and purpose = 'tenant'
"""


def request_events(
    connection: psycopg.Connection, tenant_id: str, start: datetime, end: datetime
) -> Iterator[RequestEvent]:
    """A tenant's events that completed in [start, end), in no order, FETCHED at a time. Needs a transaction.

    A correction completes with what it corrects. Raises EventsArchived.
    """
    require_present(connection, start, end)
    with connection.cursor(name="request_events", row_factory=class_row(RequestEvent)) as cursor:
        cursor.itersize = FETCHED
        cursor.execute(_EVENTS, (tenant_id, start, end))
        yield from cursor
