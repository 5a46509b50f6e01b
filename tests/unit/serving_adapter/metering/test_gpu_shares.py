"""Step time split among requests: nothing is lost, and what was measured weighs."""

from __future__ import annotations

import random

import pytest

from serving_adapter.metering.gpu_shares import LEARN_FROM, StepCost, StepLedger, Work, split


def test_shares_are_whole_and_add_up_to_the_busy_time_whatever_overlaps() -> None:
    seed = 20261122
    print("seed", seed)
    chance = random.Random(seed)
    ledger, final, now, running, waiting = StepLedger(gpus=4), dict[str, int](), 1000, set[str](), list[int]()
    busy, last_end = 0, 0
    began: dict[int, int] = {}
    for step in range(2000):
        running |= {f"q{step}-{i}" for i in range(chance.choice([0, 0, 1, 3]))}
        work = {name: Work(chance.choice([0, 0, 37]), chance.choice([1, 1, 4])) for name in running}
        ledger.begun(step, now, work)
        began[step] = now
        waiting += [step] if work else []
        now += chance.randint(0, 50)
        if len(waiting) > chance.choice([0, 1]):  # with asynchronous scheduling two steps are under way
            done = waiting.pop(0)
            now += chance.randint(1, 5000)
            ledger.done(done, now)
            busy += 4 * (now - max(began[done], last_end))
            last_end = now
            for name in sorted(running):
                if chance.random() < 0.2:
                    running.discard(name)
                    ledger.ended(name)
        final.update(ledger.take_final())
    for step in waiting:
        now += 10
        ledger.done(step, now)
        busy += 4 * (now - max(began[step], last_end))
        last_end = now
    for name in sorted(running):
        ledger.ended(name)
    final.update(ledger.take_final())
    assert sum(final.values()) == ledger.busy_us == busy
    assert all(share >= 0 for share in final.values())
    assert ledger.take_final() == []


def test_a_request_is_final_only_once_its_last_step_has_come_back() -> None:
    ledger = StepLedger()
    ledger.begun(1, 0, {"a": Work(0, 1)})
    ledger.begun(2, 10, {"a": Work(0, 1)})
    ledger.done(1, 100)
    assert ledger.running() == [("a", 100)]
    ledger.ended("a")
    assert ledger.take_final() == []
    ledger.done(2, 150)
    assert ledger.take_final() == [("a", 150)]
    ledger.ended("never-scheduled")
    assert ledger.take_final() == [("never-scheduled", 0)]


@pytest.mark.parametrize("interval", [0, 1, 7, 999_999])
def test_equal_work_is_charged_equally_to_a_microsecond(interval: int) -> None:
    shares = split(interval, {name: Work(0, 1) for name in "abc"}, (0.0, 1.0, 1.0))
    assert sum(shares.values()) == interval
    assert max(shares.values()) - min(shares.values()) <= 1
    nothing = split(interval, {"a": Work(0, 0), "b": Work(0, 0)}, (0.0, 1.0, 1.0))
    assert sum(nothing.values()) == interval


def test_costs_are_learned_from_the_steps_and_not_from_stalls() -> None:
    cost, chance = StepCost(), random.Random(1)
    assert cost.costs == (0.0, 1.0, 1.0)
    for number in range(2 * LEARN_FROM):
        prefill, decode = chance.choice([0, 0, 100, 400]), chance.randint(1, 32)
        took = 1000 + 3 * prefill + 20 * decode
        cost.learn(prefill, decode, 16_500_000 if number == LEARN_FROM + 10 else took)
    step, read, made = cost.costs
    assert step == pytest.approx(1000, rel=0.05)
    assert read == pytest.approx(3, rel=0.05)
    assert made == pytest.approx(20, rel=0.05)
    shares = split(10_000, {"reads": Work(200, 0), "makes": Work(0, 1)}, cost.costs)
    assert shares["reads"] / shares["makes"] == pytest.approx((500 + 600) / (500 + 20), rel=0.05)
