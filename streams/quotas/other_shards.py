"""The processes of other shards, for who asks one process about any tenant: Envoy, which knows one address."""

from __future__ import annotations

import asyncio
import time
from typing import Final
from urllib.parse import urlsplit

import psycopg

from serving_adapter.quota.connection import Answer, NoAnswer, QuotaConnection
from streams.database import connect
from streams.errors import DatabaseUnavailable
from streams.settings import DatabaseSettings

LOOK_UP_EVERY_S: Final = 1.0
"""At most, while a shard does not answer."""
LINES_AT_MOST: Final = 1024
"""To as many shards with as many keys."""

Address = tuple[str, int]


class OtherShards:
    """Asks the owner of a shard in a caller's name; who that is, the database says."""

    def __init__(self, database: DatabaseSettings) -> None:
        self._database = database
        self._owners: dict[int, tuple[float, asyncio.Task[Address]]] = {}
        """By shard: when its owner was looked up, and where it is."""
        self._lines: dict[tuple[Address, str], QuotaConnection] = {}

    async def ask(self, shard: int, key: str, path: str, body: bytes, within_s: float) -> Answer:
        """What it answers to a POST with a caller's key. Raises NoAnswer; a later question looks its owner up anew."""
        found = self._owners.get(shard)
        if found is None:
            looking = asyncio.create_task(asyncio.to_thread(self._owner_of, shard))
            found = self._owners[shard] = (time.monotonic(), looking)
        try:
            address = await asyncio.shield(found[1])
            return await self._line(address, key).call("POST", path, body, within_s)
        except NoAnswer:
            if time.monotonic() - found[0] >= LOOK_UP_EVERY_S and self._owners.get(shard) is found:
                del self._owners[shard]
            raise

    def close(self) -> None:
        """End all connections."""
        for line in self._lines.values():
            line.close()
        self._lines.clear()

    def _line(self, address: Address, key: str) -> QuotaConnection:
        line = self._lines.get((address, key))
        if line is None:
            if len(self._lines) >= LINES_AT_MOST:
                self.close()
            line = self._lines[address, key] = QuotaConnection(*address, key)
        return line

    def _owner_of(self, shard: int) -> Address:
        query = "select address from usage.quota_shards where shard = %s"
        try:
            with connect(self._database.url, application="tollbook quota shards") as connection:
                row = connection.execute(query, (shard,)).fetchone()
        except (psycopg.Error, DatabaseUnavailable) as error:
            raise NoAnswer(f"who owns shard {shard} cannot be read: {error}") from None
        url = urlsplit(row[0] if row is not None else "")
        if url.hostname is None or url.port is None:
            raise NoAnswer(f"shard {shard} has no owner")
        return url.hostname, url.port
