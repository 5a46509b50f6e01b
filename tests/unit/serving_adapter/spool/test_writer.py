"""The writing thread's end."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from serving_adapter.spool.folders import BootFolder
from serving_adapter.spool.records import Farewell
from serving_adapter.spool.writer import SpoolWriter


def test_a_writer_that_is_closed_while_it_waits_for_a_disk_writes_and_ends(tmp_path: Path) -> None:
    failed = threading.Event()

    def sync(_: int) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError("no room")

    writer = SpoolWriter(BootFolder(tmp_path), retry_after=30, sync=sync)
    writer.put(Farewell(at="2026-11-01T00:00:00Z", last_seq=0, started=0, ended=0))
    assert failed.wait(10)
    time.sleep(0.3)  # it waits by now; were it not, what was put in would be given up, and said so
    writer.close(within_s=10)
    assert writer.dropped == 0
