"""One thread writes and syncs what all requests put in: group commit. The event loop never waits for a disk.

What comes in while a sync goes on is the next group: one synchronous write (O_DSYNC: data as after fdatasync), one
wake-up of the loop for all of it. One call, because after each call the thread waits for the interpreter again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from serving_adapter.errors import AdapterError
from serving_adapter.events import UsageEvent
from serving_adapter.spool.folders import BEGIN, BootFolder, DurableMark, Position, sync_folder
from serving_adapter.spool.frames import framed
from serving_adapter.spool.records import Record, Replay, payload_of

SEGMENT_BYTES: Final = 16 * 1024 * 1024
GROUP_BYTES: Final = 1024 * 1024
"""At most so much in one write: a long backlog is not one long sync."""
LINGER_S: Final = 0.005
"""How long what nobody waits for waits for a start to be synced along with: no start waits for a sync of ends."""
RETRY_AFTER_S: Final = 1.0
HANGS_AFTER_S: Final = 5.0
"""A write that takes longer fails for whoever waits for it, whatever becomes of it."""
KEPT_RECORDS: Final = 200_000
"""Records that wait for a disk that fails, at about 500 bytes each; more of them are counted as dropped."""

Waiter = asyncio.Future[bool]
Pwrite = Callable[[int, memoryview, int], int]


class SpoolFailed(AdapterError):
    """The spool cannot be written."""


class _TooLate(Exception):
    """A write has succeeded after somebody was told that it had not."""


@dataclass(slots=True)
class _Item:
    """A record to write. `waiter` hears whether it is durable; one that is not `kept` is given up if it is not."""

    record: Record
    frame: bytes
    waiter: Waiter | None
    kept: bool
    written: Callable[[], None] | None = None
    is_durable: bool = False
    given_up: bool = False
    """Nobody waited until it was durable: under the writer's lock, as is the one before."""


