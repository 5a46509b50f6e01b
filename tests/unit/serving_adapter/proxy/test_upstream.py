"""Connections to an engine that are used again, before an engine that answers badly and tenants that read badly.

Whatever either of them does, a tenant gets the answer to its own request, whole, or one that is visibly broken off.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import create_autospec

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from serving_adapter.asgi import App
from serving_adapter.engine import upstream, upstream_connection
from serving_adapter.engine.attempts import CURRENT, Attempt
from serving_adapter.engine.stream_counting import StreamCounting
from serving_adapter.engine.upstream import Upstream
from serving_adapter.engine.upstream_connection import Connection
from serving_adapter.settings import SettingsError

FOREIGN = b"foreign"
STRAY = b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n" + FOREIGN
BREAK_OFF = ("cut", "silent", "nonsense")


@dataclass(frozen=True)
class Behaviour:
    """How the engine answers one request. `stray`: what follows the answer; `split`: bytes a write."""

    framing: str = "length"
    size: int = 10
    stray: bytes = b""
    split: int = 1 << 20
    ends: bool = False


@dataclass
class NastyEngine:
    """Answers the n-th request as it is told to, with a body that only this request can have."""

    behaviours: list[Behaviour]
    asked: list[bytes] = field(default_factory=list)
    malformed: list[bytes] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._answer(reader, writer):
                pass
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        lengths = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")]
        if not head.startswith((b"POST /v1/", b"GET /health ")) or len(lengths) > 1:
            self.malformed.append(head)
            return False
        how = self.behaviours[len(self.asked) % len(self.behaviours)]
        body = await reader.readexactly(sum(lengths))
        self.asked.append(body)
        sent = answer_of(how, body)
        for at in range(0, len(sent), how.split):
            writer.write(sent[at : at + how.split])
            await asyncio.sleep(0)
        return not (how.ends or how.framing in ("close", *BREAK_OFF))


def answer_of(how: Behaviour, marker: bytes) -> bytes:
    """An answer's bytes, with all that is wrong with it."""
    body = (marker + b"|") * how.size
    length = b"content-length: %d\r\n\r\n" % len(body)
    chunk = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
    ok = b"HTTP/1.1 200 OK\r\n"
    return {
        "length": ok + length + body,
        "chunked": ok + b"transfer-encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n",
        "trailers": ok + b"transfer-encoding: chunked\r\n\r\n" + chunk + b"0\r\nx-late: foreign\r\n\r\n",
        "interim": b"HTTP/1.1 103 Early\r\nlink: foreign\r\n\r\n" + ok + length + body,
        "close": ok + b"connection: close\r\n\r\n" + body,
        "cut": ok + b"content-length: %d\r\n\r\n" % (len(body) + 1) + body,
        "silent": b"",
        "nonsense": b"\x16\x03\x01" + body,
    }[how.framing] + how.stray


@asynccontextmanager
async def engine(*behaviours: Behaviour) -> AsyncIterator[tuple[NastyEngine, Upstream]]:
    double = NastyEngine(list(behaviours))
    server = await asyncio.start_server(double.serve, "127.0.0.1", 0)
    try:
        yield double, Upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    finally:
        server.close()


@dataclass
class Answered:
    """What a tenant got."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    whole: bool = False


async def nothing() -> None:
    """A tenant that reads at once."""


async def ask(
    to: App, body: bytes, *, reads: Callable[[], Awaitable[None]] = nothing, gone: asyncio.Event | None = None,
    scope: dict[str, Any] | None = None,
) -> Answered:  # fmt: skip
    """A tenant's request. It takes a piece once `reads` is over, and leaves once it is `gone`."""
    got, told = Answered(), False

    async def receive() -> Any:
        nonlocal told
        if told:
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        await reads()
        if message["type"] == "http.response.start":
            got.status, got.headers = message["status"], message["headers"]
        else:
            got.body += message["body"]
            got.whole = not message.get("more_body", False)

    asked = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []} | (scope or {})
    await to(asked, receive, send)
    return got


