"""What is compared with what, on values."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from billing.plans.price_plans import Metric
from reconciliation import agreement
from reconciliation.agreement import Issued, Terms
from streams.rules.windows import UsageQuantity

USAGE = UsageQuantity("t1", "llama", "", "us", "", "ok", "none", "engine", "", 2, 100, 40, 30, 0)


def test_positions_agree_when_chunks_follow_one_another_and_every_message_has_an_outcome() -> None:
    check = agreement.positions({"s": (5, 20), "empty": (0, 0)}, [("s", 5, 10, 5), ("s", 10, 20, 10)])
    assert check.agrees


def test_a_hole_between_chunks_is_found() -> None:
    check = agreement.positions({"s": (0, 20)}, [("s", 0, 9, 9), ("s", 10, 20, 10)])
    assert [(d.key, d.left, d.right) for d in check.differences] == [("s@10", 9, 10)]


def test_a_message_without_an_outcome_is_found() -> None:
    assert [d.key for d in agreement.positions({"s": (0, 9)}, [("s", 0, 9, 8)]).differences] == ["s@0/outcomes"]


def test_a_missing_last_chunk_is_found() -> None:
    assert [d.key for d in agreement.positions({"s": (0, 20)}, [("s", 0, 9, 9)]).differences] == ["s"]


def test_only_billable_usage_of_priced_metrics_is_expected_to_be_rated() -> None:
    terms = Terms(("ok", "aborted"), frozenset({Metric.INPUT, Metric.CACHED_INPUT, Metric.OUTPUT}))
    usage = [USAGE, replace(USAGE, status="error"), replace(USAGE, fault="platform")]
    assert agreement.billable_by_metric([(terms, usage)]) == {
        "t1/input": Decimal(60), "t1/cached_input": Decimal(40), "t1/output": Decimal(30),
    }  # fmt: skip


def test_billable_usage_without_a_subscription_is_expected_to_be_rated_all_the_same() -> None:
    usage = [USAGE, replace(USAGE, status="error")]
    assert agreement.billable_by_metric([(None, usage)]) == {"t1/without a subscription/requests": 2}


def test_gaps_are_what_no_pair_of_bounds_covers() -> None:
    days = [datetime(2026, 10, day, tzinfo=UTC) for day in range(1, 7)]
    assert agreement.gaps([], days[0], days[5]) == [(days[0], days[5])]
    assert agreement.gaps([(days[0], days[5])], days[0], days[5]) == []
    assert agreement.gaps([(days[3], days[4]), (days[1], days[2])], days[0], days[5]) == [
        (days[0], days[1]), (days[2], days[3]), (days[4], days[5]),
    ]  # fmt: skip


def test_balances_follow_from_what_was_rated_invoiced_reduced_by_credits_deferred_and_posted_by_hand() -> None:
    end = datetime(2026, 11, 1, tzinfo=UTC)
    found = agreement.explained(
        {("t1", "USD"): Decimal("2.002")},
        {("t1", "USD"): Decimal("1.001")},
        [Issued("acme", "USD", end, 100, Decimal("0.001"), 19, 0), Issued("bolt", "USD", end, 50, Decimal(0), 8, 8)],
        {"USD": Decimal("0.25")},
        {(1100, "acme", "USD"): Decimal(-1), (4010, "", "USD"): Decimal("0.5")},
        {"USD": Decimal(31)},
        {("t1", "USD"): Decimal(30)},
    )
    assert found == {
        "1150/t1/USD": Decimal("1.001"), "revenue//USD": Decimal("-2.172"), "1100/bolt/USD": Decimal("0.5"),
        "2110/t1/USD": Decimal(-30), "2200//USD": Decimal("-0.27"), "5900//USD": Decimal("0.001"),
    }  # fmt: skip


def test_what_is_left_of_paid_credits_is_the_liability_credit_by_credit() -> None:
    left = {("a", "USD"): Decimal(5), ("b", "USD"): Decimal(0)}
    assert agreement.credits_owed(left, {("a", "USD"): Decimal(-5)}).agrees
    swapped = agreement.credits_owed(left, {("b", "USD"): Decimal(-5)})
    assert [d.key for d in swapped.differences] == ["a/USD", "b/USD"]


def test_breakage_is_what_was_estimated_credit_by_credit_but_where_more_is_known_by_now() -> None:
    expected = {("a", "USD"): Decimal(2), ("b", "USD"): None, ("c", "USD"): Decimal(0)}
    assert agreement.breakage_expected(expected, {("a", "USD"): Decimal(2), ("b", "USD"): Decimal(7)}).agrees
    wrong = agreement.breakage_expected(expected, {("c", "USD"): Decimal(2), ("d", "USD"): Decimal(1)})
    assert {d.key for d in wrong.differences} == {"a/USD", "c/USD", "d/USD", "how many"}


def test_usage_is_compared_measure_by_measure() -> None:
    check = agreement.compare(
        "c", "events", "windows", agreement.usage_by_key([USAGE]),
        agreement.usage_by_key([replace(USAGE, output_tokens=31)]),
    )  # fmt: skip
    assert [(d.key, d.left, d.right) for d in check.differences] == [
        ("t1/llama//us//ok/none/engine//output_tokens", 30, 31)
    ]
    assert check.compared == 4
