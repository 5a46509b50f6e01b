"""An engine's server over HTTP that answers what a real vLLM 0.32 answered (`python -m tests.vllm.record`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

RECORDED: Final = Path(__file__).with_name("recorded_vllm.json")


def key_of(path: str, body: dict[str, Any]) -> str:
    """What decides which recording is the answer."""
    options = body.get("stream_options") or {}
    words = [path.rpartition("/v1/")[2]]
    words += [name for name in ("include_usage", "continuous_usage_stats") if options.get(name)]
    words += ["stream"] * bool(body.get("stream")) + ["refused"] * (body.get("temperature", 1) < 0)
    return " ".join([*words, *([f"n={body['n']}"] if body.get("n", 1) > 1 else [])])


def unchunked(data: bytes) -> bytes:
    """A body without its chunks; as much of it as there is."""
    found = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        found, data = found + data[:length], data[length + 2 :]
    return found


@dataclass
class RecordedEngine:
    """`cut_after`: the connection breaks after so many pieces. `stay_after`: after so many nothing comes until `go_on`.

    `endless`: the last token's piece but one comes again and again.
    """

    cut_after: int | None = None
    stay_after: int | None = None
    endless: bool = False
    spaced: bool = False
    """It writes a space before the model's name, as Python's own encoder does."""
    connections: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    loras: list[tuple[str, str]] = field(default_factory=list)
    """Adapters that were loaded and unloaded."""
    sent_bytes: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """A connection was closed from the other side before its answer was whole."""
    port: int = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The requests of one connection."""
        self.connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while not writer.is_closing():
                    await self._answer(reader, writer)
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        path = first.split()[1]
        data = await reader.readexactly(int(headers.get("content-length", "0")))
        if path in ("/health", "/metrics"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 27\r\n\r\nvllm:prompt_tokens_total 1\n")
            return
        body = json.loads(data)
        if path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            self.loras.append((path, body["lora_name"]))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nSuccess")
            return
        self.asked.append(body)
        self.headers.append(headers)
        await self._send(json.loads(RECORDED.read_text())[key_of(path, body)], reader, writer)

    async def _send(self, answer: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pieces = [piece.encode() for piece in answer["pieces"]]
        if self.spaced:
            pieces = [piece.replace(b'"model":', b'"model": ') for piece in pieces]
        streamed = answer["type"].startswith("text/event-stream")
        length = "transfer-encoding: chunked" if streamed else f"content-length: {sum(map(len, pieces))}"
        writer.write(f"HTTP/1.1 {answer['status']} X\r\ncontent-type: {answer['type']}\r\n{length}\r\n\r\n".encode())
        watching = asyncio.ensure_future(reader.read()) if self.endless or self.stay_after is not None else None
        try:
            for number, piece in enumerate(self._pieces(pieces)):
                if number == self.cut_after:
                    writer.transport.abort()
                    return
                if watching is not None and number == self.stay_after:
                    going_on = asyncio.ensure_future(self.go_on.wait())
                    await asyncio.wait({watching, going_on}, return_when=asyncio.FIRST_COMPLETED)
                    going_on.cancel()
                if watching is not None and watching.done():
                    self.gone.set()
                    return
                self.sent_bytes += len(piece)
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if streamed else piece)
                await writer.drain()
            if streamed:
                writer.write(b"0\r\n\r\n")
                await writer.drain()
        finally:
            if watching is not None:
                watching.cancel()
                writer.close()
            if writer.transport.is_closing():
                self.gone.set()

    def _pieces(self, pieces: list[bytes]) -> Any:
        if not self.endless:
            return pieces
        again = b": keep-alive\n\n" * 4000
        return iter(lambda: again, None)


@asynccontextmanager
async def recorded_engine(**how: Any) -> AsyncIterator[RecordedEngine]:
    """A server on a free port."""
    engine = RecordedEngine(**how)
    server = await asyncio.start_server(engine.answer, "127.0.0.1", 0)
    engine.port = server.sockets[0].getsockname()[1]
    try:
        yield engine
    finally:
        server.close()
