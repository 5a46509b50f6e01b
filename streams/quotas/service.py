"""One process of the quota service: a shard, its journal, and a thread that reads the database.

Requests are judged on the event loop, without waiting for anything. What was admitted or refused in one turn of the
loop is written as one batch; while it is written the next one gathers (group commit); answers leave when their batch is
durable, those of admissions also when a slice that is durable stands for them (`escrow.py`). When the database is away
longer than a caller would wait, callers are told so at once (503) and go by their fail mode; the batch in hand is
written as soon as that is possible.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Final

import psycopg

from streams.database import connect, is_passing
from streams.errors import DatabaseUnavailable
from streams.http import access_keys
from streams.http.access_keys import AccessKey
from streams.quotas import feed, journal, looking
from streams.quotas.entries import Reserved
from streams.quotas.feed import Look, Wanted
from streams.quotas.http_protocol import Call, Connection
from streams.quotas.journal import Ownership
from streams.quotas.journal_writer import RETRY_S, JournalWriter
from streams.quotas.rebuilding import Rebuilt
from streams.quotas.service_clock import ServiceClock
from streams.quotas.shard import Cut
from streams.quotas.state_keeper import StateKeeper
from streams.settings import DatabaseSettings

LOOK_EVERY_S: Final = 0.2
"""So that what Faust commits is known here within a second."""
LOOK_AGAIN_S: Final = 0.005
KEYS_EVERY_S: Final = 1.0
KEYS_STALE_S: Final = 300.0
TICK_S: Final = 0.01
TICKS_A_ROUND: Final = 100
AWAY_AFTER_S: Final = 0.5
"""A write that takes longer: callers have given up long ago."""
PARKED_AT_MOST: Final = 10_000
OLD_DECISIONS_EVERY_S: Final = 3600.0

Headers = Iterable[tuple[str, str]]
Prepared = tuple[Call, int, bytes, Headers]
"""A call and its answer."""
Parked = Callable[[], bool]
"""Tries a request again whose tenant was being loaded; False if it has to wait on."""


class QuotaService:
    """The running shard. Everything but reading runs on one event loop."""

    def __init__(self, database: DatabaseSettings, mine: Ownership, rebuilt: Rebuilt, rng: Random) -> None:
        self.shard = rebuilt.shard
        self.mine = mine
        self.rng = rng
        self.keys: dict[bytes, AccessKey] = {}
        self.keys_read_at = float("-inf")
        self.keys_are_stale = True
        """Whether they could not be read for so long that nobody is believed any more."""
        self.away = False
        """Whether the journal cannot be written: nothing is admitted."""
        self.fenced = asyncio.Event()
        self.batches = 0
        self.looked_at = time.monotonic()
        self.parked: dict[str, list[Parked]] = defaultdict(list)
        self._database = database
        self._positions = rebuilt.look.positions
        self._tenants_through = rebuilt.look.tenants_through
        self._clock = ServiceClock(rebuilt.look.at, rebuilt.look.monotonic, rebuilt.newest)
        self.shard.lead.us = self._clock.ahead(time.monotonic())
        self._prepared: list[Prepared] = []
        self._in_hand: tuple[Cut | None, list[Prepared]] = (None, [])
        """The batch that is being written, and who waits for it."""
        self._noted_in_hand = self._noted_durable = 0
        """Of the shard's count of looks that found unreserved usage: what is written, or being written."""
        self._is_taking = False
        """Whether a look is being taken: `_positions` are behind it."""
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._flush_is_due = False
        self._writing_since: float | None = None
        self._begin_a_state = False
        self._dropped_at = time.monotonic()
        self._reading: psycopg.Connection | None = None
        self._writer = JournalWriter(database, mine, self._written, self.fenced.set)
        self._states = StateKeeper(database, mine, self.shard.states, self._begin_state, self._read_through)
        self.tasks: list[asyncio.Task[None]] = []
        """What goes on beside requests: none of them ends by itself."""

    async def start(self) -> None:
        """Begin to read and write; returns when callers can be told apart."""
        await self._writer.start()
        self._take_keys(await asyncio.to_thread(self._read_keys))
        self.shard.lose_escrows(self.now())
        turning = (self._look_again_and_again(), self._tick(), self._states.keep_again_and_again())
        self.tasks = [asyncio.create_task(each) for each in turning]

    async def stop(self) -> None:
        """Write what is in hand, and end."""
        self.shard.end_escrows(self.now())
        self.flush()
        for _ in range(200):
            if self._writing_since is None and not self._prepared:
                break
            await asyncio.sleep(0.01)
            self.flush()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self._writer.stop()

    def now(self) -> int:
        """The time, in microseconds since 1970; it never stands still or goes back."""
        return self._clock.now(time.monotonic())

    # Answers

    def when_durable(self, call: Call, status: int, body: bytes = b"", headers: Headers = ()) -> None:
        """Answer a call once all that was decided so far is written."""
        self._prepared.append((call, status, body, headers))
        self.flush_soon()

    def when_covered(self, call: Call, entry: Reserved, now: int, body: bytes, headers: Headers) -> None:
        """Answer a call whose request was admitted: at once, if what is durable stands for it. Then it is written with
        the next batch that somebody waits for, or with the next tick."""
        if self.shard.may_answer(entry.tenant_id, entry, now):
            call.answer(200, body, headers)
        else:
            self.when_durable(call, 200, body, headers)

    def park(self, tenant_id: str, again: Parked) -> bool:
        """Try a request again once its tenant is loaded. False if too many wait already."""
        if sum(map(len, self.parked.values())) >= PARKED_AT_MOST:
            return False
        self.parked[tenant_id].append(again)
        self._wake.set()
        return True

    def next_turn(self, what: Callable[[], None]) -> None:
        """Go on after those who call meanwhile."""
        self._loop.call_soon(what)

    def flush_soon(self) -> None:
        """Write at the end of this turn of the loop, or after what is being written."""
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is pending, unless a batch is being written."""
        self._flush_is_due = False
        if self._writing_since is not None:
            return
        cut = self.shard.next_batch(begin_a_state=self._begin_a_state)
        self._begin_a_state = False
        prepared, self._prepared = self._prepared, []
        if cut is None:
            _answer(prepared)
            return
        self._in_hand = (cut, prepared)
        self._noted_in_hand = self.shard.noted
        self._writing_since = time.monotonic()
        self._writer.write(cut.batch)

    def _begin_state(self) -> None:
        self._begin_a_state = True
        self.flush_soon()

    def _written(self, no: int) -> None:
        cut, prepared = self._in_hand
        assert cut is not None, "it was written"
        self.batches += 1
        self.shard.written(no, cut)
        self._noted_durable = self._noted_in_hand
        self._writing_since, self.away = None, False
        if self._prepared or self.shard.pending:
            self.flush()  # first, so that the database is at work while answers are
        _answer(prepared)

    def _journal_is_away(self) -> None:
        """Nobody waits any longer: those who do are told, those who come are told at once."""
        self.away = True
        cut, prepared = self._in_hand
        self._in_hand = (cut, [])
        _answer([(call, 503, UNAVAILABLE, (("retry-after", "1"),)) for call, *_ in prepared + self._prepared])
        self._prepared = []
        self._try_parked()

    # The reading thread

    async def _look_again_and_again(self) -> None:
        failing = False
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), RETRY_S if failing else LOOK_EVERY_S)
            self._wake.clear()
            wanted = looking.wanted(self.shard, tenants_since=self._tenants_through)
            try:
                look, keys = await asyncio.to_thread(self._look, wanted)
            except (psycopg.Error, DatabaseUnavailable) as error:
                if not is_passing(error):
                    raise
                failing = True
                self._try_parked(give_up=True)
                continue
            failing = False
            self._is_taking = True
            for _ in looking.take_look(self.shard, look, wanted):
                await asyncio.sleep(0)
            self._positions, self._is_taking = look.positions, False
            self._tenants_through = look.tenants_through
            self.looked_at = time.monotonic()
            self._set_clock(look)
            if keys is not None:
                self._take_keys(keys)
            self._try_parked()
            self.flush_soon()
            if self.parked or self.shard.to_load or not look.caught_up:
                self._wake.set()
                await asyncio.sleep(LOOK_AGAIN_S)

    async def _read_through(self) -> Mapping[str, int]:
        """Up to where the feed was read, once what was found in it so far is durable."""
        while self._is_taking or self._noted_durable < self.shard.noted:
            await asyncio.sleep(TICK_S)
        return self._positions

    def _look(self, wanted: Wanted) -> tuple[Look, dict[bytes, AccessKey] | None]:
        try:
            if self._reading is None or self._reading.closed:
                self._reading = connect(self._database.url, application="tollbook quota")
            keys = self._read_keys() if time.monotonic() - self.keys_read_at > KEYS_EVERY_S else None
            if time.monotonic() - self._dropped_at > OLD_DECISIONS_EVERY_S:
                self._dropped_at = time.monotonic()
                journal.drop_old_decisions(self._reading)
            marks = self.shard.definitions.marks
            return feed.look(self._reading, self._positions, marks, wanted, self.mine.shard, self.mine.of), keys
        except psycopg.Error:
            if self._reading is not None:
                self._reading.close()
            raise

    def _read_keys(self) -> dict[bytes, AccessKey]:
        if self._reading is None or self._reading.closed:
            self._reading = connect(self._database.url, application="tollbook quota")
        return access_keys.in_force(self._reading, "quota")

    def _take_keys(self, keys: dict[bytes, AccessKey]) -> None:
        self.keys, self.keys_read_at, self.keys_are_stale = keys, time.monotonic(), False

    def _set_clock(self, look: Look) -> None:
        """Go by the database's clock; what is held runs no shorter because it has stepped."""
        stepped = self._clock.hear(look.at, look.monotonic)
        self.shard.lead.us = self._clock.ahead(time.monotonic())
        if stepped:
            self.shard.shift(stepped)

    def _try_parked(self, *, give_up: bool = False) -> None:
        """Try again those whose tenants may be ready. `give_up`, or a journal that is away: they are told."""
        parked, self.parked = self.parked, defaultdict(list)
        for tenant_id, waiting in parked.items():
            for again in waiting:
                self.giving_up = give_up or self.away
                if not again():
                    self.parked[tenant_id].append(again)
        self.giving_up = False

    giving_up = False
    """Whether a request that is tried again must be answered now."""

    # Time

    async def _tick(self) -> None:
        second_at = 0.0
        while True:
            await asyncio.sleep(TICK_S)
            now = self.now()
            self.shard.tend(now)
            self.shard.go_round(now, len(self.shard.books) // TICKS_A_ROUND + 1)
            monotonic = time.monotonic()
            self.keys_are_stale = monotonic - self.keys_read_at > KEYS_STALE_S
            if monotonic - second_at > 1:
                second_at = monotonic
                self.shard.each_second(now)
            if self._writing_since is not None and not self.away and monotonic - self._writing_since > AWAY_AFTER_S:
                self._journal_is_away()
            self.flush()


def _answer(prepared: Iterable[Prepared]) -> None:
    touched: set[Connection] = {call.answer(status, body, headers) for call, status, body, headers in prepared}
    for connection in touched:
        connection.flush()


UNAVAILABLE: Final = (
    b'{"error":{"message":"the journal cannot be written now: go by the tier\'s fail mode","type":"server_error",'
    b'"param":null,"code":"unavailable"}}'
)
