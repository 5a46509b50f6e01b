"""Connections that can be closed under a running request, which ASGI has no word for."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Protocol(HttpToolsProtocol):
    """uvicorn's, which also remembers what it talks to."""

    transports: ClassVar[dict[tuple[str, int], asyncio.Transport]] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client is not None:
            self.transports[self.client] = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self.client is not None:
            self.transports.pop(self.client, None)
        super().connection_lost(exc)


def drop(client: tuple[str, int]) -> None:
    """Close a client's connection at once, whatever it waits for."""
    transport = Protocol.transports.get(tuple(client))  # type: ignore[arg-type]
    if transport is not None:
        transport.abort()
