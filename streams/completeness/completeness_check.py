"""The check that workers make each second: fold, prove, name gaps, look at boots, raise alerts.

One at a time over all workers (an advisory lock); the others pass. What it raises is an outbox row in the same
transaction, so that two checks, or one that was killed and repeated, raise it once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

import psycopg

from streams import alerts
from streams.alerts import Alert
from streams.completeness import completeness_store, number_store
from streams.completeness.complete_to import Boot, BootState, state_of
from streams.settings import CompletenessSettings

CHECK_LOCK: Final = 0x6761_7073
"""The letters "gaps"."""
DELIVERY_LOCK: Final = 0x616C_7274
PAUSE: Final = timedelta(seconds=20)
"""A pause between two checks after which silence is counted anew: longer than busy workers rest between two."""
CLOCK_OFFSET_ALERT_MS: Final = 1000
"""Rule 3: an offset above one second alerts."""
THIN_EVERY: Final = timedelta(minutes=1)
FOLD_COUNTS_EVERY: Final = timedelta(seconds=10)
"""Chunks count the same tenants of the same boots over and over: ten seconds of them change few more rows than one."""

PORTIONS_A_RUN: Final = 20
"""So many fold 2 million numbers; then alerts are delivered, before it goes on."""


class _Outcome(Enum):
    """What became of a portion: another worker was at it, there is more to fold, or all was looked at."""

    BUSY = "busy"
    MORE = "more"
    DONE = "done"


@dataclass(slots=True)
class CompletenessCheck:
    """Checks over one connection in autocommit mode."""

    connection: psycopg.Connection
    settings: CompletenessSettings
    _thinned_at: datetime | None = None
    _counts_folded_at: datetime | None = None

    def run(self, now: datetime | None = None) -> bool:
        """Check once, at `now` (default: the database's clock). False if another worker is at it.

        What has piled up is folded first, a bounded portion a transaction: gaps are named and boots judged only by what
        is all there. After PORTIONS_A_RUN the rest waits for the next run.
        """
        outcome = _Outcome.MORE
        for _ in range(PORTIONS_A_RUN):
            outcome = self._portion(now)
            if outcome is not _Outcome.MORE:
                break
        return outcome is not _Outcome.BUSY

    def _portion(self, now: datetime | None) -> _Outcome:
        """Fold a portion; if it was the last one, look at what is there."""
        with self.connection.transaction():
            locked, clock = self.connection.execute(
                "select pg_try_advisory_xact_lock(%s), clock_timestamp()", (CHECK_LOCK,)
            ).fetchone() or (False, None)
            if not locked:
                return _Outcome.BUSY
            now = now or clock
            assert now is not None
            watching_since = self._watching_since(now)
            if self._counts_folded_at is None or now - self._counts_folded_at >= FOLD_COUNTS_EVERY:
                number_store.fold_counts(self.connection)
                self._counts_folded_at = now
            if not number_store.fold(self.connection, now):
                return _Outcome.MORE
            number_store.name_gaps(self.connection, now, self.settings.settle)
            if self._thinned_at is None or now - self._thinned_at >= THIN_EVERY:
                number_store.thin_marks(self.connection)
                self._thinned_at = now
            raised = completeness_store.gap_alerts(self.connection, now, self.settings.alert_after)
            raised += self._ended_without_farewell(now, watching_since)
            raised += self._clocks_that_are_off(now)
            raised += self._not_durable(now)
            raised += self._written_off_in_vain(now)
            alerts.raise_all(self.connection, raised)
        return _Outcome.DONE

    def _watching_since(self, now: datetime) -> datetime:
        """Since when checks go on without a pause."""
        row = self.connection.execute(
            "insert into usage.completeness_watch as w (watching_since, checked_at) values (%(now)s, %(now)s)"
            " on conflict (only_row) do update set checked_at = %(now)s,"
            " watching_since = case when %(now)s - w.checked_at > %(pause)s then %(now)s else w.watching_since end"
            " returning watching_since",
            {"now": now, "pause": PAUSE},
        ).fetchone()
        assert row is not None, "the row was just written"
        since: datetime = row[0]
        return since

    def _ended_without_farewell(self, now: datetime, watching_since: datetime) -> list[Alert]:
        """Report each boot that broke off, once; one that was heard of again, once more."""
        boots = completeness_store.reported_boots(self.connection, "no_farewell")
        latest = completeness_store.latest_beginnings(self.connection)  # after it: a replica may begin in between
        raised = []
        for boot in boots:
            state = state_of(boot, [latest[boot.replica_id]], now, watching_since, self.settings.silent_after)
            if state.ended_without_farewell:
                heard = boot.last_received_at.isoformat() if boot.last_received_at else ""
                found = self._found(boot, "no_farewell", _broke_off(boot, state), now, last_heard_of=heard)
                raised.append(found)
        return raised

    def _clocks_that_are_off(self, now: datetime) -> list[Alert]:
        """Report each boot whose clock is off by more than a second, once."""
        return [
            self._found(boot, "clock_offset", f"its clock is off by {boot.clock_offset_ms} ms", now)
            for boot in completeness_store.reported_boots(self.connection, "clock_offset")
            if boot.clock_offset_ms is not None and abs(boot.clock_offset_ms) > CLOCK_OFFSET_ALERT_MS
        ]

    def _not_durable(self, now: datetime) -> list[Alert]:
        """Report each boot that served what no disk had, once."""
        detail = "served requests that no disk had: they may be missing, and nobody could tell (streams write-off)"
        return [
            self._found(boot, "not_durable", detail, now)
            for boot in completeness_store.reported_boots(self.connection, "not_durable")
            if boot.not_durable
        ]

    def _written_off_in_vain(self, now: datetime) -> list[Alert]:
        """Tell, once, of each boot that goes on though a person said that nothing more would come of it."""
        detail = 'goes on, though it was written off: "complete to" waits for nothing that it makes (restart it)'
        return [
            Alert(
                "written_off_in_vain", boot.replica_id, {"replica_id": boot.replica_id, "boot_id": boot.boot_id},
                f"boot {boot.boot_id}: {detail}", now,
            )
            for boot in completeness_store.written_off_in_vain(self.connection)
        ]  # fmt: skip

    def _found(self, boot: Boot, finding: str, detail: str, now: datetime, **more: str) -> Alert:
        subject = {"replica_id": boot.replica_id, "boot_id": boot.boot_id} | more
        alert = Alert(finding, boot.replica_id, subject, f"boot {boot.boot_id}: {detail}", now)
        completeness_store.record_finding(self.connection, boot, finding, alert)
        return alert


def _broke_off(boot: Boot, state: BootState) -> str:
    heard = boot.last_received_at.isoformat() if boot.last_received_at else "never"
    why = "another boot has begun" if state is BootState.REPLACED else "no heartbeat"
    return f"ended without a farewell ({why}); last heard of {heard}, last number {boot.last_seq}"


def deliver_alerts(connection: psycopg.Connection, send: Callable[[list[Alert], Callable[[Alert], None]], None]) -> int:
    """Hand undelivered alerts to `send`, which tells of each that Kafka has acknowledged; returns how many those are.

    Where it fails, the others are sent again the next time. No transaction is open meanwhile. A kill in between sends
    them again as well: at least once, under the same ids.
    """
    (free,) = connection.execute("select pg_try_advisory_lock(%s)", (DELIVERY_LOCK,)).fetchone() or (False,)
    if not free:
        return 0
    try:
        acknowledged: list[Alert] = []
        try:
            if waiting := alerts.undelivered(connection):
                send(waiting, acknowledged.append)
        finally:
            if acknowledged:
                alerts.mark_delivered(connection, acknowledged)
        return len(acknowledged)
    finally:
        connection.execute("select pg_advisory_unlock(%s)", (DELIVERY_LOCK,))
