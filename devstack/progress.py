"""What a person sees while things are installed and started: a line when a step begins, ends, or takes long."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

STILL_EVERY_S = 10.0  # a step that takes longer says so this often


class Progress:
    """Prints plain lines with the seconds since the start; safe to use from several threads."""

    def __init__(self, out: TextIO | None = None) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold what the locale cannot write
        self._out = out or sys.stdout
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        line = f"[{time.monotonic() - self._started:6.1f} s] {text}"
        with self._lock, suppress(OSError):  # a reader that is gone (`| head`) must not keep a service from stopping
            print(line, file=self._out, flush=True)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announce `name`, remind while it runs, and say how long it took (nothing when it fails: the error does)."""
        self.say(f"{name}...")
        began = time.monotonic()
        over = threading.Event()

        def remind() -> None:
            while not over.wait(STILL_EVERY_S):
                self.say(f"{name}: still at it after {time.monotonic() - began:.0f} s")

        reminder = threading.Thread(target=remind, daemon=True)
        reminder.start()
        try:
            yield
        finally:
            over.set()
            reminder.join()
        self.say(f"{name}: done in {time.monotonic() - began:.1f} s")
