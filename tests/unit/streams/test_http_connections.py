"""Connections that say nothing, or not all of a head: over real sockets, with short deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from streams.http.http_connections import BoundedConnection
from streams.http.listening import listen

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
MOST = 8

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]


class Hasty(BoundedConnection):
    """Waits a moment for a head."""

    head_within_s = 0.3


class Patient(BoundedConnection):
    """Waits longer than a busy machine stands still."""

    head_within_s = 1.5


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once, without reading a body."""
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def served(talk: Callable[[Connect], Awaitable[None]], protocol: type[BoundedConnection] = Hasty) -> None:
    """Run a server, and `talk` with what opens connections to it."""

    async def both() -> None:
        listener = listen("127.0.0.1", 0, 64)
        config = uvicorn.Config(
            app, http=protocol, ws="none", lifespan="off", log_level="critical", limit_concurrency=MOST,
            timeout_keep_alive=30,
        )  # fmt: skip
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        opened: list[asyncio.StreamWriter] = []

        async def connect() -> Streams:
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            opened.append(writer)
            return reader, writer

        try:
            await asyncio.wait_for(talk(connect), 60)
        finally:
            for writer in opened:
                writer.close()
            server.should_exit = True
            await serving

    asyncio.run(both())


async def answer(streams: Streams) -> bytes:
    """The status line of the next answer, which has no body; nothing where the connection is closed instead."""
    try:
        head = await streams[0].readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return b""
    return head.split(b"\r\n", 1)[0]


def test_a_head_without_an_end_is_not_gathered() -> None:
    async def talk(connect: Connect) -> None:
        _, writer = await connect()
        writer.write(GET[:-2] + b"X-Long: ")
        for _ in range(100):
            writer.write(b"x" * 64 * 1024)
            try:
                await writer.drain()
            except ConnectionError:
                return
        pytest.fail("6 MB of a header were taken")

    served(talk, BoundedConnection)  # which would wait for 5 s


def test_heads_in_pieces_and_after_bodies_are_read() -> None:
    async def talk(connect: Connect) -> None:
        streams = await connect()
        for number in range(0, len(POST), 9):
            streams[1].write(POST[number : number + 9])
            await streams[1].drain()
            await asyncio.sleep(0)
        assert await answer(streams) == b"HTTP/1.1 204 No Content"
        streams[1].write(b"x" * 100 + GET[:10])
        await streams[1].drain()
        await asyncio.sleep(0.01)
        streams[1].write(GET[10:])
        assert await answer(streams) == b"HTTP/1.1 204 No Content"

    served(talk, BoundedConnection)


@pytest.mark.parametrize("said", [b"", b"GET", GET[:-1]], ids=["nothing", "a word", "all but the end"])
def test_a_head_that_does_not_come_is_not_waited_for(said: bytes) -> None:
    async def talk(connect: Connect) -> None:
        streams = await connect()
        streams[1].write(said)
        assert await answer(streams) == b""

    served(talk)


@pytest.mark.parametrize("said", [b"\r\n", b"GET"], ids=["an empty line", "a word"])
def test_neither_is_the_head_of_a_later_request(said: bytes) -> None:
    async def talk(connect: Connect) -> None:
        streams = await connect()
        streams[1].write(GET)
        assert await answer(streams) == b"HTTP/1.1 204 No Content"
        streams[1].write(said)
        assert await answer(streams) == b""

    served(talk)


def test_the_rest_of_a_body_that_was_answered_before_it_came_is_not_waited_for() -> None:
    async def talk(connect: Connect) -> None:
        streams = await connect()
        streams[1].write(POST)
        assert await answer(streams) == b"HTTP/1.1 204 No Content"
        streams[1].write(b"x")
        assert await answer(streams) == b""

    served(talk)


def test_heads_that_come_in_time_are_answered_on_one_connection_for_longer_than_the_deadline() -> None:
    async def talk(connect: Connect) -> None:
        streams = await connect()
        for _ in range(4):
            streams[1].write(GET[:10])
            await asyncio.sleep(Patient.head_within_s / 3)
            streams[1].write(GET[10:])
            assert await answer(streams) == b"HTTP/1.1 204 No Content"
        streams[1].write(GET + GET)  # both at once
        assert await answer(streams) == await answer(streams) == b"HTTP/1.1 204 No Content"

    served(talk, Patient)


@pytest.mark.parametrize("first", [b"", GET], ids=["silent", "idle"])
def test_whoever_waits_longest_makes_room_for_a_new_connection(first: bytes) -> None:
    async def talk(connect: Connect) -> None:
        holding = [await connect() for _ in range(MOST)]
        for streams in holding:
            streams[1].write(first)
            if first:
                await answer(streams)
        for _ in range(3):
            late = await connect()
            late[1].write(GET)
            assert await answer(late) == b"HTTP/1.1 204 No Content"
        assert await answer(holding[0]) == b""

    served(talk, BoundedConnection)