class SpoolWriter:
    """Appends frames to one boot's segments."""

    def __init__(
        self,
        folder: BootFolder,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        retry_after: float = RETRY_AFTER_S,
        pwrite: Pwrite = os.pwrite,
        undurable: Callable[[UsageEvent], None] | None = None,
    ) -> None:
        """Begin a boot's first segment. Raises OSError where that cannot be done.

        `undurable` gets each event that waits for a disk that fails (`hand_on`), on whatever thread finds it.
        """
        self.folder = folder
        self.failed: str | None = None
        """Why the last write failed, while none has succeeded since."""
        self.groups = 0
        """Syncs so far."""
        self.sync_s = 0.0
        """What they took in all."""
        self.written_bytes = 0
        self.dropped = 0
        self._segment_bytes = segment_bytes
        self._retry_after = retry_after
        self._pwrite = pwrite
        self._undurable = undurable
        self._lock = threading.Lock()
        self._waiting: deque[_Item] = deque()
        """Events that are not on disk yet, in their order, and were not handed on: under the lock."""
        self._awaited: deque[tuple[float, _Item, Waiter]] = deque()
        """Until when somebody waits for which (the loop's clock), in this order: the loop's alone."""
        self._watched_by: asyncio.AbstractEventLoop | None = None
        """The loop with a timer for the first of them."""
        self._writing_since = 0.0
        """When the write that goes on began (monotonic); 0 between two."""
        self._queue: queue.SimpleQueue[_Item | threading.Event | None] = queue.SimpleQueue()
        self._mark = DurableMark(folder, writing=True)
        self._state = Replay()
        """What is on disk comes to: the writing thread's alone."""
        self._at = BEGIN
        self._head_bytes = 0
        self._fd: int | None = self._open_segment()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tollbook-spool", daemon=True)
        self._thread.start()

    @property
    def failing(self) -> str | None:
        """Why what is put in now may never be on disk: the last write has failed, or hangs."""
        since = self._writing_since
        if self.failed is None and since and time.monotonic() - since > HANGS_AFTER_S:
            return f"a write has taken more than {HANGS_AFTER_S:g} s"
        return self.failed

    @property
    def position(self) -> Position:
        """How far the segments are durable."""
        return self._at

    def put(self, record: Record, *, kept: bool = True, written: Callable[[], None] | None = None) -> None:
        """Write with the next group; tried again and again while the disk fails, if `kept`.

        `written` is called once it is on disk, in the writing thread.
        """
        item = _Item(record, framed(payload_of(record)), None, kept, written)
        if self._undurable is not None and isinstance(record, UsageEvent):
            with self._lock:
                self._waiting.append(item)
        self._queue.put(item)

    def put_durably(self, record: Record, *, kept: bool) -> Waiter:
        """The same; the future says True once it is on disk, False if that fails or hangs. On a running loop only."""
        loop = asyncio.get_running_loop()
        waiter: Waiter = loop.create_future()
        item = _Item(record, framed(payload_of(record)), waiter, kept)
        while self._awaited and self._awaited[0][2].done():
            self._awaited.popleft()
        self._awaited.append((loop.time() + HANGS_AFTER_S, item, waiter))
        if self._watched_by is not loop:
            self._watched_by = loop
            loop.call_later(HANGS_AFTER_S, self._watch, loop)
        self._queue.put(item)
        return waiter

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Who waits too long waits no more. One timer for all of them: one for each is dear."""
        now = loop.time()
        while self._awaited and (self._awaited[0][2].done() or self._awaited[0][0] <= now):
            _, item, waiter = self._awaited.popleft()
            self._give_up(item, waiter)
        self._watched_by = None
        if self._awaited:
            self._watched_by = loop
            loop.call_later(self._awaited[0][0] - now, self._watch, loop)

    def _give_up(self, item: _Item, waiter: Waiter) -> None:
        with self._lock:
            item.given_up = not item.is_durable and not waiter.done()
        if item.given_up:
            waiter.set_result(False)

    def hand_on(self) -> None:
        """Give away the events that wait for the disk, once each; it gets them all the same, if it can."""
        if self._undurable is not None:
            with self._lock:
                waiting, self._waiting = self._waiting, deque()
            for item in waiting:
                if isinstance(item.record, UsageEvent):
                    self._undurable(item.record)

    def flush(self, within_s: float) -> bool:
        """Wait until everything put in so far was written, or given up; whether that happened in time."""
        done = threading.Event()
        self._queue.put(done)
        return done.wait(within_s)

    def close(self, within_s: float = 5.0) -> None:
        """Write what waits, and end. Raises SpoolFailed if something could not be written."""
        self._stopping.set()
        self._queue.put(None)
        self._thread.join(within_s)
        self.hand_on()
        if self._thread.is_alive() or self.failed is not None:
            raise SpoolFailed(f"{self.folder.path}: not everything was written: {self.failed or 'the disk hangs'}")
        self._close_segment()
        self._mark.close()

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            items, events, ended = self._group(first)
            self._write_until_done(items)
            for event in events:
                event.set()
            if ended or (self._stopping.is_set() and (self.failed is not None or self._queue.empty())):
                return  # what said so may have been taken in while a disk that failed was waited for

    def _group(self, item: _Item | threading.Event | None) -> tuple[list[_Item], list[threading.Event], bool]:
        """What waits by now, up to a flush, the end, or GROUP_BYTES; at the latest when somebody waits for it."""
        items: list[_Item] = []
        size = 0
        is_awaited = False
        until = 0.0
        while True:
            if item is None:
                return items, [], True
            if isinstance(item, threading.Event):
                return items, [item], False
            items.append(item)
            size += len(item.frame)
            is_awaited = is_awaited or item.waiter is not None
            if size >= GROUP_BYTES:
                return items, [], False
            try:
                if is_awaited:
                    item = self._queue.get_nowait()
                else:
                    until = until or time.monotonic() + LINGER_S
                    item = self._queue.get(timeout=max(until - time.monotonic(), 0.0))
            except queue.Empty:
                return items, [], False

    def _write_until_done(self, items: list[_Item]) -> None:
        while items := [item for item in items if item.kept or not item.given_up]:
            self._writing_since = time.monotonic()
            try:
                self._write(items)
            except Exception as error:  # the disk's, as a rule; whatever it is, nobody waits for ever, and it is said
                self.failed = str(error) or type(error).__name__
                self._writing_since = 0.0
                self.hand_on()
                _tell(items, durable=False)
                items = [item for item in items if item.kept]
                for item in items:
                    item.waiter = None
                self._give_up_segment()
                if self._stopping.is_set():
                    self.dropped += len(items)
                    return
                self._wait_and_take_in(items)
            else:
                self.failed = None
                self._writing_since = 0.0
                _tell(items, durable=True)
                self._mark.publish(self._at)
                for item in items:
                    self._state.feed(item.record)
                    if item.written is not None:
                        item.written()
                return

    def _settle(self, items: list[_Item]) -> None:
        """They are durable. Raises _TooLate where one of them may not be: what it asked for was refused."""
        with self._lock:
            if any(item.given_up and not item.kept for item in items):
                raise _TooLate(f"a write has taken more than {HANGS_AFTER_S:g} s")
            for item in items:
                item.is_durable = True
            while self._waiting and self._waiting[0].is_durable:
                self._waiting.popleft()

    def _wait_and_take_in(self, items: list[_Item]) -> None:
        """Pause after a failure; who comes meanwhile and waits is answered at once, and others wait along."""
        until = time.monotonic() + self._retry_after
        while (left := until - time.monotonic()) > 0 and not self._stopping.is_set():
            try:
                item = self._queue.get(timeout=left)
            except queue.Empty:
                return
            if isinstance(item, _Item):
                _tell([item], durable=False)
                item.waiter = None
                self.hand_on()
                if item.kept and len(items) < KEPT_RECORDS:
                    items.append(item)
                else:
                    self.dropped += item.kept
            elif item is not None:
                item.set()

    def _write(self, items: list[_Item]) -> None:
        data = b"".join(item.frame for item in items)
        most = max(self._segment_bytes, 2 * self._head_bytes)  # however much all segments begin with
        if self._at.offset and self._at.offset + len(data) > most:
            self._close_segment()
        if self._fd is None:
            self._at = Position(self._at.segment + 1, 0)
            self._fd = self._open_segment()
        if not self._at.offset:
            head = b"".join(framed(payload_of(record)) for record in self._state.head())
            data, self._head_bytes = head + data, len(head)
        at, offset = memoryview(data), self._at.offset
        began = time.monotonic()
        while at:
            written = self._pwrite(self._fd, at, offset)
            at, offset = at[written:], offset + written
        self.sync_s += time.monotonic() - began
        self._settle(items)
        self._at = Position(self._at.segment, offset)
        self.groups += 1
        self.written_bytes += len(data)

    def _open_segment(self) -> int:
        fd = os.open(self.folder.segment(self._at.segment), os.O_WRONLY | os.O_DSYNC | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):  # a file system without it only syncs a little slower
                os.posix_fallocate(fd, 0, self._segment_bytes)
            os.fsync(fd)
            sync_folder(self.folder.path)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _close_segment(self) -> None:
        """Give back what was allocated and not needed."""
        fd, self._fd = self._fd, None
        if fd is not None:
            try:
                os.ftruncate(fd, self._at.offset)
                os.fsync(fd)
            finally:
                os.close(fd)

    def _give_up_segment(self) -> None:
        """After a failed sync nobody knows what of it is on disk: cut off what was not durable, go on in a new one."""
        with contextlib.suppress(OSError):
            self._close_segment()


def _tell(items: list[_Item], *, durable: bool) -> None:
    """One wake-up for each loop that waits."""
    waiting: defaultdict[asyncio.AbstractEventLoop, list[Waiter]] = defaultdict(list)
    for item in items:
        if item.waiter is not None:
            waiting[item.waiter.get_loop()].append(item.waiter)
    for loop, waiters in waiting.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, waiters, durable)


def _resolve(waiters: list[Waiter], durable: bool) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(durable)
