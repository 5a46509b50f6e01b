"""Rating by hand: quantities, what bills, prices, and the difference to what is posted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from billing.errors import AmountTooLarge, NegativeUsage
from billing.plans.charge_models import Graduated, Tier, TierContinuity
from billing.plans.price_plans import Charge, Filters, Metric, Terms
from billing.plans.subscriptions import pieces
from billing.rating import difference, is_billable, net, quantities, rate
from tests.billing_builders import NOVEMBER, OCTOBER, charge, cut, rated, subscription, usage, version

INPUT, CACHED, OUTPUT = Metric.INPUT, Metric.CACHED_INPUT, Metric.OUTPUT


def test_uncached_input_is_input_less_cached_and_total_counts_each_token_once() -> None:
    counted = quantities(usage(input_tokens=1500, cache_hit_tokens=400, output_tokens=75, requests=2, gpu_us=1_750_001))
    assert counted == {
        INPUT: 1100,
        CACHED: 400,
        OUTPUT: 75,
        Metric.TOTAL_TOKENS: 1575,
        Metric.REQUEST: 2,
        Metric.GPU_SECOND: Decimal("1.750001"),
    }


@pytest.mark.parametrize("wrong", [{"cache_hit_tokens": 1}, {"output_tokens": -1}, {"requests": -1}, {"gpu_us": -1}])
def test_usage_below_zero_stops_the_tenant(wrong: dict[str, int]) -> None:
    with pytest.raises(NegativeUsage, match=r"tenant tenant_1, model llama.*rebuild"):
        rated(version(charge("a", INPUT, "1")), [usage(**wrong)])


@pytest.mark.parametrize(
    ("changed", "bills"),
    [
        ({}, True),
        ({"status": "aborted"}, True),
        ({"status": "error"}, False),
        ({"status": "rejected"}, False),
        ({"status": "lost"}, False),
        ({"fault": "client"}, True),
        ({"fault": "platform"}, False),
        ({"usage_source": "settled"}, True),
        ({"usage_source": "estimate"}, False),
        ({"tenant_id": "_platform"}, False),
    ],
)
def test_what_bills_by_default(changed: dict[str, str], bills: bool) -> None:
    assert is_billable(usage(**changed), ("ok", "aborted")) is bills


def test_a_contract_may_bill_errors_but_never_what_was_lost() -> None:
    assert is_billable(usage(status="error"), ("ok", "error"))
    assert not is_billable(usage(status="lost"), ("ok", "lost"))


def test_usage_that_does_not_bill_makes_no_line() -> None:
    plan = version(charge("out", OUTPUT, "0.01"))
    used = [
        usage(output_tokens=100),
        usage(output_tokens=40, fault="platform"),
        usage(output_tokens=50, status="error"),
    ]
    (line,) = rated(plan, used).lines
    assert (line.quantity, line.amount) == (100, Decimal("1.00"))
    assert rated(plan, used[1:]).lines == ()


def test_models_without_a_charge_of_their_own_share_the_default_line() -> None:
    plan = version(charge("other", OUTPUT, "0.01"), charge("llama", OUTPUT, "0.02", model="llama"))
    used = [usage(output_tokens=1), usage(model="qwen", output_tokens=10), usage(model="phi", output_tokens=100)]
    lines = {line.identity.charge_key: (line.quantity, line.amount) for line in rated(plan, used).lines}
    assert lines == {"llama": (1, Decimal("0.02")), "other": (110, Decimal("1.10"))}


def test_usage_without_a_price_names_tenant_model_and_metric() -> None:
    plan = version(charge("in", INPUT, "1"), charge("out", OUTPUT, "1", model="llama"))
    found = rated(
        plan, [usage(output_tokens=1), usage(model="qwen", output_tokens=7), usage(model="qwen", output_tokens=5)]
    )
    (problem,) = found.unpriced
    assert str(problem) == "tenant tenant_1: 12 output of model qwen have no price in plan p version v1"


def test_usage_of_which_nothing_is_priced_is_an_omission_whatever_the_metric() -> None:
    plan = version(charge("out", OUTPUT, "1", model="llama"))
    found = rated(plan, [usage(model="qwen", input_tokens=3)])
    assert [(p.model, p.metric, p.quantity) for p in found.unpriced] == [
        ("qwen", "input", "3"),
        ("qwen", "request", "1"),
    ]


def test_a_metric_that_the_plan_prices_nowhere_is_free() -> None:
    plan = version(charge("out", OUTPUT, "1"))
    assert rated(plan, [usage(input_tokens=3)]) == rated(plan, [])


def test_each_price_version_has_its_own_line_for_the_usage_completed_in_it() -> None:
    # Case P20: 100 units at 0.01 in October; 600 at 0.02 in November, of which 200 completed exactly at 00:00.
    v1 = version(charge("a", OUTPUT, "0.01"))
    v2 = version(charge("a", OUTPUT, "0.02"), name="v2", valid_from=NOVEMBER.start)
    (october,) = cut([v1, v2], OCTOBER)
    (november,) = cut([v1, v2], NOVEMBER)
    assert [line.amount for line in rate([(october, [usage(output_tokens=100)])], OCTOBER).lines] == [Decimal("1.00")]
    used = [usage(output_tokens=200), usage(output_tokens=400)]
    (line,) = rate([(november, used)], NOVEMBER).lines
    assert (line.quantity, line.unit_price, line.amount) == (600, Decimal("0.02"), 12)


def test_a_change_in_mid_period_makes_two_lines_with_their_own_service_times() -> None:
    middle = datetime(2026, 10, 16, tzinfo=UTC)
    v1 = version(charge("a", OUTPUT, "0.01"))
    v2 = version(charge("a", OUTPUT, "0.02"), name="v2", valid_from=middle)
    first, second = cut([v1, v2])
    lines = rate([(first, [usage(output_tokens=8)]), (second, [usage(output_tokens=7)])], OCTOBER).lines
    assert [(x.identity.version, x.service_start, x.service_end, x.amount) for x in lines] == [
        ("v1", OCTOBER.start, middle, Decimal("0.08")),
        ("v2", middle, OCTOBER.end, Decimal("0.14")),
    ]


PLAN = version(charge("a", OUTPUT, "0.0000000000005"), charge("b", INPUT, "1"))


def test_rating_the_same_again_leaves_nothing_to_post() -> None:
    lines = rated(PLAN, [usage(output_tokens=3, input_tokens=1)]).lines
    assert difference(lines, lines) == ()
    assert difference(lines, ()) == lines


def test_more_usage_posts_the_difference_of_the_cumulative_amounts() -> None:
    # 3 × 5e-13 = 1.5e-12 → 2e-12; 6 × 5e-13 = 3e-12: the second posting is 1e-12, not another 2e-12.
    before = rated(PLAN, [usage(output_tokens=3)]).lines
    after = rated(PLAN, [usage(output_tokens=3), usage(output_tokens=3)]).lines
    (line,) = difference(after, before)
    assert (line.quantity, line.amount, line.reason) == (3, Decimal("1E-12"), "more usage")
    assert difference(after, [*before, line]) == ()


def test_less_usage_posts_a_negative_difference_and_usage_that_is_gone_a_reversal() -> None:
    before = rated(PLAN, [usage(output_tokens=4, input_tokens=2)]).lines
    after = rated(PLAN, [usage(output_tokens=2)]).lines
    found = {line.identity.charge_key: line for line in difference(after, before)}
    assert (found["a"].quantity, found["a"].amount, found["a"].reason) == (-2, Decimal("-1E-12"), "less usage")
    assert (found["b"].quantity, found["b"].amount, found["b"].reason) == (-2, -2, "reversal: no such usage now")
    (left,) = net([*before, *found.values()]).values()
    assert (left.quantity, left.amount) == (after[0].quantity, after[0].amount)


def test_another_unit_price_posts_a_reversal_and_a_new_line() -> None:
    before = rated(version(charge("a", OUTPUT, "10")), [usage(output_tokens=15)]).lines
    after = rated(version(charge("a", OUTPUT, "5")), [usage(output_tokens=16)]).lines
    found = [(line.unit_price, line.quantity, line.amount, line.reason) for line in difference(after, before)]
    assert found == [(5, 16, 80, "usage"), (10, -15, -150, "reversal: priced otherwise now")]


def test_tier_bounds_go_by_the_contract_of_their_own_segment_not_the_last_ones() -> None:
    half = OCTOBER.start + (OCTOBER.end - OCTOBER.start) / 2
    prorated = subscription(ends_at=half, terms=Terms(tier_continuity=TierContinuity.PRORATE))
    tiers = Graduated((Tier(Decimal(1), up_to=Decimal(100)), Tier(Decimal(2))))
    plans = {"p": [version(Charge("k", OUTPUT, Filters(), tiers))], "q": [version(charge("i", INPUT, "1"), plan="q")]}
    first, second = pieces([prorated, subscription(starts_at=half, plan="q")], plans, OCTOBER)
    found = rate([(first, [usage(output_tokens=80)]), (second, [usage(input_tokens=1)])], OCTOBER)
    assert [line.amount for line in found.lines] == [1, 50, 60]  # 50 of 80 at 1, 30 at 2


def test_two_segments_of_one_charge_are_two_lines() -> None:
    middle = datetime(2026, 10, 11, tzinfo=UTC)
    early, late = subscription(ends_at=middle), subscription(starts_at=middle)
    (one,) = cut([PLAN], of=early)
    (two,) = cut([PLAN], of=late)
    lines = rate([(one, [usage(input_tokens=1)]), (replace(two, segment_no=2), [usage(input_tokens=1)])], OCTOBER).lines
    assert [line.identity.segment_no for line in lines] == [1, 2]


def test_an_absurd_amount_stops_the_tenant_by_name_and_the_highest_bearable_does_not() -> None:
    dear = version(charge("a", INPUT, "1000000000000"))
    assert rated(dear, [usage(input_tokens=1)]).amount == Decimal(10) ** 12
    with pytest.raises(AmountTooLarge, match=r"tenant tenant_1: .* 2000000000000 USD.* plan p"):
        rated(dear, [usage(input_tokens=2)])
