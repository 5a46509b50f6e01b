"""Writing down books a slice at a time, so that a restart need not read the journal from its beginning."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import psycopg

from streams.database import connect, is_passing
from streams.errors import DatabaseUnavailable
from streams.quotas import journal
from streams.quotas.journal import Ownership
from streams.quotas.journal_writer import RETRY_S
from streams.quotas.stored_states import StoredStates
from streams.settings import DatabaseSettings

STATE_SLICE_EVERY_S: Final = 0.01
MAKING_SHARE: Final = 0.05
"""Of the loop's time, at most: callers wait meanwhile. With 400,000 requests a state is half a minute old then."""
FORGET_EVERY_S: Final = 5.0


class StateKeeper:
    """Stores states, and lets batches go that no rebuild needs. `begin`: a state begins with the next batch."""

    def __init__(
        self, database: DatabaseSettings, mine: Ownership, states: StoredStates, begin: Callable[[], None]
    ) -> None:
        self._database = database
        self._mine = mine
        self._states = states
        self._begin = begin
        self._connection: psycopg.Connection | None = None
        self._forgot_at = time.monotonic()

    async def keep_again_and_again(self) -> None:
        """Until it is cancelled."""
        states = self._states
        took = 0.0
        while True:
            await asyncio.sleep(max(STATE_SLICE_EVERY_S, took / MAKING_SHARE))
            began = time.monotonic()
            if states.is_idle:
                self._begin()
                continue
            made = states.make()
            took = time.monotonic() - began
            if made is not None:
                forget = 0
                if time.monotonic() - self._forgot_at >= FORGET_EVERY_S:
                    self._forgot_at, forget = time.monotonic(), states.needed_from() - 1
                try:
                    await asyncio.to_thread(self._keep, *made, forget)
                except (psycopg.Error, DatabaseUnavailable) as error:
                    if not is_passing(error):
                        raise
                    states.not_kept(made[0])
                    await asyncio.sleep(RETRY_S)
                else:
                    states.kept(made[0])

    def _keep(self, group: int, no: int, state: bytes, forget: int) -> None:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = connect(self._database.url, application="tollbook quota states")
            journal.keep_state(self._connection, self._mine, group, no, state)
            if forget:
                journal.forget(self._connection, self._mine, forget)
        except psycopg.Error:
            if self._connection is not None:
                self._connection.close()
            raise
