"""A connection to an engine's server: one request after another, and the answer of each as it comes."""

from __future__ import annotations

import asyncio
import select
from typing import Final, NamedTuple, cast

import httptools

HELD_BYTES: Final = 64 * 1024
"""Of an answer that the tenant has not taken: the engine is not read from meanwhile. No head is longer."""


class Came(NamedTuple):
    """What came of an answer's body since the last time."""

    body: bytes
    is_whole: bool
    """With it the answer is whole."""
    is_end: bool
    """Nothing follows it."""


class Connection(asyncio.Protocol):
    """A connection to the engine's server, and the answer that comes on it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._coming: asyncio.Future[None] | None = None
        self._held = 0
        self._is_paused = False
        self._keeps_alive = False
        self.status = 0
        """Of an answer that is not interim; 0 before its head is whole."""
        self.headers: list[tuple[bytes, bytes]] = []
        self.problem = ""
        """Why what came is no answer."""
        self.done = True
        """The answer is whole."""
        self.ended = False
        """Nothing more will come."""
        self.is_abandoned = False
        """Nobody waits for the answer."""
        self._body: list[bytes] = []

    # The request's side

    @property
    def is_reusable(self) -> bool:
        """Whether it may be asked again."""
        if self._transport is None or self._transport.is_closing() or self.ended or self._body:
            return False
        is_asked = not self._transport.get_write_buffer_size()  # else it was answered before
        return self.done and self._keeps_alive and is_asked

    @property
    def is_quiet(self) -> bool:
        """Whether nothing came that the loop has not read yet: its end, or what was not asked for."""
        assert self._transport is not None, "it was connected"
        looking = select.poll()
        looking.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not looking.poll(0)

    def ask(self, request: bytes) -> None:
        """Send a request; its answer follows."""
        assert self._transport is not None, "it was connected"
        self._parser = httptools.HttpResponseParser(self)
        self.status, self.headers, self.done, self._keeps_alive = 0, [], False, False
        self._transport.write(request)

    async def more(self) -> Came:
        """What came since; waits until there is something: the head (`status`), some of the body, or the end."""
        if not (self._body or self.done or self.ended):
            self._read_on()
            self._coming = asyncio.get_running_loop().create_future()
            await self._coming
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._read_on()
        return Came(body, self.done, self.ended)

    def abandon(self) -> None:
        """Nobody waits for the answer any more."""
        if not self.done:
            self.is_abandoned = True
            self.close()
            self._end()

    def close(self) -> None:
        """At once: an engine stops generating what nobody reads."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._end()

    def eof_received(self) -> None:
        """The engine's server says nothing more: an answer may end so. The transport closes itself."""
        told = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        self.done = self.done or bool(self.status and not told and not self.problem)
        self._end()

    def data_received(self, data: bytes) -> None:
        """A piece of the answer."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as problem:
            self._refuse(str(problem))
            return
        self._held += len(data)
        if self._held > HELD_BYTES and not (self.status or self.done):
            self._refuse(f"its head is longer than {HELD_BYTES} bytes")
            return
        if self._held > HELD_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        if self._body or self.done or self.status:
            self._tell()

    # The parser's

    def on_message_begin(self) -> None:
        """A head begins; one before it was interim."""
        if self.done:
            raise _Unasked
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header. Those that follow a body are nobody's."""
        if not self.status:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status
            self._keeps_alive = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        """A part of the body, without chunks."""
        self._body.append(data)

    def on_message_complete(self) -> None:
        """The end, where the answer tells its own."""
        self.done = bool(self.status)

    # Ours

    def _refuse(self, why: str) -> None:
        self.problem = f"The engine's answer cannot be read: {why}"
        self._end()

    def _end(self) -> None:
        self.ended = True
        self._tell()

    def _tell(self) -> None:
        if self._coming is not None and not self._coming.done():
            self._coming.set_result(None)

    def _read_on(self) -> None:
        """What was held is taken."""
        self._held = 0
        if self._is_paused and self._transport is not None and not self._transport.is_closing():
            self._is_paused = False
            self._transport.resume_reading()


class _Unasked(Exception):
    """An answer to nothing."""
