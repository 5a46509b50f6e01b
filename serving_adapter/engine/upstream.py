"""An engine's server at an HTTP address, as an ASGI app: what the proxy puts in the place of vLLM's own.

Connections are used again, but only while the engine's server cannot be about to close them: no request is sent twice,
and none is lost to an idle connection that was just being closed. What the engine sends is read only as fast as the
tenant takes it; who is gone on one side is let go on the other.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import Final
from urllib.parse import urlsplit

from serving_adapter.asgi import Receive, Scope, Send
from serving_adapter.engine.attempts import CURRENT
from serving_adapter.engine.upstream_connection import Connection
from serving_adapter.isolation.refusal import Refusal
from serving_adapter.settings import SettingsError

CONNECT_WITHIN_S: Final = 5.0
IDLE_AT_MOST_S: Final = 2.0
"""Engines' servers close a connection that has been idle for 5 s (uvicorn, cpp-httplib) or more."""
KEPT_AT_MOST: Final = 256
"""Idle connections."""
LET_GO_WITHIN_S: Final = 1.0
"""What has come is passed on, but not for longer to somebody who takes nothing of it."""
OF_ONE_CONNECTION: Final = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
        b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
NOT_ASKED: Final = OF_ONE_CONNECTION | {b"accept-encoding", b"authorization", b"content-length", b"expect", b"host"}
"""Of a request: encodings, in which no usage could be read, and what is ours to say."""


class Upstream:
    """Passes each request on."""

    def __init__(self, url: str, key: bytes | None = None) -> None:
        """`key`: the bearer that the engine's server wants. Raises SettingsError."""
        parts = urlsplit(url)
        if parts.username is not None:
            raise SettingsError("proxy.upstream: no name or password belongs there: upstream_key names a file")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise SettingsError(f"proxy.upstream: {url!r} is not http://HOST:PORT")
        self._host = parts.hostname
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        own = [(b"host", parts.netloc.encode())]
        if key is not None:
            own.append((b"authorization", b"Bearer " + key))
        self._own = b"".join(b"%s: %s\r\n" % header for header in own)
        self._idle: deque[tuple[Connection, float]] = deque()
        """With the loop's time since when; the longest idle first."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's."""
        if scope["type"] == "lifespan":
            for phase in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{phase}.complete"})
            return
        body: bytes = (await receive())["body"] if scope["method"] == "POST" else b""
        try:
            connection = self._kept() or await self._connect()
        except (OSError, TimeoutError) as error:
            await _unreachable(send, f"The engine cannot be reached: {error or type(error).__name__}")
            return
        loop = asyncio.get_running_loop()
        is_over = False
        passing = asyncio.timeout(None)

        def leave(_: object) -> None:
            if not is_over:  # else the connection may serve another request already
                connection.abandon()
                passing.reschedule(loop.time() + LET_GO_WITHIN_S)

        leaving = asyncio.ensure_future(_gone(receive))
        try:
            async with passing:
                leaving.add_done_callback(leave)
                connection.ask(self._head(scope, body) + body)
                await _pass_on(connection, send)
        except TimeoutError:
            if not passing.expired():
                raise
        finally:
            is_over = True
            leaving.cancel()
            self._keep(connection)

    async def _connect(self) -> Connection:
        """A new connection. Raises OSError, TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_WITHIN_S):
            _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        return connection

    def _kept(self) -> Connection | None:
        """The idle connection that was used last; those that are idle for too long are closed."""
        oldest = asyncio.get_running_loop().time() - IDLE_AT_MOST_S
        while self._idle and self._idle[0][1] < oldest:
            self._idle.popleft()[0].close()
        while self._idle:
            connection, _ = self._idle.pop()
            if connection.is_reusable and connection.is_quiet:
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection) -> None:
        """Keep a connection for a next request if its answer is whole; else the engine sees it broken."""
        if connection.is_reusable and len(self._idle) < KEPT_AT_MOST:
            self._idle.append((connection, asyncio.get_running_loop().time()))
        else:
            connection.close()

    def _head(self, scope: Scope, body: bytes) -> bytes:
        """A request's head. The body's length is the one of what is sent: what is beyond would be a next request."""
        path: str = scope["path"]
        lines = b"".join(b"%s: %s\r\n" % header for header in scope["headers"] if header[0].lower() not in NOT_ASKED)
        if scope["method"] == "POST":
            lines += b"content-length: %d\r\n" % len(body)
        return f"{scope['method']} {path} HTTP/1.1\r\n".encode("ascii") + self._own + lines + b"\r\n"


async def _pass_on(connection: Connection, send: Send) -> None:
    """Pass an answer on. One that breaks off breaks off for the tenant too, and the attempt has failed."""
    begun = False
    while True:
        came = await connection.more()  # while it is sent on, more may come, and the end
        if connection.status and not begun:
            begun = True
            passed = [(name, value) for name, value in connection.headers if name not in OF_ONE_CONNECTION]
            await send({"type": "http.response.start", "status": connection.status, "headers": passed})
        if begun and (came.body or came.is_whole):
            await send({"type": "http.response.body", "body": came.body, "more_body": not came.is_whole})
        if came.is_whole or connection.is_abandoned:
            return
        if came.is_end:
            if not begun:
                await _unreachable(send, connection.problem or "The engine closed the connection without an answer.")
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
