"""Callers of a quota server that ask without rest, while something happens to it."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from tests.fixtures_quota_server import QuotaServerProcess


class Load:
    """Threads that ask, one request after another, and what they were answered."""

    def __init__(self, server: QuotaServerProcess, threads: int = 3) -> None:
        self.admitted: dict[str, int] = {}
        self.resets: dict[str, datetime] = {}
        self.statuses: set[int] = set()
        self._server = server
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(threads)]

    def _ask(self, thread: int) -> None:
        number = 0
        while not self._ends.is_set():
            name = f"load-{thread}-{number}"
            number += 1
            try:
                reply = self._server.ask(name, max_tokens=16)
            except (OSError, http.client.HTTPException):
                self.statuses.add(0)
                continue
            self.statuses.add(reply.status)
            if reply.status == 200:
                self.admitted[name] = reply.body["max_tokens"]
                self.resets[name] = datetime.fromisoformat(reply.body["quotas"][0]["resets_at"])

    @contextmanager
    def running(self) -> Iterator[Load]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._ends.set()
            for thread in self._threads:
                thread.join()

    def until(self, what: Callable[[], bool], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"it did not happen: {self.statuses}"
            time.sleep(0.02)
