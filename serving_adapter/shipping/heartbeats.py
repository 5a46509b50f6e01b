"""Each second, straight to Kafka and not through the spool: how far this boot is (docs/spec/metering.md 6.2).

A thread of the adapter's own process. It raises nothing: serving goes on while Kafka is away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from serving_adapter import replica_reports
from serving_adapter.errors import AdapterError
from serving_adapter.replica_reports import BootReport, Heartbeat
from serving_adapter.spool.journal import BootJournal

INTERVAL_S: Final = 1.0
ENDED_WITHIN_S: Final = 25.0
"""A last heartbeat that finds no Kafka is given up."""


class Heartbeats:
    """Says boot, then a heartbeat each second until told to stop."""

    def __init__(
        self, journal: BootJournal, send: Callable[[replica_reports.Report], None], interval: float = INTERVAL_S
    ) -> None:
        """`send` returns once Kafka has the report; it may raise AdapterError."""
        self.sent = 0
        self.failures = 0
        self._journal = journal
        self._send = send
        self._interval = interval
        self._begun = journal.standing(0).at
        self._told_boot = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tollbook-heartbeats", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """A last one, and end."""
        self._stop.set()
        self._thread.join(ENDED_WITHIN_S)

    def beat(self) -> None:
        """Say how far the boot is, once. Raises AdapterError."""
        journal = self._journal
        if not self._told_boot:
            self._send(BootReport(replica_id=journal.replica_id, boot_id=journal.boot_id, at=self._begun))
            self._told_boot = True
        now = journal.standing()
        self._send(
            Heartbeat(
                replica_id=journal.replica_id, boot_id=journal.boot_id, at=now.at, last_seq=now.last_seq,
                started=now.started, ended=now.ended, open=now.open, totals=now.totals,
                clock_offset_ms=journal.clock.offset_ms(), not_durable=journal.not_durable, lost_from=now.lost_from,
            )
        )  # fmt: skip
        journal.confirm(now.totals)

    def _run(self) -> None:
        while True:
            last = self._stop.is_set()
            try:
                self.beat()
                self.sent += 1
            except AdapterError:
                self.failures += 1
            if last:
                return
            self._stop.wait(self._interval)
