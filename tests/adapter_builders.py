"""Values of the adapter with defaults, and a spool that is read back."""

from __future__ import annotations

from pathlib import Path

from serving_adapter.clock import ReplicaClock
from serving_adapter.events import UsageEvent
from serving_adapter.spool import writer
from serving_adapter.spool.folders import BEGIN, BootFolder
from serving_adapter.spool.journal import BootJournal, SpoolSettings
from serving_adapter.spool.reader import Spooled, read_from
from serving_adapter.spool.records import Record, read

writer.HANGS_AFTER_S = 60.0  # type: ignore[misc]  # no test is about how long this machine's disk takes

BEGUN_AT = "2026-11-05T10:00:00+00:00"


def lost(request_id: str, tenant_id: str = "tenant_a") -> UsageEvent:
    """The event that a request becomes if nothing more is heard of it."""
    return UsageEvent(
        tenant_id=tenant_id, request_id=request_id, model="tiny", input_tokens=0, output_tokens=0, timestamp=BEGUN_AT,
        started_at=BEGUN_AT, status="lost", fault="platform", usage_source="estimate",
    )  # fmt: skip


def ended(request_id: str, tenant_id: str = "tenant_a", *, input_tokens: int = 5, output_tokens: int = 3) -> UsageEvent:
    """The event of a request that was answered."""
    return UsageEvent(
        tenant_id=tenant_id, request_id=request_id, model="tiny", input_tokens=input_tokens,
        output_tokens=output_tokens, timestamp=BEGUN_AT, started_at=BEGUN_AT, finish_reason="stop",
    )  # fmt: skip


def open_journal(root: Path, **settings: object) -> BootJournal:
    """A boot's journal in a spool."""
    return BootJournal(SpoolSettings(root, **settings), "r1", ReplicaClock())  # type: ignore[arg-type]


def records(folder: BootFolder) -> list[Record]:
    """All that is durable in a boot."""
    return [read(found.payload) for found in read_from(folder, BEGIN) if isinstance(found, Spooled)]


def events(folder: BootFolder) -> list[UsageEvent]:
    """Its events."""
    return [record for record in records(folder) if isinstance(record, UsageEvent)]
