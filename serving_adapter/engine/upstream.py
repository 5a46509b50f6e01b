"""An engine's server at an HTTP address, as an ASGI app: what the proxy puts in the place of vLLM's own.

A connection for each request: none is sent twice because an idle connection was just being closed. What the engine
sends is read only as fast as the tenant takes it; who is gone on one side is let go on the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Final
from urllib.parse import urlsplit

import httptools

from serving_adapter.asgi import Receive, Scope, Send
from serving_adapter.engine.attempts import CURRENT
from serving_adapter.isolation.refusal import Refusal
from serving_adapter.settings import SettingsError

CONNECT_WITHIN_S: Final = 5.0
READ_BYTES: Final = 64 * 1024
NOT_PASSED: Final = frozenset(
    {
        b"accept-encoding", b"connection", b"expect", b"host", b"keep-alive", b"proxy-authenticate",
        b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
"""What is of one connection alone; and encodings, in which no usage could be read."""


class Upstream:
    """Passes each request on."""

    def __init__(self, url: str, key: bytes | None = None) -> None:
        """`key`: the bearer that the engine's server wants. Raises SettingsError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise SettingsError(f"proxy.upstream: {url!r} is not http://HOST:PORT")
        self._host = parts.hostname
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._own = [(b"host", parts.netloc.rpartition("@")[2].encode()), (b"connection", b"close")]
        if key is not None:
            self._own.append((b"authorization", b"Bearer " + key))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's."""
        if scope["type"] == "lifespan":
            for phase in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{phase}.complete"})
            return
        body = (await receive()).get("body", b"")
        try:
            connected = asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=READ_BYTES)
            reader, writer = await asyncio.wait_for(connected, CONNECT_WITHIN_S)
        except (OSError, TimeoutError) as error:
            await _unreachable(send, f"The engine cannot be reached: {error or type(error).__name__}")
            return
        writer.write(self._head(scope) + body)
        answering = asyncio.ensure_future(_answer(reader, send))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await answering
        finally:
            for task in (answering, leaving):
                task.cancel()
            writer.transport.abort()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    def _head(self, scope: Scope) -> bytes:
        path: str = scope["path"]
        named = [(name, value) for name, value in scope["headers"] if name.lower() not in NOT_PASSED]
        lines = b"".join(b"%s: %s\r\n" % header for header in [*self._own, *named])
        return f"{scope['method']} {path} HTTP/1.1\r\n".encode("ascii") + lines + b"\r\n"


class _Parsed:
    """What has come of an answer, as httptools tells it."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []
        self.begun = self.done = False

    def on_message_begin(self) -> None:
        """A head begins; one before it was interim."""
        self.headers = []
        self.begun = self.done = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self.begun = True

    def on_body(self, data: bytes) -> None:
        """A part of the body, without chunks."""
        self.body.append(data)

    def on_message_complete(self) -> None:
        """The end, where the answer tells its own."""
        self.done = True

    @property
    def ends_with_connection(self) -> bool:
        """Nothing else tells where the body ends."""
        return not any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)


async def _answer(reader: asyncio.StreamReader, send: Send) -> None:
    """Pass an answer on. One that breaks off breaks off for the tenant too, and the attempt has failed."""
    parsed = _Parsed()
    parser = httptools.HttpResponseParser(parsed)
    begun = False
    while True:
        data = b""
        with contextlib.suppress(OSError):
            data = await reader.read(READ_BYTES)
        ended = not data
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not begun:
                await _unreachable(send, f"The engine's answer cannot be read: {error}")
                return
            ended = True
        if parsed.begun and not begun and parser.get_status_code() >= 200:
            begun = True
            passed = [(name, value) for name, value in parsed.headers if name not in NOT_PASSED]
            await send({"type": "http.response.start", "status": parser.get_status_code(), "headers": passed})
        done = begun and (parsed.done or (ended and parsed.ends_with_connection))
        body, parsed.body = b"".join(parsed.body), []
        if begun and (body or done):
            await send({"type": "http.response.body", "body": body, "more_body": not done})
        if done:
            return
        if ended:
            if not begun:
                await _unreachable(send, "The engine closed the connection without an answer.")
            _failed()
            return


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unreachable(send: Send, why: str) -> None:
    _failed()
    body = Refusal(502, "engine_unreachable", why).body
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 502, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _failed() -> None:
    attempt = CURRENT.get()
    if attempt is not None:
        attempt.seen.failed = True
