"""One kept connection to the service: a peer that is gone without a word is not waited for again and again."""

from __future__ import annotations

import asyncio

import pytest

from serving_adapter.quota import connection as connections
from serving_adapter.quota.connection import NoAnswer, QuotaConnection


def test_a_silent_peer_is_dropped_and_the_next_call_makes_a_new_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SILENT_AT_MOST_S", 0.1)

    async def run() -> None:
        silent = True

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            say = not silent
            while await reader.read(65536):
                if say:
                    writer.write(b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        mine = QuotaConnection("127.0.0.1", server.sockets[0].getsockname()[1], "key")
        with pytest.raises(NoAnswer):
            await mine.call("POST", "/", b"", 0.05)
        silent = False
        await asyncio.sleep(0.15)
        assert (await mine.call("POST", "/", b"", 30.0)).status == 204
        mine.close()
        server.close()

    asyncio.run(run())
