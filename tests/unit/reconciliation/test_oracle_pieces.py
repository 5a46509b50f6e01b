"""The second rating's own calendar, rounding, spreading and proration, on values worked out by hand."""

from __future__ import annotations

from datetime import date
from fractions import Fraction

import pytest

from reconciliation import oracle
from reconciliation.oracle import calendar, fees
from reconciliation.oracle.calendar import DAY, Period
from reconciliation.oracle.models import of_event, pieces
from reconciliation.oracle.rational import (
    at_twelve,
    counted,
    exact,
    half_even,
    half_up,
    largest_remainder,
    pieces_that_add_up,
    written,
)
from reconciliation.oracle.segments import segments_in, stretches_in
from tests.money import golden


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("2026-10", "2026-10-01..2026-11-01"),
        ("2026-12", "2026-12-01..2027-01-01"),
        ("2026-Q1", "2026-01-01..2026-04-01"),
        ("2026-Q4", "2026-10-01..2027-01-01"),
        ("2028", "2028-01-01..2029-01-01"),
        ("2026-10-17..2026-11-17", "2026-10-17..2026-11-17"),
    ],
)
def test_a_period_is_named_as_the_rules_write_it(text: str, name: str) -> None:
    assert calendar.named(text).name == name


@pytest.mark.parametrize(
    "text", ["2026-13", "2026-Q5", "26-10", "2026-11-01..2026-10-01", "2026-10-01..2026-10-01", ""]
)
def test_what_is_no_period_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the texts come from several parsers
        calendar.named(text)


def test_an_anniversary_on_the_31st_uses_a_short_months_last_day_and_returns_to_the_31st() -> None:
    ends = [calendar.months_after(date(2028, 1, 31), n).isoformat() for n in range(5)]
    assert ends == ["2028-01-31", "2028-02-29", "2028-03-31", "2028-04-30", "2028-05-31"]


def test_an_anniversary_on_a_leap_day_comes_back_to_it_four_years_later() -> None:
    years = [calendar.months_after(date(2024, 2, 29), 12 * n).isoformat() for n in range(5)]
    assert years == ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"]


def test_a_century_is_a_leap_year_only_every_four_hundred_years() -> None:
    assert [calendar.days_in_month(year, 2) for year in (1900, 2000, 2100, 2024)] == [28, 29, 28, 29]


def test_a_quarter_from_the_30th_of_november_ends_at_the_end_of_february() -> None:
    assert calendar.anchored(date(2026, 11, 30), 0, 3).name == "2026-11-30..2027-02-28"


def test_further_digits_of_an_instant_are_cut_off_and_never_rounded_up() -> None:
    end = calendar.instant("2026-11-01")
    assert calendar.instant("2026-10-31T23:59:59.9999999Z") == end - 1
    assert calendar.instant("2026-11-01T00:00:00.000000Z") == end
    assert end - 1 in calendar.named("2026-10")
    assert end not in calendar.named("2026-10")


@pytest.mark.parametrize("text", ["2026-10-31 12:00:00", "2026-10-31T12:00:00", "2026-10-31T24:00:00Z", "2026-02-30"])
def test_an_instant_that_is_none_in_utc_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        calendar.instant(text)


@pytest.mark.parametrize(
    ("number", "even", "up"),
    [
        ("0.5", 0, 1),
        ("1.5", 2, 2),
        ("2.5", 2, 3),
        ("-0.5", 0, -1),
        ("-1.5", -2, -2),
        ("-2.5", -2, -3),
        ("2.4999", 2, 2),
    ],
)
def test_a_half_goes_to_the_even_number_or_away_from_zero(number: str, even: int, up: int) -> None:
    assert half_even(Fraction(number)) == even
    assert half_up(Fraction(number)) == up


def test_a_third_is_cut_at_twelve_decimals_and_the_pieces_add_up() -> None:
    third = Fraction(1, 3)
    assert written(at_twelve(third)) == "0.333333333333"
    assert [written(piece) for piece in pieces_that_add_up([third] * 3)] == [
        "0.333333333333",
        "0.333333333334",
        "0.333333333333",
    ]


