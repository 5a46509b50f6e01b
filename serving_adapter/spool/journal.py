"""One boot's journal: numbers events, keeps starts, progress and ends, counts. What the rest of the adapter writes to.

The lock makes one step of reading the clock, numbering an event and putting it in order: a heartbeat that says a time
and a last number promises that whatever was completed by then has that number or a lower one. But for what a kill would
leave to recovery, which dates it by what the disk has, and for GPU time that follows an event as a correction: of both
the heartbeat says the earliest time (`lost_from`).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from msgspec.structs import replace

from serving_adapter.clock import ReplicaClock, rfc3339
from serving_adapter.errors import AdapterError
from serving_adapter.events import UsageEvent
from serving_adapter.replica_reports import MOST_TOTALS, Total
from serving_adapter.request_ids import uuid7
from serving_adapter.spool.disk_bound import DiskState, Policy, room_for
from serving_adapter.spool.folders import BootFolder, WriterLock, boot_folder, sync_folder, used_bytes
from serving_adapter.spool.records import MOST_PROGRESS, Boot, Farewell, OpenRequest, Progress, Start, Tally
from serving_adapter.spool.writer import SEGMENT_BYTES, Pwrite, SpoolFailed, SpoolWriter

BOUND_BYTES: Final = 4 * 1024**3
CLOSED_WITHIN_S: Final = 5.0
OWED_FOR_NS: Final = 60 * 10**9
"""What an engine tells of an event so long after it is still waited for: one that never tells it holds nobody back."""


class NoRoom(AdapterError):
    """The spool's disk is full or broken: by its policy no further request may begin."""


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """Where the spool lies, how large it may grow with all boots in it, and what happens then."""

    root: Path
    bound_bytes: int = BOUND_BYTES
    policy: Policy = "block"
    segment_bytes: int = SEGMENT_BYTES


class Standing(NamedTuple):
    """How far a boot is, for a heartbeat. `at` was read before the rest."""

    at: str
    last_seq: int
    started: int
    ended: int
    open: int
    totals: list[Total]
    lost_from: str | None
    """The earliest time of what may still be told of the time before `at`: of a `lost` event, if the process died now,
    or of an event whose GPU time may follow; None where there is neither."""


