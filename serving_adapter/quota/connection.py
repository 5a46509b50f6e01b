"""HTTP to the quota service over one kept connection, requests one behind another without waiting (pipelining).

Only what the service itself sends is understood: a status line, headers, a body of a told length. Anything else, and
any silence, closes the connection; whoever waits is told.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, NamedTuple

CONNECT_WITHIN_S: Final = 1.0
SILENT_AT_MOST_S: Final = 1.0
"""Who has not answered a call for so long, or for as long as it was waited for, is gone without a word."""
WAITING_AT_MOST: Final = 1024


class NoAnswer(Exception):
    """The service did not answer, or not as it should."""


class Answer(NamedTuple):
    """What the service said. Header names in lower case."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class QuotaConnection(asyncio.Protocol):
    """One connection; made anew when it is needed and gone."""

    def __init__(self, host: str, port: int, secret: str) -> None:
        self._host = host
        self._port = port
        self._head = f"host: {host}:{port}\r\nauthorization: Bearer {secret}\r\ncontent-type: application/json\r\n"
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[asyncio.Future[Answer], float]] = deque()
        """Who waits, and when the connection is given up if it still does."""
        self._received = b""
        self._connecting: asyncio.Task[None] | None = None

    async def call(self, method: str, path: str, body: bytes, within_s: float) -> Answer:
        """The answer. Raises NoAnswer. An answer that comes too late is thrown away."""
        try:
            async with asyncio.timeout(within_s):
                if self._waiting and asyncio.get_running_loop().time() > self._waiting[0][1]:
                    self._drop()
                if self._transport is None:
                    await self._connect()
                return await self._send(method, path, body, within_s)
        except (TimeoutError, OSError) as error:
            raise NoAnswer(str(error) or "no answer in time") from None

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()
        if self._connecting is not None:
            self._connecting.cancel()

    def _drop(self) -> None:
        """The peer is silent: whoever waits is told, and the next call makes a new connection."""
        if self._transport is not None:
            self._transport.abort()
        self.connection_lost(None)

    def _send(self, method: str, path: str, body: bytes, within_s: float) -> asyncio.Future[Answer]:
        if self._transport is None or len(self._waiting) >= WAITING_AT_MOST:
            raise OSError("the connection is gone, or too many wait")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((answer, loop.time() + max(within_s, SILENT_AT_MOST_S)))
        head = f"{method} {path} HTTP/1.1\r\n{self._head}content-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)
        return answer

    async def _connect(self) -> None:
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connected())
            self._connecting.add_done_callback(self._is_connected)
        await asyncio.shield(self._connecting)  # it goes on when the one who asked has given up

    async def _connected(self) -> None:
        async with asyncio.timeout(CONNECT_WITHIN_S):
            await asyncio.get_running_loop().create_connection(lambda: self, self._host, self._port)

    def _is_connected(self, task: asyncio.Task[None]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's."""
        self._transport = transport  # type: ignore[assignment]
        self._received = b""

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's."""
        self._transport = None
        waiting, self._waiting = self._waiting, deque()
        for answer, _ in waiting:
            if not answer.done():
                answer.set_exception(OSError("the service closed the connection"))
                answer.exception()

    def data_received(self, data: bytes) -> None:
        """Asyncio's."""
        self._received += data
        while self._waiting and (end := self._received.find(b"\r\n\r\n")) >= 0:
            lines = self._received[:end].split(b"\r\n")
            status, size, headers = _status_of(lines[0]), 0, []
            for line in lines[1:]:
                name, _, value = line.decode("latin-1").partition(":")
                headers.append((name.lower(), value.strip()))
                if headers[-1][0] == "content-length" and headers[-1][1].isdigit():
                    size = int(headers[-1][1])
            if status is None:
                if self._transport is not None:
                    self._transport.abort()
                return
            if len(self._received) < end + 4 + size:
                return
            body = self._received[end + 4 : end + 4 + size]
            self._received = self._received[end + 4 + size :]
            answer, _ = self._waiting.popleft()
            if not answer.done():
                answer.set_result(Answer(status, tuple(headers), body))


def _status_of(line: bytes) -> int | None:
    words = line.split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[0].startswith(b"HTTP/1.") and words[1].isdigit() else None
