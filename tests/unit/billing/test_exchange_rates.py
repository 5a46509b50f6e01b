"""Which exchange rate holds when, and what rates do to a month's balances. Each sum is worked out beside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.errors import RateMissing
from billing.ledger.exchange_rates import RATE_AGE_MAX, ExchangeRate, ExchangeRates
from billing.ledger.remeasuring import Moved, loss


def day(number: int) -> datetime:
    return datetime(2026, 10, 1, tzinfo=UTC) + timedelta(days=number)


def rate(text: str, at: datetime, base: str = "EUR") -> ExchangeRate:
    return ExchangeRate(base, "USD", Decimal(text), at, "ECB")


def test_the_latest_rate_holds_both_ways_round_until_the_next_and_the_one_recorded_last_replaces_one() -> None:
    rates = ExchangeRates([rate("1.2", day(5)), rate("1.1", day(0)), rate("1.25", day(5))])
    assert rates.at("EUR", "USD", day(0)) == Fraction("1.1")
    assert rates.at("EUR", "USD", day(5) - timedelta(microseconds=1)) == Fraction("1.1")
    assert rates.at("EUR", "USD", day(5)) == Fraction("1.25")
    assert rates.at("USD", "EUR", day(5)) == Fraction(4, 5)
    assert rates.at("USD", "USD", day(-9)) == 1
    assert rates.changes_in(day(0), day(31)) == [day(5)]


@pytest.mark.parametrize("at", [day(0) - timedelta(microseconds=1), day(0) + RATE_AGE_MAX + timedelta(microseconds=1)])
def test_before_the_first_rate_and_long_after_the_last_none_holds(at: datetime) -> None:
    with pytest.raises(RateMissing, match="EUR in USD"):
        ExchangeRates([rate("1.1", day(0))]).at("EUR", "USD", at)


def month(opening: str, moved: list[Moved], before: str, after: str) -> Decimal:
    return loss(
        {"EUR": Decimal(opening)},
        moved,
        rate_before=lambda code: Fraction(before),
        rate_after=lambda code: Fraction(after) if code == "EUR" else Fraction(1),
    )


def eur(rate_: str, monetary: str, clearing: str = "0") -> Moved:
    return Moved("EUR", Fraction(rate_), Decimal(monetary), Decimal(clearing))


def test_what_was_earned_at_one_rate_and_is_owed_at_another_is_a_gain() -> None:
    # 100 EUR earned at 1.10 = 110 USD, worth 120 at the end: 10 gained.
    assert month("0", [eur("1.1", "100")], "1.05", "1.2") == -10


def test_what_was_held_is_remeasured_from_the_last_closing_rate() -> None:
    # 100 EUR at 1.20 = 120, of which 40 are paid out at 1.30 = 52; 60 left at 1.25 = 75: 120 - 52 - 75 = -7, a gain.
    assert month("100", [eur("1.3", "-40")], "1.2", "1.25") == -7


def test_an_exchange_that_gives_less_than_the_rate_of_its_moment_loses_the_difference() -> None:
    # 100 EUR at 1.20 = 120 become 115 USD when the rate is 1.16: 120 - 116 lost by the rate, 116 - 115 by the exchange.
    given_, got = eur("1.16", "-100", "100"), Moved("USD", Fraction(1), Decimal(0), Decimal(-115))
    assert month("100", [given_, got], "1.2", "1.3") == 5


def test_without_a_balance_no_rate_is_asked_for() -> None:
    def none(code: str) -> Fraction:
        raise RateMissing(code)

    assert loss({"EUR": Decimal(0)}, [], rate_before=none, rate_after=none) == 0


@given(st.lists(st.tuples(st.decimals(-1000, 1000, places=2), st.integers(1, 300)), max_size=8), st.integers(1, 300))
def test_two_months_lose_what_one_long_month_does(moved: list[tuple[Decimal, int]], closing: int) -> None:
    at = [Moved("EUR", Fraction(percent, 100), amount) for amount, percent in moved]
    half, middle = len(at) // 2, Fraction(7, 5)
    held = {"EUR": sum((each.monetary for each in at[:half]), Decimal(0))}

    one = loss({}, at, rate_before=lambda _: Fraction(1), rate_after=lambda _: Fraction(closing, 100))
    first = loss({}, at[:half], rate_before=lambda _: Fraction(1), rate_after=lambda _: middle)
    second = loss(held, at[half:], rate_before=lambda _: middle, rate_after=lambda _: Fraction(closing, 100))
    assert one == first + second
