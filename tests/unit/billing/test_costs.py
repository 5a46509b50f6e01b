"""A pool's bill is divided to the last digit, and margins say why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.costs.allocation import Consumer, CostKind, GpuTime, allocate
from billing.costs.margins import Earned, Traffic, margins, spread_revenue
from billing.costs.pools import Pool, PoolVersion, read_pool
from billing.errors import PoolInvalid
from billing.money import total

START = datetime(2026, 10, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
GPU_HOUR_US = 3_600_000_000
A, B = Consumer("a", "big"), Consumer("b", "big", "fr")


def version(hour: int = 0, gpus: int = 2, gpu_hour: str = "3", overhead: str = "0.5") -> PoolVersion:
    return PoolVersion(START + hour * HOUR, gpus, Decimal(gpu_hour), Decimal(overhead))


def used(consumer: Consumer, us: int, hour: int = 0, pool: str = "p", is_tenants: bool = True) -> GpuTime:
    return GpuTime(START + hour * HOUR, pool, consumer, is_tenants, us)


def test_gpu_time_idle_time_and_overhead_are_lines_of_their_own() -> None:
    times = [
        used(A, GPU_HOUR_US),
        used(A, GPU_HOUR_US // 2, 1),
        used(B, GPU_HOUR_US // 4),
        used(A, 10**9, 2, is_tenants=False),
    ]
    found = allocate([Pool("p", "EUR", (version(),))], times, START, START + 4 * HOUR)
    told = {(line.kind, line.consumer): line.amount for line in found.lines}
    # 2 GPUs x 4 h x 3 = 24 for 8 GPU-hours; 4 h x 0.5 beside them
    assert told[CostKind.USAGE, A] == Decimal("4.5")
    assert told[CostKind.USAGE, B] == Decimal("0.75")
    assert told[CostKind.PLATFORM, A] == Decimal("0.833333333333")
    assert told[CostKind.IDLE, Consumer()] == Decimal("17.916666666667")
    assert told[CostKind.OVERHEAD, Consumer()] == 2
    assert found.problems == ()


def test_another_price_holds_from_its_hour_on() -> None:
    pool = Pool("p", "EUR", (version(), version(2, gpus=1, gpu_hour="7", overhead="0")))
    times = [used(A, GPU_HOUR_US, 1), used(A, GPU_HOUR_US, 2)]
    found = allocate([pool], times, START, START + 4 * HOUR)
    assert {line.kind: line.amount for line in found.lines} == {
        CostKind.USAGE: 3 + 7, CostKind.IDLE: 3 * 3 + 7, CostKind.OVERHEAD: 1
    }  # fmt: skip


def test_what_has_no_price_and_what_a_pool_cannot_have_had_is_said() -> None:
    pool = Pool("p", "EUR", (version(1, gpus=1),))
    times = [used(A, 5_000_000), used(A, 2 * GPU_HOUR_US, 1), used(B, 1_000_000, pool="q"), used(B, 1, pool="")]
    found = allocate([pool], times, START, START + 2 * HOUR)
    assert [(line.kind, line.amount) for line in found.lines] == [
        (CostKind.IDLE, 0),
        (CostKind.OVERHEAD, Decimal("0.5")),
        (CostKind.USAGE, 3),
    ]
    assert len(found.problems) == 4
    assert "its first version is later" in found.problems[0]
    assert "2.000000 GPU-hours" in found.problems[1]
    assert "'q'" in found.problems[3]


@given(
    times=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 5 * GPU_HOUR_US), st.integers(0, 5), st.booleans())
    ),
    versions=st.lists(
        st.tuples(st.integers(-2, 5), st.integers(0, 9), st.decimals(0, 99, places=6), st.decimals(0, 99, places=6)),
        unique_by=lambda each: each[0],
    ),
)  # fmt: skip
def test_the_lines_add_up_to_the_pools_bill_exactly(
    times: list[tuple[str, int, int, bool]], versions: list[tuple[int, int, Decimal, Decimal]]
) -> None:
    dated = tuple(PoolVersion(START + hour * HOUR, *more) for hour, *more in sorted(versions))
    given_times = [used(Consumer(tenant), us, hour, is_tenants=own) for tenant, us, hour, own in times]
    found = allocate([Pool("p", "EUR", dated)], given_times, START, START + 6 * HOUR)
    bill = Fraction()
    for hour in range(6):
        in_force = [each for each in dated if each.since <= START + hour * HOUR]
        if in_force:
            bill += in_force[-1].gpus * Fraction(in_force[-1].gpu_hour) + Fraction(in_force[-1].overhead_hour)
    assert Fraction(total(line.amount for line in found.lines)) == bill
    assert all(line.amount >= 0 for line in found.lines)


def test_revenue_of_a_charge_for_any_model_is_spread_by_what_it_counts() -> None:
    traffic = {
        A: Traffic(1, 300, 100, 50, 10),
        Consumer("a", "small"): Traffic(1, 400, 0, 150, 10),
        B: Traffic(1, 1, 0, 1, 1),
    }
    earned = [
        Earned("a", "", "", "output", Fraction(8)), Earned("a", "", "", "input", Fraction(6)),
        Earned("a", "big", "", "cached_input", Fraction(1)), Earned("a", "", "", "", Fraction(20)),
    ]  # fmt: skip
    found = spread_revenue(earned, traffic)
    assert found == {A: 2 + 2 + 1, Consumer("a", "small"): 6 + 4, Consumer("a"): 20}
    assert sum(found.values()) == sum(each.amount for each in earned)


def test_who_costs_more_than_it_brings_comes_first_with_the_reasons() -> None:
    traffic = {A: Traffic(10, 90_000, 0, 1_000, 5_000_000), B: Traffic(10, 9_000, 6_000, 1_000, 100_000)}
    found = margins({A: Fraction(2), B: Fraction(3)}, {A: Fraction(5), B: Fraction(1)}, traffic, ["tenant"])
    assert [(row.key, row.margin) for row in found] == [(("a",), -3), (("b",), 2)]
    assert found[1].reasons == ()
    worst, *_ = found[0].reasons
    assert worst == "0.0% of its input from the cache (all together 6.1%)"
    assert any(reason.startswith("9,000 input tokens a request (all together 4,950)") for reason in found[0].reasons)
    by_model = margins({A: Fraction(2), B: Fraction(3)}, {A: Fraction(5), B: Fraction(1)}, traffic, ["model"])
    assert [(row.key, row.margin) for row in by_model] == [(("big",), -1)]


def test_a_pool_is_read_from_a_file_and_each_mistake_is_named() -> None:
    text = 'pool: h100\ncurrency: EUR\nversions:\n  - from: 2026-10-01\n    gpus: 16\n    gpu_hour: "2.10"\n'
    assert read_pool(text, file="p.yaml") == Pool("h100", "EUR", (version(gpus=16, gpu_hour="2.10", overhead="0"),))
    for wrong, told in (
        (text.replace("EUR", "XXQ"), "p.yaml:2: currency"),
        (text.replace('"2.10"', "2.10"), "p.yaml:6: versions[0].gpu_hour"),
        (text.replace("2026-10-01", "2026-10-01T06:30Z"), "p.yaml:4: versions[0].from: must be a whole hour"),
        (text.replace("16", "-1"), "p.yaml:5: versions[0].gpus"),
        (text.replace("pool: h100", 'pool: ""'), "p.yaml:1: pool"),
        (text + text[text.index("  -"):], "p.yaml:4: versions: must be in order"),
        ("", "the file is empty"),
    ):  # fmt: skip
        with pytest.raises(PoolInvalid) as refused:
            read_pool(wrong, file="p.yaml")
        assert told in str(refused.value)
