"""The highest prices that may apply, over time: of each version while a subscription has its plan."""

from __future__ import annotations

from datetime import UTC, datetime

from billing.plans.price_plans import Metric
from billing.usage.estimates import prices_over_time
from tests.billing_builders import charge, subscription, version


def on(month: int) -> datetime:
    return datetime(2026, month, 1, tzinfo=UTC)


def shown(*subscriptions: object) -> set[tuple[int, str, str, str]]:
    plans = {
        "p": [
            version(charge("out", Metric.OUTPUT, "1"), charge("call", Metric.REQUEST, "5"), valid_from=on(1)),
            version(charge("out", Metric.OUTPUT, "2"), charge("call", Metric.REQUEST, "5"), valid_from=on(3)),
            version(charge("out", Metric.OUTPUT, "9"), valid_from=on(9)),
        ],
        "old": [
            version(charge("out", Metric.OUTPUT, "3"), charge("m", Metric.OUTPUT, "4", model="m"), valid_from=on(1))
        ],
    }
    prices = prices_over_time(subscriptions, plans)  # type: ignore[arg-type]
    return {(p.valid_from.month, p.model, p.metric, str(p.unit_price)) for p in prices}


def test_a_version_counts_from_when_it_is_in_force_in_the_subscription() -> None:
    assert shown(subscription(starts_at=on(4), ends_at=on(9))) == {(4, "", "output", "2"), (4, "", "request", "5")}


def test_another_plan_counts_from_the_change_although_its_version_is_older() -> None:
    found = shown(
        subscription(starts_at=on(4), ends_at=on(6)), subscription(starts_at=on(6), plan="old")
    )  # fmt: skip
    assert found == {
        (4, "", "output", "2"), (4, "", "request", "5"),
        (6, "", "output", "3"), (6, "m", "output", "4"), (6, "", "request", "0"),
    }  # fmt: skip


def test_a_later_version_that_prices_less_ends_what_it_does_not_name() -> None:
    found = shown(subscription(starts_at=on(4)))
    assert {each for each in found if each[0] == 9} == {(9, "", "output", "9"), (9, "", "request", "0")}
