"""The service's time is the database's: a step forward is followed at once, one back never makes it go back."""

from __future__ import annotations

import asyncio
import time
from random import Random

from streams.quotas.decisions import Ask, Limits
from streams.quotas.entries import Leased, Reserved
from streams.quotas.feed import Look
from streams.quotas.journal import Ownership
from streams.quotas.rebuilding import Rebuilt
from streams.quotas.service import QuotaService
from streams.quotas.service_clock import ServiceClock
from streams.quotas.shard import Shard
from streams.settings import DatabaseSettings
from tests.quota_builders import DAY, NOW, SECOND, admit, ask, book, budget, quota

HOUR = 3600 * SECOND


def test_a_step_forward_is_followed_at_once_and_told() -> None:
    clock = ServiceClock(NOW, 100.0)
    assert clock.now(101.0) == NOW + SECOND
    assert clock.hear(NOW + 2 * SECOND + 500, 102.0) == 0
    assert clock.now(102.0) == NOW + 2 * SECOND + 500
    assert clock.hear(NOW + HOUR, 103.0) == HOUR - 3 * SECOND - 500
    assert clock.now(104.0) == NOW + HOUR + SECOND


def test_after_a_step_back_time_goes_on_at_half_speed_until_it_is_reached() -> None:
    clock = ServiceClock(NOW + HOUR, 0.0)
    assert clock.hear(NOW, 0.0) == 0
    told = [clock.now(second) for second in (0.0, 0.0, 60.0, 60.0, 3600.0, 7200.0, 7260.0)]
    assert told == sorted(set(told))
    assert told[2] == NOW + HOUR + 30 * SECOND
    assert (clock.ahead(3600.0), clock.ahead(7200.0)) == (HOUR // 2, 0)
    assert told[-1] == NOW + 7260 * SECOND


def test_an_owner_after_one_that_was_ahead_begins_where_that_was() -> None:
    clock = ServiceClock(NOW, 0.0, newest=NOW + 60 * SECOND)
    assert clock.now(0.0) > NOW + 60 * SECOND
    assert clock.ahead(0.0) == 60 * SECOND


def test_what_is_held_runs_as_long_as_before_when_the_clock_steps() -> None:
    async def run() -> None:
        def looked(at: int) -> Look:
            return Look(at, time.monotonic(), {}, [], True, None)

        shard = Shard(0, 1, Limits())
        shard.registered.add("t1")
        mine = Ownership(0, 1, 1, lost=False, first=True)
        service = QuotaService(
            DatabaseSettings("postgresql://nowhere"), mine, Rebuilt(shard, looked(NOW), 0, 0), Random(1)
        )
        assert isinstance(shard.ask(Ask("t1", "r1", "m-1", 10), service.now()), Reserved)
        shard.lease(Leased("t1", "l1", "gw", service.now(), "m-1", "", 1, 1, 1, 1, NOW + 60 * SECOND))
        service._set_clock(looked(NOW + HOUR))
        for _ in range(3):
            shard.tend(service.now())
        shard.each_second(service.now())
        held = shard.books["t1"].book
        assert (held.requests["r1"].ended_at, held.leases.any_open, shard.counters.expired) == (None, True, 0)
        service._set_clock(looked(NOW + HOUR))  # no step any more
        assert held.requests["r1"].deadline < NOW + HOUR + 961 * SECOND + SECOND

    asyncio.run(run())


def test_periods_begin_by_the_databases_clock_also_while_that_is_behind() -> None:
    made = book(quota(limit=500))
    midnight = NOW + DAY // 2
    admit(made, ask("a"), midnight - SECOND)
    made.meters._lead.us = 10 * SECOND
    admit(made, ask("b"), midnight + 9 * SECOND)
    assert budget(made).end == midnight
    admit(made, ask("c"), midnight + 10 * SECOND)
    assert (budget(made).start, budget(made).reserved) == (midnight, 300)