WHOLE = st.sampled_from(["length", "chunked", "trailers", "interim"])
behaviours = st.builds(
    Behaviour,
    framing=WHOLE | st.sampled_from(["close", *BREAK_OFF]),
    size=st.sampled_from([0, 1, 50, 20_000]),
    split=st.sampled_from([1 << 20, 30_000, 7_000]),
    ends=st.booleans(),
) | st.builds(Behaviour, framing=WHOLE, size=st.sampled_from([0, 1, 50]), stray=st.sampled_from([b"\r\n", STRAY, b"x"]))
tenants = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["reads", "slowly", "leaves"])), min_size=2, max_size=8)


@given(st.lists(behaviours, min_size=1, max_size=6), tenants)
def test_nobody_gets_anything_of_another_answer_and_nothing_is_asked_twice(
    how: list[Behaviour], asking: list[tuple[int, str]]
) -> None:
    """In turns: those of one number ask one after another, the numbers side by side."""

    async def slowly() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def one(to: Upstream, number: int, what: str) -> None:
        marker, gone = b"request-%d" % number, asyncio.Event()

        async def reads() -> None:
            if what != "reads":
                await slowly()
            if what == "leaves":
                gone.set()

        got = await ask(to, marker, reads=reads, gone=gone)
        assert FOREIGN not in got.body + b"".join(value for _, value in got.headers)
        if got.status == 502:
            assert b"engine_unreachable" in got.body
            return
        assert ((marker + b"|") * 20_000).startswith(got.body)
        assert len(got.body) % len(marker + b"|") == 0 or not got.whole

    async def several(to: Upstream, turn: list[tuple[int, str]]) -> None:
        for number, what in turn:
            await one(to, number, what)

    async def run() -> None:
        async with engine(*how) as (double, to):
            turns = [[(n, what) for n, (turn, what) in enumerate(asking) if turn == each] for each in range(4)]
            await asyncio.wait_for(asyncio.gather(*(several(to, turn) for turn in turns)), 60)
            assert double.malformed == []
            assert len(double.asked) == len(set(double.asked))

    uvloop.run(run())  # as the proxy does


def test_the_end_that_comes_while_a_tenant_is_waited_for_is_not_lost() -> None:
    async def run(pieces: list[bytes]) -> tuple[list[Any], Connection]:
        connection = connected()
        connection.ask(b"")
        coming, sent = iter(pieces), []

        async def send(message: Any) -> None:
            sent.append(message)
            for piece in coming:
                connection.data_received(piece)

        asyncio.get_running_loop().call_soon(connection.data_received, next(coming))
        await upstream._pass_on(connection, send)
        return sent, connection

    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    for pieces in ([head, b"1\r\na\r\n", b"1\r\nb\r\n0\r\n\r\n"], [head + b"1\r\na\r\n", b"1\r\nb\r\n0\r\n\r\n"]):
        sent, connection = asyncio.run(run(pieces))
        assert b"".join(message.get("body", b"") for message in sent) == b"ab"
        assert sent[-1]["more_body"] is False
        assert connection.is_reusable


def connected() -> Connection:
    transport = create_autospec(asyncio.Transport, instance=True)
    transport.is_closing.return_value = False
    transport.get_write_buffer_size.return_value = 0
    connection = Connection()
    connection.connection_made(transport)
    return connection


def test_a_connection_is_not_used_again_while_anything_of_an_exchange_is_left_on_it() -> None:
    async def run() -> None:
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na"
        for left in ("", "body", "request"):
            connection = connected()
            connection.ask(b"")
            connection.data_received(answer)
            if left != "body":
                await connection.more()
            if left == "request":
                connection._transport.get_write_buffer_size.return_value = 1  # type: ignore[union-attr]
            assert connection.is_reusable == (left == "")

    asyncio.run(run())


def test_a_connection_that_was_held_back_is_read_from_once_its_answer_was_taken() -> None:
    async def run() -> None:
        connection = connected()
        connection.ask(b"")
        size = upstream_connection.HELD_BYTES + 1
        connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
        connection._transport.pause_reading.assert_called_once()  # type: ignore[union-attr]
        assert (await connection.more()) == (bytes(size), True, False)
        connection._transport.resume_reading.assert_called_once()  # type: ignore[union-attr]

    asyncio.run(run())