def test_the_missing_cents_go_to_the_largest_remainders_and_ties_to_the_smaller_key() -> None:
    amounts = [("d.discount", Fraction("-0.4")), ("b", Fraction("10.5")), ("a", Fraction("10.5")), ("c", Fraction(4))]
    assert largest_remainder(amounts, 25) == [0, 10, 11, 4]


def test_keys_are_compared_bytewise() -> None:
    assert largest_remainder([("a", Fraction("0.5")), ("Z", Fraction("0.5"))], 1) == [0, 1]


def test_a_total_that_is_not_the_rounded_sum_is_refused() -> None:
    with pytest.raises(ValueError, match="is not the rounded sum"):
        largest_remainder([("a", Fraction("0.5"))], 3)


@pytest.mark.parametrize("value", [0.1, True, None])
def test_a_number_that_may_be_rounded_already_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        exact(value)


def test_numbers_are_written_without_exponent_and_trailing_zeros() -> None:
    assert [written(Fraction(text)) for text in ("1E-18", "-0.50", "100", "0")] == [
        "0.000000000000000001",
        "-0.5",
        "100",
        "0",
    ]
    assert [counted(Fraction(7)), counted(Fraction(7, 4)), counted(Fraction(1, 3))] == [7, "1.75", "1/3"]
    with pytest.raises(ValueError, match="has no end"):
        written(Fraction(1, 3))


def test_a_fee_from_the_middle_of_a_period_is_measured_against_the_whole_period() -> None:
    october = calendar.named("2026-10")
    eleventh = october.start + 10 * DAY
    assert fees.piece(Fraction(62), eleventh, october.end, october) == 42
    assert fees.piece(Fraction(62), october.start, eleventh, october) == 20


def test_unused_time_is_measured_against_the_lines_own_interval() -> None:
    assert fees.unused(Fraction(42), 10 * DAY, 31 * DAY, 24 * DAY) == 14
    assert fees.unused(Fraction(42), 10 * DAY, 31 * DAY, 31 * DAY) == 0


def test_a_subscription_is_cut_at_its_changes_and_its_versions() -> None:
    case = oracle.reading.read_case(
        {
            "account": {"currency": "USD", "minor_unit": "0.01"},
            "periods": ["2026-10"],
            "plan": {
                "a": [{"version": "v1", "charges": []}, {"version": "v2", "from": "2026-10-05", "charges": []}],
                "b": [{"version": "v1", "charges": []}],
            },
            "subscription": [
                {"at": "2026-09-01", "plan": "a"},
                {"at": "2026-10-11", "plan": "b"},
                {"at": "2026-10-21", "cancel": True},
            ],
        }
    )
    october = case.periods[0]
    segments = segments_in(october, case.changes)
    days = [(s.pair, (s.start - october.start) // DAY, (s.end - october.start) // DAY) for s in stretches_in(segments)]
    assert days == [((1, 0), 0, 4), ((1, 1), 4, 10), ((2, 0), 10, 20)]
    assert [segment.begins for segment in segments] == [False, True]


def test_a_field_that_nobody_reads_is_refused_with_its_path() -> None:
    case = {**golden.cases()[0]}
    charge = {**case["plan"]["p"][0]["charges"][0], "prorate": False}
    case["plan"] = {"p": [{"version": "v1", "charges": [charge]}]}
    with pytest.raises(oracle.CaseError, match=r"plan\.p\.v1\.cached: unknown field prorate"):
        oracle.rate(case)


def test_the_period_of_a_day_contains_its_start_and_not_its_end() -> None:
    day = Period(0, DAY)
    assert (0 in day, DAY - 1 in day, DAY in day) == (True, True, False)


def test_models_cost_nothing_without_usage() -> None:
    assert pieces([]) == []


def test_a_percentage_is_held_between_its_limits_also_at_base_zero() -> None:
    case = oracle.reading.read_case(next(case for case in golden.cases() if case["id"] == "P07"))
    charge = case.changes[0].plan.versions[0].charges["pct"]  # type: ignore[union-attr]
    assert [of_event(charge, Fraction(base)) for base in (0, 10, 1000)] == [Fraction("0.5"), Fraction("0.59"), 10]
