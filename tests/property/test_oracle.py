"""What the second rating's pieces keep, whatever the numbers."""

from __future__ import annotations

from datetime import date
from fractions import Fraction
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from reconciliation.oracle import calendar, fees
from reconciliation.oracle.calendar import SECOND, Period
from reconciliation.oracle.rational import (
    TRILLION,
    at_twelve,
    half_even,
    half_up,
    largest_remainder,
    pieces_that_add_up,
    written,
)

NUMBERS = st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=10**6)
DAYS = st.dates(date(1999, 1, 1), date(2101, 12, 31))


@given(NUMBERS)
def test_rounding_stays_within_a_half_and_is_odd_about_zero(number: Fraction) -> None:
    for rounding in (half_even, half_up):
        assert abs(rounding(number) - number) <= Fraction(1, 2)
        assert rounding(-number) == -rounding(number)


@given(NUMBERS)
def test_twelve_decimals_are_the_nearest_and_can_be_written(number: Fraction) -> None:
    cut = at_twelve(number)
    assert abs(cut - number) <= Fraction(1, 2 * TRILLION)
    assert Fraction(written(cut)) == cut
    assert at_twelve(cut) == cut


@given(st.lists(NUMBERS, max_size=12))
def test_the_first_pieces_add_up_to_the_first_amounts_cut_once(amounts: list[Fraction]) -> None:
    pieces = pieces_that_add_up(amounts)
    for n in range(len(amounts) + 1):
        assert sum(pieces[:n], Fraction(0)) == at_twelve(sum(amounts[:n], Fraction(0)))


@given(st.dictionaries(st.text(min_size=1, max_size=4), NUMBERS, min_size=1, max_size=12), st.booleans())
def test_spread_amounts_add_up_lie_next_to_their_exact_ones_and_ignore_the_order(
    amounts: dict[str, Fraction], up: bool
) -> None:
    lines = list(amounts.items())
    whole = (half_up if up else half_even)(sum(amounts.values(), Fraction(0)))
    spread = largest_remainder(lines, whole)
    assert sum(spread) == whole
    assert all(
        0 <= rounded - amount.numerator // amount.denominator <= 1
        for (_, amount), rounded in zip(lines, spread, strict=True)
    )
    backwards = largest_remainder(lines[::-1], whole)
    assert backwards[::-1] == spread


@given(st.dictionaries(st.text(min_size=1, max_size=4), NUMBERS, min_size=1, max_size=8))
def test_a_line_that_was_rounded_up_has_no_smaller_remainder_than_one_that_was_not(
    amounts: dict[str, Fraction],
) -> None:
    lines = list(amounts.items())
    spread = largest_remainder(lines, half_even(sum(amounts.values(), Fraction(0))))
    rests = [amount - amount.numerator // amount.denominator for _, amount in lines]
    up = [rest for rest, (_, amount), rounded in zip(rests, lines, spread, strict=True) if rounded > amount]
    down = [rest for rest, (_, amount), rounded in zip(rests, lines, spread, strict=True) if rounded < amount]
    assert not up or not down or min(up) >= max(down)


@given(
    st.decimals(0, 10**6, places=6),
    st.integers(1, 400 * 86_400),
    st.lists(st.integers(0, 400 * 86_400), max_size=6),
)
def test_pieces_of_a_fee_add_up_to_it_however_a_period_is_cut(price: object, seconds: int, cuts: list[int]) -> None:
    fee = Fraction(str(price))
    period = Period(0, seconds * SECOND)
    edges = sorted({0, seconds, *(cut % seconds for cut in cuts)})
    pieces = [fees.piece(fee, a * SECOND, b * SECOND, period) for a, b in pairwise(edges)]
    assert sum(pieces, Fraction(0)) == at_twelve(fee)
    assert all(piece >= 0 for piece in pieces)


@given(st.fractions(0, 10**4, max_denominator=100), st.integers(0, 100), st.integers(1, 100), st.integers(0, 100))
def test_unused_and_used_time_add_up_to_the_line(amount: Fraction, start: int, length: int, used: int) -> None:
    end = start + length
    at = min(start + used, end)
    unused = fees.unused(at_twelve(amount), start, end, at)
    assert 0 <= unused <= at_twelve(amount)
    assert (unused == 0) if at == end else True
    assert (unused == at_twelve(amount)) if at == start else True


@given(DAYS, st.integers(0, 60), st.sampled_from([1, 3, 12]))
def test_anniversaries_follow_one_another_without_gap_or_overlap(anchor: date, number: int, length: int) -> None:
    period = calendar.anchored(anchor, number * length, length)
    following = calendar.anchored(anchor, (number + 1) * length, length)
    assert period.end == following.start
    assert period.start < period.end
    first = calendar.day_of(period.start)
    assert first.day == min(anchor.day, calendar.days_in_month(first.year, first.month))
    assert calendar.named(period.name) == period


@given(DAYS)
def test_every_day_lies_in_its_month_quarter_and_year(day: date) -> None:
    moment = calendar.start_of(day)
    quarter = (day.month + 2) // 3
    for name in (f"{day.year}", f"{day.year}-Q{quarter}", f"{day.year}-{day.month:02d}"):
        assert moment in calendar.named(name)
    assert calendar.day_of(moment + calendar.DAY - 1) == day
