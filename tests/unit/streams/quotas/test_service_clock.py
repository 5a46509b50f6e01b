"""The service's time is the database's: a step forward is followed at once, one back never makes it go back."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from random import Random

from streams.quotas.decisions import Limits
from streams.quotas.feed import Look
from streams.quotas.journal import Ownership
from streams.quotas.rebuilding import Rebuilt
from streams.quotas.service import QuotaService
from streams.quotas.shard import Shard
from streams.settings import DatabaseSettings
from tests.quota_builders import NOW, SECOND

HOUR = 3600 * SECOND


def looked(at: int) -> Look:
    return Look(at, time.monotonic(), {}, [], True, None)


def test_the_clock_follows_a_step_forward_and_never_goes_back() -> None:
    async def run() -> None:
        rebuilt = Rebuilt(Shard(0, 1, Limits()), looked(NOW), 0, 0)
        mine = Ownership(0, 1, 1, lost=False, first=True)
        service = QuotaService(DatabaseSettings("postgresql://nowhere"), mine, rebuilt, Random(1))
        first = service.now()
        assert NOW <= first < NOW + HOUR
        service._set_clock(looked(NOW + HOUR))
        ahead = service.now()
        assert ahead >= NOW + HOUR
        service._set_clock(looked(NOW))
        told = [service.now() for _ in range(1000)]
        assert told[0] > ahead
        assert all(one < other for one, other in pairwise(told))
        service._set_clock(looked(NOW + 2 * HOUR))
        assert service.now() >= NOW + 2 * HOUR

    asyncio.run(run())
