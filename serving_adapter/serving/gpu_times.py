"""GPU time of attempts: waited for a little while, and told as a correction where it comes later.

The engine knows a sequence's time one step after its last token at most. Until then its event waits, with its counts
on disk as progress; an engine that tells nothing is waited for once.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from serving_adapter.engine.attempts import Attempt
from serving_adapter.engine.gpu_reports import GpuReceiver, GpuReport
from serving_adapter.events import UsageEvent
from serving_adapter.identity import event_id_text_of, identity_of
from serving_adapter.metering.tenant_metrics import TenantMetrics
from serving_adapter.spool.journal import BootJournal

WITHIN_S: Final = 1.0
MOST_OWED: Final = 100_000
"""Sequences whose time an engine has not told; beyond that the earliest are given up."""


@dataclass(slots=True)
class _Owed:
    """An attempt that is over, with sequences whose time has not come; corrections so far."""

    event: UsageEvent
    corrections: int = 0


class GpuTimes:
    """One process's. Everything on its event loop."""

    def __init__(self, path: str, journal: BootJournal, metrics: TenantMetrics) -> None:
        """Raises GpuSocketFailed."""
        self._journal = journal
        self._metrics = metrics
        self._told_something = True
        self._ever_told = False
        self._attempts: dict[str, Attempt] = {}
        self._waiting: set[int] = set()
        self._owed: dict[int, _Owed] = {}
        self._receiver = GpuReceiver(path, self.told)

    def announce(self, sequence_id: str, attempt: Attempt) -> None:
        """A sequence begins whose time the engine will tell."""
        self._attempts[sequence_id] = attempt
        if len(self._attempts) > MOST_OWED:
            self._over_with(self._attempts.pop(next(iter(self._attempts))))
        attempt.gpu_late |= not self._told_something

    def wait(self, attempt: Attempt) -> None:
        """An attempt is over but for its GPU time."""
        if attempt.no not in self._waiting:
            self._waiting.add(attempt.no)
            self._journal.progress([attempt.so_far()])
            asyncio.get_running_loop().call_later(WITHIN_S, self._give_up, attempt)

    def may_follow(self, attempt: Attempt) -> bool:
        """Whether GPU time of an attempt may come after its event: not of an engine that never told any."""
        return self._ever_told and bool(attempt.gpu_awaited)

    def ended(self, attempt: Attempt, event: UsageEvent) -> None:
        """Its event is told; what of its time comes now is a correction."""
        self._waiting.discard(attempt.no)
        if attempt.gpu_awaited:
            self._owed[attempt.no] = _Owed(event)

    def told(self, report: GpuReport) -> None:
        """The engine's word."""
        self._told_something = self._ever_told = True
        self._metrics.engine_gpu(report.busy_us, report.since_us, report.gpus)
        for sequence_id, gpu_us in report.ended:
            attempt = self._attempts.pop(sequence_id, None)
            if attempt is None:
                self._metrics.unowned_gpu_us += gpu_us
            else:
                more_us = gpu_us - attempt.gpu_so_far.get(sequence_id, 0)
                if attempt.over and more_us:
                    self._correct(attempt, more_us)
                attempt.took(sequence_id, gpu_us)
                if attempt.over and not attempt.gpu_awaited:
                    self._over_with(attempt)
        for sequence_id, so_far_us in report.running:
            attempt = self._attempts.get(sequence_id)
            if attempt is not None and not attempt.over:
                attempt.gpu_so_far[sequence_id] = so_far_us

    def close(self) -> None:
        """The engine has ended."""
        self._receiver.close()

    def _give_up(self, attempt: Attempt) -> None:
        if not attempt.over:
            self._told_something = False
            attempt.without_gpu()

    def _over_with(self, attempt: Attempt) -> None:
        """No correction of it will come."""
        self._owed.pop(attempt.no, None)
        self._journal.told_all(attempt.no)

    def _correct(self, attempt: Attempt, gpu_us: int) -> None:
        owed = self._owed.get(attempt.no)
        if owed is None:
            self._metrics.unowned_gpu_us += gpu_us
            return
        owed.corrections += 1
        event = owed.event
        self._journal.amend(
            replace(
                event, kind="correction", correction_no=owed.corrections, corrects=event_id_text_of(identity_of(event)),
                input_tokens=0, output_tokens=0, cache_hit_tokens=0, engine_input_tokens=None,
                engine_output_tokens=None, engine_cached_tokens=None, gpu_us=gpu_us, duration_ms=0, ttft_ms=None,
            )
        )  # fmt: skip
        self._metrics.gpu(event, gpu_us)
