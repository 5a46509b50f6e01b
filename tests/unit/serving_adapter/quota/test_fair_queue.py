"""Weighted shares per tier when room is short, tenants in turn, nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from serving_adapter.quota import Pool, PoolFull
from serving_adapter.quota.fair_queue import AGEING_S, FairQueue


def filled(**waiting: int) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue({"enterprise": 8, "paid": 4, "free": 1}, 2)
    for tier, count in waiting.items():
        for number in range(count):
            queue.push(tier, tier=tier, tenant=f"{tier}-{number % 3}", now=0.0)
    return queue


def test_tiers_share_by_weight_while_all_of_them_wait() -> None:
    queue = filled(free=100, paid=100, enterprise=100)
    first = Counter(queue.pop(0.0) for _ in range(65))
    assert first == {"enterprise": 40, "paid": 20, "free": 5}


def test_what_one_does_not_want_the_others_get() -> None:
    queue = filled(free=50, paid=2)
    assert Counter(queue.pop(0.0) for _ in range(52)) == {"free": 50, "paid": 2}
    assert queue.pop(0.0) is None


def test_a_tier_that_was_idle_saves_nothing_up() -> None:
    queue = filled(free=200)
    for _ in range(100):
        queue.pop(0.0)
    for number in range(100):
        queue.push("paid", tier="paid", tenant=f"p{number}", now=0.0)
    assert Counter(queue.pop(0.0) for _ in range(50))["free"] in (10, 11)


def test_tenants_of_a_tier_take_turns_however_many_requests_each_has() -> None:
    queue: FairQueue[str] = FairQueue({}, 1)
    for _ in range(100):
        queue.push("loud", tier="", tenant="loud", now=0.0)
    for _ in range(5):
        queue.push("quiet", tier="", tenant="quiet", now=0.0)
    assert Counter(queue.pop(0.0) for _ in range(10)) == {"loud": 5, "quiet": 5}


def test_who_waits_long_comes_before_a_far_heavier_tier() -> None:
    queue: FairQueue[str] = FairQueue({"huge": 1_000_000}, 1)
    queue.push("small", tier="", tenant="s", now=0.0)
    assert queue.pop(0.0) == "small"
    queue.push("small", tier="", tenant="s", now=0.0)
    for second in range(100):
        queue.push("huge", tier="huge", tenant="h", now=float(second))
        if queue.pop(float(second)) == "small":
            break
    assert 1 <= second <= AGEING_S + 1


def test_who_gave_up_is_charged_to_nobody() -> None:
    queue = filled(enterprise=400)
    served: Counter[str] = Counter()
    for _ in range(90):  # of the free tier most have gone by the time that it is their turn
        for number in range(20):
            queue.push("free" if number == 19 else "gone", tier="free", tenant=f"f{number}", now=0.0)
        served[queue.pop(0.0, lambda item: item != "gone") or ""] += 1
    assert (served["enterprise"], served["free"]) == (80, 10)


def test_a_pool_hands_places_out_in_turn_and_refuses_who_waits_too_long() -> None:
    async def run() -> list[str]:
        pool = Pool(2)
        served: list[str] = []

        async def one(tier: str, number: int) -> None:
            async with pool.place(f"{tier}-{number}", tier, within_s=10):
                served.append(tier)
                await asyncio.sleep(0)

        async with pool.place("t", "paid", 1), pool.place("t", "paid", 1):
            waiting = [asyncio.create_task(one("free", number)) for number in range(20)]
            waiting += [asyncio.create_task(one("enterprise", number)) for number in range(16)]
            with pytest.raises(PoolFull):
                async with pool.place("late", "free", within_s=0.01):
                    pass
            cancelled = asyncio.create_task(one("paid", 0))
            await asyncio.sleep(0)
            cancelled.cancel()
        await asyncio.gather(*waiting)
        async with pool.place("t", "paid", 0.1), pool.place("t", "paid", 0.1):
            pass
        return served

    served = asyncio.run(run())
    assert Counter(served) == {"free": 20, "enterprise": 16}
    assert served[:9].count("enterprise") >= 7
