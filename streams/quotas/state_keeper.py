"""Writing down books a slice at a time, so that a restart need not read the journal from its beginning."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import psycopg

from streams.database import connect, is_passing
from streams.errors import DatabaseUnavailable
from streams.quotas import journal
from streams.quotas.journal import MadeState, Ownership
from streams.quotas.journal_writer import RETRY_S
from streams.quotas.stored_states import StoredStates
from streams.settings import DatabaseSettings

STATE_SLICE_EVERY_S: Final = 0.01
MAKING_SHARE: Final = 0.05
"""Of the loop's time, at most: callers wait meanwhile. With 400,000 requests a state is half a minute old then."""
FORGET_EVERY_S: Final = 5.0
STORED_TOGETHER: Final = 16
STORED_BYTES: Final = 256 * 1024
"""States that are stored in one transaction: so many, or those that are so large before they are compressed. Each is a
sync that the journal's batches queue for, and a change of threads twice."""


class StateKeeper:
    """Stores states, and lets batches go that no rebuild needs. `begin`: a state begins with the next batch. `read`:
    up to where the feed was read, once all that is known of it by now is durable."""

    def __init__(
        self, database: DatabaseSettings, mine: Ownership, states: StoredStates, begin: Callable[[], None],
        read: Callable[[], Awaitable[Mapping[str, int]]],
    ) -> None:  # fmt: skip
        self._database = database
        self._mine = mine
        self._states = states
        self._begin = begin
        self._read = read
        self._connection: psycopg.Connection | None = None
        self._tell_at = 0.0
        """When to store up to where the feed was read, and to let batches go, at the latest."""

    async def keep_again_and_again(self) -> None:
        """Until it is cancelled."""
        states = self._states
        took = 0.0
        made: list[MadeState] = []
        while True:
            await asyncio.sleep(max(STATE_SLICE_EVERY_S, took / MAKING_SHARE))
            began = time.monotonic()
            if states.is_idle:
                self._begin()
            else:
                if (one := states.make()) is not None:
                    made.append(one)
                took = time.monotonic() - began
            is_much = len(made) >= STORED_TOGETHER or sum(len(each.state) for each in made) >= STORED_BYTES
            if is_much or time.monotonic() >= self._tell_at:
                await self._keep(made)
                made = []

    async def _keep(self, made: Sequence[MadeState]) -> None:
        # What is confirmed by now is not in the states: who reads the feed again must not take it for unreserved
        positions = await self._read()
        forget = 0
        if time.monotonic() >= self._tell_at:
            self._tell_at, forget = time.monotonic() + FORGET_EVERY_S, self._states.needed_from() - 1
        try:
            await asyncio.to_thread(self._store, made, forget, positions)
        except (psycopg.Error, DatabaseUnavailable) as error:
            if not is_passing(error):
                raise
            for each in made:
                self._states.not_kept(each.group)
            await asyncio.sleep(RETRY_S)
        else:
            for each in made:
                self._states.kept(each.group)

    def _store(self, made: Sequence[MadeState], forget: int, positions: Mapping[str, int]) -> None:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = connect(self._database.url, application="tollbook quota states")
            journal.keep_states(self._connection, self._mine, made, positions)
            if forget:
                journal.forget(self._connection, self._mine, forget)
        except psycopg.Error:
            if self._connection is not None:
                self._connection.close()
            raise
