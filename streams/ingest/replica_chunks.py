"""A chunk of replicas' reports, and what it comes to for each boot: values in, values out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from serving_adapter.errors import RefusedEvent
from serving_adapter.replica_reports import (
    BootReport,
    EngineCounters,
    Farewell,
    Heartbeat,
    Report,
    counting_since,
    decode,
    proves_to,
    reported_at,
)
from streams.completeness.complete_to import BootKey
from streams.completeness.engine_witness import EngineRun, EngineTokens, RunKey
from streams.completeness.witnesses import Counts
from streams.rules.chunks import FUTURE_ALLOWED, Record, Refused


class Said(NamedTuple):
    """A report that was read: what, when by the replica's clock, when the broker got it."""

    report: Report
    at: datetime
    received_at: datetime


class Quiet(NamedTuple):
    """How far a boot was, and the earliest report that says so with nothing open; None while something is."""

    last_seq: int
    started: int
    since: datetime | None

    def joined(self, other: Quiet) -> Quiet:
        """Both reports: the further one, and of equal ones the earlier; in any order."""
        if self[:2] != other[:2]:
            return max(self, other, key=lambda quiet: quiet[:2])
        return self._replace(since=min((at for at in (self.since, other.since) if at is not None), default=None))


NEVER_QUIET: Final = Quiet(-1, -1, None)


class Mark(NamedTuple):
    """A last number: the latest time at which it was reported, and the latest that it proves once all is here."""

    reported_at: datetime
    proves_to: datetime


@dataclass(slots=True)
class BootNews:
    """What a chunk says about one boot; None where it says nothing."""

    first_received_at: datetime
    last_received_at: datetime
    begun_at: datetime | None = None
    heartbeat_at: datetime | None = None
    last_seq: int = 0
    started: int | None = None
    ended: int | None = None
    open: int | None = None
    clock_offset_ms: int | None = None
    not_durable: bool = False
    durable_to: datetime | None = None
    """The latest heartbeat by which every request was on a disk."""
    farewell_at: datetime | None = None
    quiet: Quiet = NEVER_QUIET
    marks: dict[int, Mark] = field(default_factory=dict)
    """By last number."""
    totals: dict[tuple[str, str], Counts] = field(default_factory=dict)


@dataclass(slots=True)
class News:
    """What a chunk says: of boots, and of engines by run."""

    boots: dict[BootKey, BootNews] = field(default_factory=dict)
    engines: dict[RunKey, EngineRun] = field(default_factory=dict)


def read(record: Record) -> Said | Refused:
    """Decode one message."""
    try:
        report = decode(record.value)
        at = reported_at(report)
    except RefusedEvent as refused:
        return Refused(record, refused.reason, str(refused), None)
    if at > record.appended_at + FUTURE_ALLOWED:
        detail = f"at {at.isoformat()} lies after {record.appended_at.isoformat()}, when it was received"
        return Refused(record, "future", detail, None)
    if record.unreadable:
        return Refused(record, "invalid", record.unreadable, None)
    return Said(report, at, record.appended_at)


def news(reports: Iterable[Said]) -> News:
    """What the reports come to. They are in order, since a replica's reports share a partition."""
    found = News()
    for report, at, received_at in reports:
        key = (report.replica_id, report.boot_id)
        if isinstance(report, EngineCounters):
            for run_key, run in _runs(report, at):
                known = found.engines.get(run_key)
                found.engines[run_key] = known.joined(run) if known else run
            continue
        boot = found.boots.setdefault(key, BootNews(received_at, received_at))
        boot.last_received_at = max(boot.last_received_at, received_at)
        if isinstance(report, BootReport):
            boot.begun_at = boot.begun_at or at
        else:
            _add_progress(boot, report, at)
    return found


def _runs(report: EngineCounters, at: datetime) -> Iterable[tuple[RunKey, EngineRun]]:
    """What one scrape says of each model's run."""
    since = counting_since(report)
    for model in report.models:
        tokens = EngineTokens(model.prompt_tokens, model.generation_tokens, model.cached_tokens or 0)
        known = model.cached_tokens is not None
        run = EngineRun(tokens, tokens, known, report.from_zero, at, at, model.finished)
        yield RunKey(report.replica_id, report.boot_id, model.model, since), run


def _add_progress(boot: BootNews, report: Heartbeat | Farewell, at: datetime) -> None:
    boot.last_seq = max(boot.last_seq, report.last_seq)
    mark = Mark(at, proves_to(report))
    known = boot.marks.get(report.last_seq, mark)
    boot.marks[report.last_seq] = Mark(*map(max, known, mark))
    boot.totals |= {
        (t.tenant_id, t.model): Counts(t.events, t.input_tokens, t.output_tokens, t.cache_hit_tokens)
        for t in report.totals
    }
    if isinstance(report, Heartbeat):
        boot.heartbeat_at = at
        boot.started, boot.ended, boot.open = report.started, report.ended, report.open
        boot.clock_offset_ms = report.clock_offset_ms
        if report.not_durable:
            boot.not_durable = True
        else:
            boot.durable_to = max(boot.durable_to or at, at)
        quiet = Quiet(report.last_seq, report.started, None if report.open else at)
    else:
        boot.farewell_at = at
        quiet = Quiet(report.last_seq, report.started, at)
        if report.started:
            boot.started, boot.ended, boot.open = report.started, report.ended, 0
    boot.quiet = boot.quiet.joined(quiet)
