"""Values for tests: defaults, and what the test is about."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from streams.rules.chunks import Chunk, Record, Source

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
REPLICA_SOURCE = Source("kafka:test.replicas.v1/0", "cluster-1", "topic-2")


def uuid_v7(at: datetime, rest: int = 0) -> str:
    """A UUIDv7 minted at a time."""
    ms = round((at - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1))
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7{rest & 0xFFF:03x}-8{rest & 0xFFF:03x}-{rest & 0xFFFFFFFFFFFF:012x}"


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
    return Chunk(source, records)


def numbered(position: int, seq: int, *, replica: str = "r1", boot: str = "b1", **changed: Any) -> Record:
    """An event that a replica has numbered."""
    return make_record(position, **({"replica_id": replica, "boot_id": boot, "seq": seq} | changed))


def report_json(kind: str, *, replica: str = "r1", boot: str = "b1", at: datetime = RECEIVED, **more: Any) -> bytes:
    """One report of a replica as JSON; a heartbeat's or farewell's other counts follow its last number."""
    if kind in ("heartbeat", "farewell"):
        last_seq = more.get("last_seq", 0)
        more = {"last_seq": last_seq, "started": last_seq, "ended": last_seq} | more
    if kind == "heartbeat":
        more = {"open": 0} | more
    return json.dumps({"type": kind, "replica_id": replica, "boot_id": boot, "at": at.isoformat()} | more).encode()


def make_report(position: int, kind: str, *, at: datetime = RECEIVED, **more: Any) -> Record:
    """A report that the broker got when the replica sent it."""
    return Record(position, b"r1", report_json(kind, at=at, **more), at)
