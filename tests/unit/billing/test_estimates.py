"""The highest prices that may apply, over time: of each version while a subscription has its plan."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from billing.plans.charge_models import Package
from billing.plans.price_plans import Metric
from billing.usage.estimates import highest_prices, prices_over_time, statuses_that_bill
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
    found = shown(subscription(starts_at=on(4), ends_at=on(9)))
    assert found == {(4, "", "output", "2"), (4, "", "request", "5"), (9, "", "output", "0"), (9, "", "request", "0")}


def test_what_does_not_bill_costs_nothing_in_a_trial_after_the_end_and_between_two_subscriptions() -> None:
    trial = subscription(starts_at=on(1), trial_ends_at=on(4))
    assert {each for each in shown(trial) if each[0] < 9} == {(4, "", "output", "2"), (4, "", "request", "5")}
    never = subscription(starts_at=on(1), ends_at=on(2), trial_ends_at=on(4))
    assert shown(never) == set()
    found = shown(
        subscription(starts_at=on(1), ends_at=on(2), plan="old"),
        subscription(starts_at=on(4), ends_at=on(6), trial_ends_at=on(5), plan="old"),
    )
    named = {("", "output"): "3", ("m", "output"): "4"}
    assert found == {(month, *key, named[key] if month in (1, 5) else "0") for month in (1, 2, 5, 6) for key in named}


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


def test_what_bills_is_what_the_subscriptions_that_go_on_say() -> None:
    ended = subscription(starts_at=on(1), ends_at=on(4), bill_statuses=("ok", "error"))
    assert statuses_that_bill([ended]) == {"ok", "error"}
    assert statuses_that_bill([ended, subscription(starts_at=on(4), bill_statuses=("ok",))]) == {"ok"}
    assert statuses_that_bill([]) == {"ok", "aborted"}


def test_a_models_own_price_is_not_the_highest_where_a_narrower_one_takes_its_usage() -> None:
    made = version(
        charge("any", Metric.OUTPUT, "9"),
        charge("m", Metric.OUTPUT, "1", model="m"),
        charge("a", Metric.OUTPUT, "5", adapter="a"),
        charge("r", Metric.OUTPUT, "7", region="eu"),
        charge("n", Metric.OUTPUT, "2", model="n", tier="paid"),
    )
    assert highest_prices(made) == {
        ("", "output"): Decimal(9),
        ("m", "output"): Decimal(5),  # the adapter's ranks before the model's, the region's and anybody's do not
        ("n", "output"): Decimal(9),  # what is not of the tier
    }


def test_a_total_is_paid_beside_the_class() -> None:
    made = version(charge("all", Metric.TOTAL_TOKENS, "1"), charge("out", Metric.OUTPUT, "4"))
    assert highest_prices(made) == {
        ("", "input"): Decimal(1), ("", "cached_input"): Decimal(1), ("", "output"): Decimal(5)
    }  # fmt: skip


def test_a_packages_price_is_for_all_that_is_in_it() -> None:
    made = version(replace(charge("out", Metric.OUTPUT, "1"), pricing=Package(Decimal(3_000_000), Decimal(10))))
    assert highest_prices(made) == {("", "output"): Decimal("0.000003333333333334")}
