"""Connections that nobody can hold by saying nothing, or too much: bounds on a request's head, and room for newcomers.

uvicorn has none: its parser gathers a header of any length, and its only timer, for idle connections, begins with the
first answer and is stopped by any byte (uvicorn/protocols/http/httptools_impl.py). Bodies have their deadline where
they are read.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_WITHIN_S: Final = 5.0
MAX_HEAD_BYTES: Final = 64 * 1024
"""Beyond the piece of at most 256 KiB in which a head begins."""


class BoundedConnection(HttpToolsProtocol):
    """A connection that is closed if a request's head does not come in time, or has no end.

    The time begins when the connection is made, and later with the first byte after an answer: also of what is left of
    a body that was answered before it had come. Where there are as many connections as may be, a new one takes the
    place of the one that has waited longest for a head.
    """

    head_within_s: float = HEAD_WITHIN_S
    waiting_since: float | None = None
    """Since when it waits for a head (monotonic seconds); None while a request is being answered."""
    _deadline: asyncio.TimerHandle | None = None
    _head_bytes: int | None = None
    """Of a head that has begun and not ended: what came after the piece in which it began."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Asyncio's."""
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self._make_room()
        self.waiting_since = time.monotonic()
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Asyncio's."""
        super().data_received(data)
        if self._head_bytes is not None:
            self._head_bytes = 0 if self._head_bytes < 0 else self._head_bytes + len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.abort()
        if self.waiting_since is not None and self._deadline is None and not self.transport.is_closing():
            self._expect_head()

    def on_message_begin(self) -> None:
        """The parser's."""
        self._head_bytes = -1  # the piece in which it begins may hold much else
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The parser's."""
        self._head_bytes = None
        self._head_came()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """The cycle's."""
        if not self.pipeline:
            self.waiting_since = time.monotonic()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's."""
        self._head_came()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(self.head_within_s, self.transport.abort)

    def _head_came(self) -> None:
        self.waiting_since = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _make_room(self) -> None:
        others = (cast(BoundedConnection, each) for each in self.connections if each is not self)
        waiting = [each for each in others if each.waiting_since is not None]
        if waiting:
            longest = min(waiting, key=lambda each: each.waiting_since or 0.0)
            longest._head_came()
            longest.transport.abort()