class BootJournal:
    """The journal of this process. `start` on an event loop, all else from any thread."""

    def __init__(
        self,
        settings: SpoolSettings,
        replica_id: str,
        clock: ReplicaClock,
        *,
        about: dict[str, str] | None = None,
        undurable: Callable[[UsageEvent], None] | None = None,
        pwrite: Pwrite = os.pwrite,
    ) -> None:
        """Begin a boot. `undurable` gets the events that memory alone holds: without it nothing is served from memory.

        Raises SpoolFailed.
        """
        self.replica_id = replica_id
        self.boot_id = uuid7(clock.now_ns())
        self.settings = settings
        self.clock = clock
        self.not_durable = False
        """Whether this boot has served requests that were not on disk (`serve_memory`)."""
        self._undurable = undurable
        self._lock = threading.Lock()
        self._tally = Tally()
        self._last_no = self._last_seq = self._started = self._ended = 0
        self._open: set[int] = set()
        self._dated: dict[int, int] = {}
        """Times (ns) of the events that recovery would have to make now: of what is open, or has no end on disk."""
        self._owed: dict[int, int] = {}
        """Times (ns) of the events whose GPU time may follow as a correction, in their order."""
        self._in_memory: set[int] = set()
        """Those of which the spool has no start, and gets no end."""
        self._past_the_disk = 0
        """Events that it never gets."""
        boot = Boot(replica_id=replica_id, boot_id=self.boot_id, at=rfc3339(clock.now_ns()), about=about or {})
        try:
            self.folder, self._held = _make(settings.root, replica_id, self.boot_id)
            self._writer = SpoolWriter(
                self.folder, segment_bytes=settings.segment_bytes, pwrite=pwrite,
                undurable=undurable if settings.policy == "serve_memory" else None,
            )  # fmt: skip
            self._writer.put(boot)
            self._used = used_bytes(settings.root)
        except OSError as error:
            raise SpoolFailed(f"cannot begin a spool in {settings.root}: {error}") from None
        if not self._writer.flush(10.0) or self._writer.failing is not None:
            raise SpoolFailed(f"cannot write a spool in {settings.root}: {self._writer.failing or 'the disk hangs'}")

    @property
    def syncs(self) -> int:
        """How often the disk was synced."""
        return self._writer.groups

    @property
    def sync_s(self) -> float:
        """How long that took in all."""
        return self._writer.sync_s

    @property
    def dropped(self) -> int:
        """Records that a disk that failed too long never got."""
        return self._writer.dropped

    @property
    def spooled(self) -> int:
        """Events that the spool has, or will have."""
        return self._last_seq - self._past_the_disk

    @property
    def failing(self) -> str | None:
        """Why the last write failed, while none has succeeded since; or that one hangs."""
        return self._writer.failing

    def measure(self) -> DiskState:
        """How much of the disk's bound is used, and does a disk that failed work again? Call it each second."""
        if self._writer.failing is not None:
            self._writer.put(Progress(at=rfc3339(self.clock.now_ns()), open=[]), kept=False)
            self._writer.hand_on()
        self._used = used_bytes(self.settings.root)
        return self.disk()

    def disk(self) -> DiskState:
        """The disk as it was measured last; a segment is allocated whole, so it grows by segments."""
        return DiskState(self._used, self.settings.bound_bytes, len(self._open), self._writer.failing is not None)

    async def start(self, lost: UsageEvent, *, may_be_shed: bool = False) -> int:
        """Put a request's start on disk; its number. Return before, and the engine must not see it.

        `lost` is the event that it becomes if nothing more is heard. Raises NoRoom. A caller that is cancelled
        meanwhile, as servers do it when they go down, has had a request that ended before the engine saw it.
        """
        room = room_for(self.settings.policy, self.disk(), may_be_shed=may_be_shed)
        if room == "refused" or (room == "memory" and self._undurable is None):
            raise NoRoom(f"the spool has no room: {self._writer.failing or 'its bound is reached'}")
        if room == "memory":
            return self._start_in_memory()
        goes_on = self._undurable is not None and self.settings.policy == "serve_memory"
        with self._lock:
            no, begun = self._begun(lost)
            waiter = self._writer.put_durably(begun, kept=goes_on)
        try:
            durable = await waiter
        except asyncio.CancelledError:
            self._count_started()
            self.end(
                no, replace(lost, status="aborted", fault="platform", finish_reason=lost.finish_reason or "shutdown")
            )
            raise
        if not durable and not goes_on:
            with self._lock:
                self._open.discard(no)
                self._dated.pop(no, None)
            raise NoRoom(f"the spool cannot be written: {self._writer.failing or 'the disk hangs'}")
        self._count_started()
        self.not_durable |= not durable
        return no

    def _start_in_memory(self) -> int:
        with self._lock:
            self._last_no = no = self._last_no + 1
            self._in_memory.add(no)
            self._started += 1
            self.not_durable = True
        return no

    def start_now(self, lost: UsageEvent) -> int:
        """Note work that nobody asked us about; its start rides along with the next group."""
        if self._memory_alone():
            return self._start_in_memory()
        with self._lock:
            no, begun = self._begun(lost)
            self._started += 1
            self._writer.put(begun)
        return no

    def _begun(self, lost: UsageEvent) -> tuple[int, Start]:
        """Number a request that begins now, and date what it becomes if nothing more is heard."""
        self._last_no = no = self._last_no + 1
        self._open.add(no)
        self._dated[no] = now_ns = self.clock.now_ns()
        lost = replace(lost, timestamp=rfc3339(now_ns), replica_id=self.replica_id, boot_id=self.boot_id)
        return no, Start(no=no, lost=lost)

    def end(self, no: int, event: UsageEvent, *, gpu_follows: bool = False) -> UsageEvent:
        """A request has ended now: number its event, give it its time, and put it into the next group.

        `gpu_follows`: corrections (`amend`) may bring its GPU time, until `told_all`.
        """
        with self._lock:
            self._last_seq += 1
            now_ns = self.clock.now_ns()
            if gpu_follows:
                self._owed[no] = now_ns
            event = replace(
                event,
                timestamp=rfc3339(now_ns),
                replica_id=self.replica_id,
                boot_id=self.boot_id,
                seq=self._last_seq,
            )
            self._ended += 1
            self._tally.add(event)
            if in_memory := no in self._in_memory:
                self._in_memory.discard(no)
                self._past_the_disk += 1
            else:
                self._open.discard(no)
                self._writer.put(event, written=lambda: self._date([no], None))
        self._send_undurable(event, in_memory)
        return event

    def amend(self, correction: UsageEvent) -> None:
        """A correction of an event of this boot: numbered as the events are, and counted as no request."""
        in_memory = self._memory_alone()
        with self._lock:
            self._last_seq += 1
            event = replace(
                correction, timestamp=rfc3339(self.clock.now_ns()), replica_id=self.replica_id, boot_id=self.boot_id,
                seq=self._last_seq,
            )  # fmt: skip
            self._tally.add(event)
            if in_memory:
                self._past_the_disk += 1
            else:
                self._writer.put(event)
        self._send_undurable(event, in_memory)

    def told_all(self, no: int) -> None:
        """No GPU time of this request follows any more."""
        with self._lock:
            self._owed.pop(no, None)

    def _memory_alone(self) -> bool:
        """Whether what begins now is not for the disk."""
        return (
            self._undurable is not None and room_for(self.settings.policy, self.disk(), may_be_shed=False) == "memory"
        )

    def _send_undurable(self, event: UsageEvent, in_memory: bool) -> None:
        """To Kafka directly what the disk does not get, or may never take."""
        if self._undurable is not None and in_memory:
            self._undurable(event)
        elif self._writer.failing is not None:
            self._writer.hand_on()

    def progress(self, requests: Sequence[OpenRequest]) -> None:
        """How far the open requests are; rides along with the next group."""
        known = [request for request in requests if request.no not in self._in_memory]
        now_ns = self.clock.now_ns()
        for first in range(0, len(known), MOST_PROGRESS):
            part = known[first : first + MOST_PROGRESS]
            dated = partial(self._date, [request.no for request in part], now_ns)
            self._writer.put(Progress(at=rfc3339(now_ns), open=part), kept=False, written=dated)

    def _date(self, numbers: Sequence[int], at_ns: int | None) -> None:
        """The disk has these requests' progress of that time; None: their events."""
        with self._lock:
            for no in numbers:
                if at_ns is None:
                    self._dated.pop(no, None)
                elif no in self._dated:
                    self._dated[no] = at_ns

    def standing(self, most_totals: int = MOST_TOTALS) -> Standing:
        """For a heartbeat."""
        with self._lock:
            now_ns = self.clock.now_ns()
            totals = self._tally.changed(most_totals)
            started, ended = self._started, self._ended
            self._owed = {no: at for no, at in self._owed.items() if at > now_ns - OWED_FOR_NS}
            dated = [*self._dated.values(), *self._owed.values()]
            lost_from = rfc3339(min(dated)) if dated else None
            return Standing(rfc3339(now_ns), self._last_seq, started, ended, started - ended, totals, lost_from)

    def confirm(self, totals: list[Total]) -> None:
        """A heartbeat with these totals has arrived."""
        with self._lock:
            self._tally.confirm(totals)

    def close(self, within_s: float = CLOSED_WITHIN_S) -> Farewell | None:
        """Say farewell and let go of the boot; None while requests are open: then it is left to recovery.

        Raises SpoolFailed if something could not be written in time; with `serve_memory` its events were handed on.
        """
        with self._lock:
            farewell = Farewell(
                at=rfc3339(self.clock.now_ns()), last_seq=self._last_seq, started=self._started, ended=self._ended
            )
            whole = not self._open and not self._in_memory
            if whole:
                self._writer.put(farewell)
        try:
            self._writer.close(within_s)
        finally:
            self._held.release()
        return farewell if whole else None

    def _count_started(self) -> None:
        with self._lock:
            self._started += 1


def _make(root: Path, replica_id: str, boot_id: str) -> tuple[BootFolder, WriterLock]:
    """A boot's folder, locked before anybody else can see it."""
    folder = boot_folder(root, replica_id, boot_id)
    hidden = BootFolder(folder.path.with_name(f".{folder.path.name}"))
    hidden.path.mkdir(parents=True, mode=0o700)
    held = WriterLock.take(hidden)
    assert held is not None  # nobody else knows this name
    hidden.path.rename(folder.path)
    held.moved_to(folder)
    sync_folder(folder.path.parent)
    return folder, held
