"""What moved against the month before, in volume, price and mix."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from billing.money import exactly
from billing.plans.price_plans import Metric
from billing.rating import RatedLine
from reconciliation.close.gates.movement import movements, to_explain
from tests.billing_builders import charge, rated, usage, version


def lines(tokens: int, price: str, model: str = "llama") -> list[RatedLine]:
    plan = version(charge("out", Metric.OUTPUT, price, model=model))
    return list(rated(plan, [usage(model=model, output_tokens=tokens)]).lines)


def test_more_units_are_volume_and_another_price_is_price() -> None:
    (moved,) = movements(lines(100, "0.01"), lines(150, "0.02"))
    assert (moved.volume, moved.price, moved.mix, moved.change) == tuple(map(Decimal, ("0.5", "1.5", "0", "2")))
    assert moved.key == "tenant_1/llama/USD"


def test_only_what_is_more_than_the_threshold_is_to_be_explained_and_nothing_of_a_first_month() -> None:
    before = lines(1000, "0.01") + lines(10, "0.01", "qwen")
    now = lines(1040, "0.01") + lines(100, "0.01", "qwen")
    (explained,) = to_explain(movements(before, now), before)
    assert (explained.key, explained.right) == ("tenant_1/qwen/USD", "1 (volume 0.9)")
    assert to_explain(movements([], now), []) == []


def test_a_currency_that_is_new_is_explained_line_by_line() -> None:
    before = lines(1000, "0.01")
    plan = version(charge("out", Metric.OUTPUT, "0.01", model="llama"), currency="EUR")
    euros = list(rated(plan, [usage(model="llama", output_tokens=1)]).lines)
    explained = to_explain(movements(before, before + euros), before)
    assert [(each.key, each.left) for each in explained] == [("tenant_1/llama/EUR", "0")]


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 10**6), st.integers(1, 10**6))
def test_the_parts_add_up_to_the_change(before: int, now: int, old: int, new: int) -> None:
    for moved in movements(lines(before, f"0.{old:06d}"), lines(now, f"0.{new:06d}")):
        with exactly():
            assert moved.volume + moved.price + moved.mix == moved.now - moved.before
