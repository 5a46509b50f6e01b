"""The writing thread's end."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from serving_adapter.spool.folders import BootFolder
from serving_adapter.spool.records import Farewell
from serving_adapter.spool.writer import SpoolWriter


def test_a_writer_that_is_closed_while_it_waits_for_a_disk_writes_and_ends(tmp_path: Path) -> None:
    failed = threading.Event()

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if not failed.is_set():
            failed.set()
            raise OSError("no room")
        return os.pwrite(fd, data, offset)

    writer = SpoolWriter(BootFolder(tmp_path), retry_after=30, pwrite=pwrite)
    writer.put(Farewell(at="2026-11-01T00:00:00Z", last_seq=0, started=0, ended=0))
    assert failed.wait(60)
    assert writer.flush(60), "whoever asks while it waits is answered: it waits by now"
    writer.close(within_s=60)
    assert writer.dropped == 0


def test_each_segment_is_written_through_to_the_disk(tmp_path: Path) -> None:
    """A write returns once its bytes are durable: nothing syncs them afterwards."""
    through = list[bool]()

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        through.append(bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DSYNC))
        return os.pwrite(fd, data, offset)

    writer = SpoolWriter(BootFolder(tmp_path), segment_bytes=64, pwrite=pwrite)
    for _ in range(3):
        writer.put(Farewell(at="2026-11-01T00:00:00Z", last_seq=0, started=0, ended=0))
        assert writer.flush(60)
    writer.close(within_s=60)
    assert (through, writer.position.segment) == ([True] * 3, 3)
