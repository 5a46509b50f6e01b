"""HTTP/1.1 for many small requests: httptools' parser on an asyncio protocol, answers in the order of the requests.

A framework's price for a request is a task, a scope and two awaits: measured as 46 to 61 µs on uvicorn and granian,
where this costs 4 to 10 (docs/decisions/0018-quota-service.md). Everything is bounded: a request's head and body, the
time until it is there, the requests that wait on a connection, connections.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Final, cast

import httptools

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_BODY_BYTES: Final = 1024 * 1024
"""A thousand settlements are a quarter of that."""
MAX_WAITING: Final = 256
"""Requests of one connection that are not answered yet; a client that pipelines more is not read from meanwhile."""
REQUEST_WITHIN_S: Final = 10.0
IDLE_AT_MOST_S: Final = 75.0
LOOK_EVERY_S: Final = 5.0

_JSON: Final = b"application/json"
_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}


class Call:
    """A request, and where its answer goes."""

    __slots__ = ("_connection", "_data", "authorization", "body", "method", "target")

    def __init__(self, connection: Connection, method: bytes, target: bytes, authorization: bytes, body: bytes) -> None:
        self._connection = connection
        self._data: bytes | None = None
        self.method = method
        self.target = target
        self.authorization = authorization
        self.body = body

    @property
    def answered(self) -> bool:
        """Whether it has its answer."""
        return self._data is not None

    def flush(self) -> None:
        """Write the answers of its connection that are due."""
        self._connection.flush()

    def answer(
        self, status: int, body: bytes = b"", headers: Iterable[tuple[str, str]] = (), *,
        content_type: bytes = _JSON,
    ) -> Connection:  # fmt: skip
        """Give the answer; it is written by `flush` of the connection that is returned, after those before it."""
        if status == HTTPStatus.OK and not headers and content_type is _JSON:
            self._data = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\ncontent-type: application/json\r\n\r\n%s" % (
                len(body),
                body,
            )
            return self._connection
        head = b"HTTP/1.1 %d %s\r\n" % (status, _REASONS[status])
        if status != HTTPStatus.NO_CONTENT:
            head += b"content-length: %d\r\n" % len(body)
        if body:
            head += b"content-type: " + content_type + b"\r\n"
        for name, value in headers:
            head += f"{name}: {value}\r\n".encode("latin-1", "replace")
        self._data = head + b"\r\n" + body
        return self._connection


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: Connections) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Call] = deque()
        self._target = b""
        self._body: list[bytes] = []
        self._size = 0
        self._head_size = 0
        self._gathered: int | None = None
        self._authorization = b""
        self._last = False
        self._paused = False
        self._continue = False
        self.transport: asyncio.Transport | None = None
        self.since = 0.0
        """When the last request ended, or the one that is coming began (the loop's clock)."""
        self.receiving = False

    # asyncio's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self.since = self._server.now()
        self._server.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone; what it still waits for is answered to nobody."""
        self._server.remove(self)
        self.transport = None

    def data_received(self, data: bytes) -> None:
        """Bytes came: perhaps several requests."""
        if self._last or self.transport is None:
            return
        if not self.receiving:
            self.receiving, self.since = True, self._server.now()
        try:
            self._parser.feed_data(data)
            self._bound_head(len(data))
        except _TooLarge:
            self._refuse(431, "too large")
        except httptools.HttpParserUpgrade:
            self._refuse(400, "no upgrades here")
        except httptools.HttpParserCallbackError as problem:
            if not isinstance(problem.__context__, _TooLarge):
                raise
            self._refuse(413 if self._size else 431, "too large")
        except httptools.HttpParserError:
            self._refuse(400, "no HTTP")
        self.flush()

    # The parser's

    def on_message_begin(self) -> None:
        """A request begins."""
        self._target, self._body, self._size, self._head_size = b"", [], 0, 0
        self._gathered = -1  # the piece in which it begins may hold much else
        self._authorization = b""
        self._continue = False

    def on_url(self, url: bytes) -> None:
        """A part of its target."""
        self._head_size += len(url)
        if self._head_size > MAX_HEAD_BYTES:
            raise _TooLarge
        self._target = self._target + url if self._target else url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        size = len(name)
        self._head_size += size + len(value)
        if self._head_size > MAX_HEAD_BYTES:
            raise _TooLarge
        if size == 13 and name.lower() == b"authorization":
            self._authorization = value
        elif size == 6 and name.lower() == b"expect":
            self._continue = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        """The head is here."""
        self._gathered = None
        if self._continue and self.transport is not None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._size += len(body)
        if self._size > MAX_BODY_BYTES:
            raise _TooLarge
        self._body.append(body)

    def on_message_complete(self) -> None:
        """A request is here."""
        self.receiving, self.since = False, self._server.now()
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        call = Call(self, self._parser.get_method(), self._target, self._authorization, body)
        self._waiting.append(call)
        self._last = self._last or not self._parser.should_keep_alive()
        self._server.handle(call)
        if len(self._waiting) >= MAX_WAITING and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    # Ours

    def _bound_head(self, came: int) -> None:
        """The parser gathers a header of any length before it tells: bound what came of a head that has no end yet."""
        if self._gathered is not None:
            self._gathered = 0 if self._gathered < 0 else self._gathered + came
            if self._gathered > MAX_HEAD_BYTES:
                raise _TooLarge

    def flush(self) -> None:
        """Write the answers that are due, in the order of their requests."""
        due = []
        while self._waiting and self._waiting[0].answered:
            due.append(self._waiting.popleft()._data or b"")
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if due:
            transport.write(due[0] if len(due) == 1 else b"".join(due))
        if self._last and not self._waiting:
            transport.close()
        elif self._paused and len(self._waiting) < MAX_WAITING // 2:
            self._paused = False
            transport.resume_reading()

    def let_go(self) -> None:
        """No further requests: close once those that are here have their answers."""
        self._last = True
        self.flush()

    @property
    def is_waiting(self) -> bool:
        """Whether requests of it are not answered yet."""
        return bool(self._waiting)

    def _refuse(self, status: int, text: str) -> None:
        call = Call(self, b"", b"", b"", b"")
        call.answer(status, text.encode(), content_type=b"text/plain")
        self._waiting.append(call)
        self._last = True


class Connections:
    """All connections of a server."""

    def __init__(self, handle: Callable[[Call], None], at_most: int) -> None:
        self.handle = handle
        self._at_most = at_most
        self._all: set[Connection] = set()
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._looking = self._loop.create_task(self._look())

    def __call__(self) -> Connection:
        """A new connection's protocol."""
        return Connection(self)

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: Connection) -> None:
        """A connection was made; the one that has been idle for longest makes room if there are too many."""
        self._all.add(connection)
        if len(self._all) > self._at_most:
            idle = [each for each in self._all if not each.is_waiting and each is not connection]
            leaving = min(idle, key=lambda each: each.since, default=connection)
            if leaving.transport is not None:
                leaving.transport.abort()

    def remove(self, connection: Connection) -> None:
        """A connection is gone."""
        self._all.discard(connection)

    async def drain(self, within_s: float) -> None:
        """Let every connection go, those that wait after their answers."""
        self._looking.cancel()
        until = self.now() + within_s
        for connection in list(self._all):
            connection.let_go()
        while any(each.is_waiting for each in self._all) and self.now() < until:
            await asyncio.sleep(0.01)
        for connection in list(self._all):
            if connection.transport is not None:
                connection.transport.close()

    async def _look(self) -> None:
        """Close connections that say nothing, or say it too slowly."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = self.now()
            for connection in list(self._all):
                bound = REQUEST_WITHIN_S if connection.receiving else IDLE_AT_MOST_S
                if connection.transport is not None and not connection.is_waiting and now - connection.since > bound:
                    connection.transport.abort()


class _TooLarge(Exception):
    """A head or a body beyond its bound."""
