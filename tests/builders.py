"""Values for tests: defaults, and what the test is about."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from streams.chunks import Chunk, Record, Source

RECEIVED = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
EVENT: dict[str, Any] = {
    "tenant_id": "tenant_1",
    "request_id": "req-1",
    "model": "llama",
    "input_tokens": 10,
    "output_tokens": 5,
    "cache_hit_tokens": 4,
    "timestamp": "2026-11-01T10:00:30.25Z",
}
SOURCE = Source("kafka:test.usage.v1/0", "cluster-1", "topic-1")


def event_json(**changed: Any) -> bytes:
    """One event as JSON."""
    return json.dumps(EVENT | changed).encode()


def make_record(position: int, value: bytes | None = None, **changed: Any) -> Record:
    """A message; its request id follows its position unless given."""
    if value is None:
        value = event_json(**({"request_id": f"req-{position}"} | changed))
    return Record(position, b"tenant_1", value, RECEIVED)


def make_chunk(*records: Record, source: Source = SOURCE) -> Chunk:
    """A chunk of the test's source."""
    return Chunk(source, records, leader_epoch=0)
