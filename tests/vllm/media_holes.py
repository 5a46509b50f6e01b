"""The holes of a bare vLLM that have to do with images, on a tiny model that sees."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import numpy

from tests.vllm.holes import Hole, asked
from tests.vllm.server import Server

PATH: Final = "/v1/chat/completions"
SIDE: Final = 28
"""Pixels of an image of the model."""
HIDDEN: Final = 64
"""Of the model: what an embedding of an image must have, for each of its two tokens."""


def png(grey: int) -> bytes:
    """An image of one colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + bytes([grey] * 3 * SIDE)) * SIDE
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def inline(grey: int) -> str:
    """The same within a request."""
    return "data:image/png;base64," + base64.b64encode(png(grey)).decode()


def about(*parts: dict[str, Any]) -> dict[str, Any]:
    """A chat with these parts, and some text."""
    content = [*parts, {"type": "text", "text": "hello"}]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 2}


@asynccontextmanager
async def within_the_network() -> AsyncIterator[tuple[str, list[bytes]]]:
    """The address of an image that only the platform reaches, and who has asked for it."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        image = png(9)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\nconnection: close\r\n")
        writer.write(b"content-length: %d\r\n\r\n%s" % (len(image), image))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/inner.png", seen


def at(address: str | None, **more: Any) -> dict[str, Any]:
    """A part that is an image at this address."""
    return {"type": "image_url", "image_url": address and {"url": address}, **more}


async def _fetched_opened(server: Server) -> str:
    async with within_the_network() as (address, seen):
        answer = await asked(server, about(at(address)), PATH)
        assert len(seen) == 1, seen
        return f"{answer['usage']['prompt_tokens']} tokens of it"


async def _fetched_closed(server: Server) -> str:
    async with within_the_network() as (address, seen):
        refused = await asked(server, about(at(address)), PATH, expect=400)
        assert (refused["error"]["code"], seen) == ("media_not_allowed", [])
    answer = await asked(server, about(at(inline(9))), PATH)
    return f"within the request it is answered: {answer['usage']['prompt_tokens']} tokens"


async def _shared_opened(server: Server) -> None:
    own = await asked(server, about(at(inline(77), uuid="scan-1")), PATH, tenant="tenant_a")
    stolen = await asked(server, about(at(None, uuid="scan-1")), PATH, tenant="tenant_b")
    assert stolen["usage"]["prompt_tokens"] == own["usage"]["prompt_tokens"]


async def _shared_closed(server: Server) -> None:
    await asked(server, about(at(inline(77), uuid="scan-1")), PATH, tenant="tenant_a")
    status, answer = await server.ask(about(at(None, uuid="scan-1")), PATH, tenant="tenant_b")
    assert status >= 400, answer


def _tensors() -> list[dict[str, Any]]:
    """Embeddings that are none of the model's: of another width, which vLLM 0.32 sees itself, and of too few tokens."""
    found = []
    for tensor in (numpy.zeros((2, HIDDEN - 1), "float32"), numpy.zeros((1, HIDDEN), "float32")):
        file = io.BytesIO()
        numpy.save(file, tensor)
        found.append({"type": "image_embeds", "image_embeds": base64.b64encode(file.getvalue()).decode()})
    return found


async def _tensors_opened(server: Server) -> str:
    told = [(await server.ask(about(tensor), PATH))[0] for tensor in _tensors()]
    assert 200 in told, told
    await asked(server, {"model": "tiny", "prompt": "x", "max_tokens": 1})
    return f"{told}; this engine goes on"


async def _tensors_closed(server: Server) -> None:
    for tensor in _tensors():
        refused = await asked(server, about(tensor), PATH, expect=400)
        assert refused["error"]["code"] == "media_not_allowed"


MEDIA_HOLES: Final = (
    Hole("an image at any address is fetched from within the network", _fetched_opened, _fetched_closed),
    Hole("an image is anybody's by its uuid", _shared_opened, _shared_closed),
    Hole("a tensor of a tenant's own making reaches the model as an image", _tensors_opened, _tensors_closed),
)
