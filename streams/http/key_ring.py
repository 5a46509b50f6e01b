"""The emitters' keys in a server's memory: read again every few seconds, so that a revoked one is refused soon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import psycopg

from streams.database import connect, is_passing
from streams.errors import DatabaseUnavailable, KeysUnknown
from streams.http import access_keys
from streams.http.access_keys import AccessKey, Kind
from streams.settings import DatabaseSettings

FRESH_S: Final = 2.0
"""How old the list is at most while the database answers: within it, a revocation takes effect. Read twice as often."""
STALE_S: Final = 300.0
"""How long the last list holds while the database is away: Kafka is there to take events meanwhile."""
AGAIN_S: Final = 0.25
"""Least time between two readings, however many unknown keys are shown: guessing must not burden the database."""


class KeyRing:
    """The keys of one kind that are in force."""

    def __init__(self, database: DatabaseSettings, kind: Kind, say: Callable[[str], None] = print) -> None:
        self._database = database
        self._kind = kind
        self._say = say
        self.refused_because: str | None = None
        """Why the database does not let us read the list, which waiting does not mend (a missing right or table)."""
        self._keys: dict[bytes, AccessKey] = {}
        self._read_at = float("-inf")
        self._tried_at = float("-inf")
        self._connection: psycopg.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys")
        self._one_at_a_time = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def age_s(self) -> float:
        """Seconds since the list was read."""
        return time.monotonic() - self._read_at

    async def find(self, secret: str) -> AccessKey | None:
        """The key of a secret, or None. One that is not known is looked for in the database: it may be new.

        Raises KeysUnknown if the database does not answer, and the list is too old or does not have the key.
        """
        if self.age_s < STALE_S and (key := access_keys.find(self._keys, secret)):
            return key
        if not await self.refresh():
            raise KeysUnknown("the access keys cannot be read: the database does not answer")
        return access_keys.find(self._keys, secret)

    async def keep_fresh(self) -> None:
        """Read the list again and again, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(FRESH_S / 2)

    async def refresh(self) -> bool:
        """Read the list and say whether that went well; callers at the same time share a reading."""
        asked_at = time.monotonic()
        async with self._one_at_a_time:
            if self._tried_at <= asked_at:
                await asyncio.sleep(self._tried_at + AGAIN_S - time.monotonic())
                self._tried_at = began = time.monotonic()
                try:
                    self._keys = await asyncio.get_running_loop().run_in_executor(self._thread, self._read)
                    self._read_at, self.refused_because = began, None
                except (psycopg.Error, DatabaseUnavailable) as error:
                    if not is_passing(error):
                        self._note_refusal(str(error).strip())
                    return False
        return self._read_at >= asked_at

    def _note_refusal(self, why: str) -> None:
        """Whoever changes rights or tables may be at it now: the next reading may succeed."""
        if why != self.refused_because:
            self.refused_because = why
            self._say(f"the access keys cannot be read: {why}")

    def close(self) -> None:
        """Give the connection back."""
        self._thread.shutdown()
        if self._connection is not None:
            self._connection.close()

    def _read(self) -> dict[bytes, AccessKey]:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = connect(self._database.url, application="tollbook events serve")
            return access_keys.in_force(self._connection, self._kind)
        except psycopg.Error:
            if self._connection is not None:
                self._connection.close()
            raise
