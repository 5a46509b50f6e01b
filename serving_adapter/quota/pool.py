"""Places in the serving pool: at once while there are any, else in fair turn, as long as a request can wait."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from serving_adapter.quota.fair_queue import FairQueue
from serving_adapter.quota.tiers import OTHERS, TIERS


class PoolFull(Exception):
    """No place became free in time, or too many wait."""


class Pool:
    """So many requests at once. Everything on one event loop."""

    def __init__(
        self, places: int, *, waiting_at_most: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._free = places
        self._waiting = 0
        self._waiting_at_most = waiting_at_most
        self._clock = clock
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(
            {name: policy.weight for name, policy in TIERS.items()}, OTHERS.weight
        )
        self.counts: Counter[str] = Counter()
        """What happened, by tier: for metrics."""

    @asynccontextmanager
    async def place(self, tenant_id: str, tier: str, within_s: float) -> AsyncIterator[None]:
        """Hold a place. Raises PoolFull if none is to be had in time."""
        await self._take(tenant_id, tier, within_s)
        try:
            yield
        finally:
            self._free += 1
            self._hand_out()

    async def _take(self, tenant_id: str, tier: str, within_s: float) -> None:
        if self._free > 0 and not len(self._queue):
            self._free -= 1
            return
        if self._waiting >= self._waiting_at_most:
            self.counts[f"refused:{tier}"] += 1
            raise PoolFull("too many requests wait for a place")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.push(turn, tier=tier, tenant=tenant_id, now=self._clock())
        self._waiting += 1
        self.counts[f"waited:{tier}"] += 1
        self._hand_out()
        try:
            async with asyncio.timeout(within_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # it was given one, and is gone
                self._free += 1
                self._hand_out()
            if isinstance(error, TimeoutError):
                self.counts[f"refused:{tier}"] += 1
                raise PoolFull(f"no place within {within_s} s") from None
            raise
        finally:
            self._waiting -= 1

    def _hand_out(self) -> None:
        while self._free > 0 and (turn := self._queue.pop(self._clock(), _waits)) is not None:
            self._free -= 1
            turn.set_result(None)


def _waits(turn: asyncio.Future[None]) -> bool:
    """Whether it has not given up."""
    return not turn.done()