@pytest.mark.parametrize(
    "head",
    [b"x-more: 1\r\n" * 7000, b"\r\nHTTP/1.1 103 Early\r\nx: 1\r\n" * 3000, b"upgrade: x\r\nconnection: upgrade"],
)
def test_a_head_without_an_end_or_another_protocol_is_no_answer(head: bytes) -> None:
    async def run() -> None:
        connection = connected()
        connection.ask(b"")
        connection.data_received(b"HTTP/1.1 101 Switching\r\n")
        for at in range(0, len(head), 1000):
            connection.data_received(head[at : at + 1000])
        connection.data_received(b"\r\n\r\n")
        assert (await asyncio.wait_for(connection.more(), 60)).is_end
        assert connection.problem
        assert not connection.is_reusable

    asyncio.run(run())


def test_headers_that_follow_a_body_are_not_passed_on() -> None:
    async def run() -> None:
        async with engine(Behaviour("trailers")) as (_, to):
            got = await ask(to, b"request")
            assert (got.status, got.whole, [name for name, _ in got.headers]) == (200, True, [])

    asyncio.run(run())


def test_a_tenant_that_takes_nothing_does_not_hold_a_request_beyond_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "LET_GO_WITHIN_S", 0.0)

    async def run(how: Behaviour) -> None:
        async with engine(how) as (double, to):
            over, never = asyncio.Event(), asyncio.Event()

            async def reads() -> None:
                over.set()
                await never.wait()

            got = await asyncio.wait_for(ask(to, b"request", reads=reads, gone=over), 60)
            assert not got.whole
            assert (await ask(to, b"another")).body == (b"another|") * how.size
            assert double.asked == [b"request", b"another"]

    asyncio.run(run(Behaviour(size=10)))
    asyncio.run(run(Behaviour(size=100_000)))


@pytest.mark.parametrize("stray", [STRAY, None])
def test_what_the_engine_said_unasked_or_its_going_is_noticed_before_a_connection_is_used_again(
    stray: bytes | None,
) -> None:
    """Also where the loop had no time to read it yet."""

    async def run() -> None:
        async with engine(Behaviour()) as (double, to):
            await ask(to, b"one")
            (writer,) = double.writers
            raw = writer.get_extra_info("socket")
            if stray is None:
                with socket.socket(fileno=os.dup(raw.fileno())) as same:
                    same.shutdown(socket.SHUT_WR)
            else:
                os.write(raw.fileno(), stray)
            assert (await ask(to, b"two")).body == b"two|" * 10
            assert (double.asked, len(double.writers)) == ([b"one", b"two"], 2)

    uvloop.run(run())


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([(b"transfer-encoding", b"chunked")], b"POST /v1/completions HTTP/1.1\r\ncontent-length: 0\r\n\r\n"),
        ([(b"content-length", b"1000")], b"a part of it"),
    ],
)
def test_a_body_that_comes_where_none_is_taken_is_not_a_next_request(
    headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    async def run() -> None:
        async with engine(Behaviour()) as (double, to):
            scope = {"method": "GET", "path": "/health", "headers": headers}
            for _ in range(2):
                assert (await asyncio.wait_for(ask(to, body, scope=scope), 60)).status == 200
                assert (await asyncio.wait_for(ask(to, b"tenant"), 60)).body == b"tenant|" * 10
            assert (double.asked, double.malformed, len(double.writers)) == ([b"", b"tenant"] * 2, [], 1)

    asyncio.run(run())


def test_a_password_in_the_engines_address_is_refused_and_not_told() -> None:
    with pytest.raises(SettingsError, match="upstream_key") as refused:
        Upstream("http://me:secret@127.0.0.1:8000")
    assert "secret" not in str(refused.value)


def test_a_stream_of_a_told_length_is_shorter_for_who_did_not_ask_for_usage() -> None:
    pieces = b'data: {"choices":[{"index":0,"text":"a"}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'

    async def told(_: Any, __: Any, send: Any) -> None:
        length = str(len(pieces + usage)).encode()
        headers = [(b"content-type", b"text/event-stream"), (b"Content-Length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": pieces + usage, "more_body": False})

    async def run() -> Answered:
        token = CURRENT.set(Attempt(1, "", "tiny", False, lambda _: None))
        try:
            return await ask(StreamCounting(told, continuous=False), b'{"stream":true}')
        finally:
            CURRENT.reset(token)

    got = asyncio.run(run())
    assert (got.body, got.whole, [name for name, _ in got.headers]) == (pieces, True, [b"content-type"])
