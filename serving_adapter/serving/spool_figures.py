"""What an operator sees of the spool and of the ways to Kafka: a part of the metrics page."""

from __future__ import annotations

import contextlib

import msgspec

from serving_adapter.shipping.direct import DirectShipper
from serving_adapter.shipping.heartbeats import Heartbeats
from serving_adapter.shipping.position import load
from serving_adapter.spool.journal import BootJournal


class SpoolFigures:
    """One process's."""

    def __init__(self, journal: BootJournal, direct: DirectShipper | None) -> None:
        self.heartbeats: Heartbeats | None = None
        self._journal = journal
        self._direct = direct
        self._unshipped = 0

    def measure(self) -> None:
        """Look at the disk; each second, and not on the event loop. Raises OSError."""
        self._journal.measure()
        with contextlib.suppress(msgspec.MsgspecError):
            shipped = load(self._journal.folder)
            self._unshipped = max(0, self._journal.spooled - shipped.events - shipped.poison)

    def page(self) -> str:
        """Prometheus' text."""
        journal, disk = self._journal, self._journal.disk()
        told: list[tuple[str, str, float]] = [
            ("spool_used_bytes", "gauge", disk.used_bytes),
            ("spool_bound_bytes", "gauge", disk.bound_bytes),
            ("spool_failing", "gauge", disk.failing),
            ("spool_not_durable", "gauge", journal.not_durable),
            ("spool_unshipped_events", "gauge", self._unshipped),
            ("spool_dropped_records_total", "counter", journal.dropped),
            ("spool_syncs_total", "counter", journal.syncs),
            ("spool_sync_seconds_total", "counter", journal.sync_s),
        ]
        if self._direct is not None:
            told += [("direct_sent_events_total", "counter", self._direct.sent)]
            told += [("direct_lost_events_total", "counter", self._direct.lost)]
        if self.heartbeats is not None:
            told += [("heartbeats_total", "counter", self.heartbeats.sent)]
            told += [("heartbeat_failures_total", "counter", self.heartbeats.failures)]
        return "".join(
            f"# TYPE tollbook_{name} {kind}\ntollbook_{name} {round(float(n), 6)}\n" for name, kind, n in told
        )
