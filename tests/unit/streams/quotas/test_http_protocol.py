"""The quota service's HTTP: bounds of what is gathered, over a transport that is played."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from streams.quotas.http_protocol import MAX_BODY_BYTES, MAX_HEAD_BYTES, Call, Connection, Connections

GET = b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n"


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: object) -> None:
        """Asyncio's."""
        assert isinstance(data, bytes)
        self.written += data

    def is_closing(self) -> bool:
        """Asyncio's."""
        return self.closed

    def close(self) -> None:
        """Asyncio's."""
        self.closed = True


def talked(say: Callable[[Connection], None]) -> Transport:
    """What a connection writes when this comes, with a service that answers at once."""
    transport = Transport()

    async def talk() -> None:
        def handle(call: Call) -> None:
            call.answer(200, b"{}")

        connection = Connection(Connections(handle, 10))
        connection.connection_made(transport)
        say(connection)

    asyncio.run(talk())
    return transport


def fed(*pieces: bytes) -> Transport:
    return talked(lambda connection: [connection.data_received(piece) for piece in pieces] and None)


def statuses(transport: Transport) -> list[int]:
    return [int(part.split(b" ", 1)[0]) for part in transport.written.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize("size", [1, 7, len(GET), 2 * len(GET)])
def test_requests_are_read_however_they_are_cut(size: int) -> None:
    stream = 5 * GET
    assert statuses(fed(*(stream[at : at + size] for at in range(0, len(stream), size)))) == [200] * 5


@pytest.mark.parametrize("piece", [100, 65_536])
def test_a_header_without_an_end_is_refused_and_the_connection_closed(piece: int) -> None:
    sent = MAX_HEAD_BYTES + 3 * piece
    transport = fed(GET + GET[:-2] + b"x-long: ", *(b"x" * piece for _ in range(sent // piece)))
    assert (statuses(transport), transport.closed) == ([200, 431], True)


def test_heads_and_bodies_that_are_too_large_are_refused() -> None:
    assert statuses(fed(GET[:-2] + b"x-long: " + b"x" * (MAX_HEAD_BYTES + 1) + b"\r\n\r\n")) == [431]
    long = MAX_BODY_BYTES + 1
    head = f"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: {long}\r\n\r\n".encode()
    assert statuses(fed(head, b"x" * long)) == [413]


def test_what_is_no_http_is_told_so_once() -> None:
    assert statuses(fed(b"\x16\x03\x01 hello\r\n\r\n", GET)) == [400]
