"""Rounding, spreading and reading of amounts."""

from __future__ import annotations

from datetime import date
from decimal import Decimal, Inexact, localcontext
from fractions import Fraction

import pytest

from billing.errors import NotAnAmount, UnknownCurrency
from billing.money import (
    Rounding,
    currency,
    decimals_of,
    exactly,
    from_minor,
    parse_decimal,
    plain,
    quantise_line,
    round_to_quantum,
    spread,
    to_minor,
    to_stripe,
    total,
)

ON = date(2026, 10, 31)
CENT = Decimal("0.01")


@pytest.mark.parametrize(
    ("amount", "even", "up"),
    [
        ("2.125", "2.12", "2.13"),
        ("2.135", "2.14", "2.14"),
        ("-2.125", "-2.12", "-2.13"),
        ("0.005", "0.00", "0.01"),
        ("-0.005", "0.00", "-0.01"),
        ("2.1250000000001", "2.13", "2.13"),
        ("99999999999999999999999999.995", "99999999999999999999999999.995", ""),
    ],
)
def test_a_half_goes_to_the_even_cent_or_away_from_zero(amount: str, even: str, up: str) -> None:
    if not up:
        even, up = "100000000000000000000000000.00", "100000000000000000000000000.00"
    assert round_to_quantum(Decimal(amount), CENT) == Decimal(even)
    assert round_to_quantum(Decimal(amount), CENT, Rounding.HALF_UP) == Decimal(up)


def test_a_line_is_quantised_to_twelve_decimals_half_even() -> None:
    for quantity in (20000000003, 20000000005):
        assert quantise_line(quantity * Fraction("0.0000000000005")) == Decimal("0.010000000002")
        assert quantise_line(quantity * Decimal("0.0000000000005")) == Decimal("0.010000000002")
    assert quantise_line(Fraction(1, 3)) == Decimal("0.333333333333")
    assert quantise_line(Fraction(-5, 2 * 10**12)) == Decimal("-0.000000000002")


def test_a_product_longer_than_pythons_default_28_digits_keeps_every_digit() -> None:
    quantity, price = Decimal(9223372036854775807), Decimal("123456.123456789012")
    exact = Fraction(quantity) * Fraction(price)
    assert Fraction(quantise_line(exact)) == exact
    with localcontext() as context:
        context.traps[Inexact] = False
        assert Fraction(quantity * price) != exact, "the default context would have lost digits"


def test_sums_keep_every_digit_and_an_inexact_operation_is_an_error() -> None:
    amounts = [Decimal("90000000000000000000.000000000001"), Decimal("0.000000000002")]
    assert total(amounts) == Decimal("90000000000000000000.000000000003")
    with exactly(), pytest.raises(Inexact):
        Decimal(1) / Decimal(3)


@pytest.mark.parametrize(
    "value", [0.1, True, None, "NaN", "Infinity", "-Infinity", "", "1,5", "1e500", "0.0000000000001"]
)
def test_only_exact_finite_decimals_are_amounts(value: object) -> None:
    with pytest.raises(NotAnAmount):
        parse_decimal(value, decimals=12)  # type: ignore[arg-type]


def test_trailing_zeros_do_not_count_as_decimals() -> None:
    assert decimals_of(Decimal("1.5000")) == 1
    assert decimals_of(Decimal("1E+3")) == 0
    assert decimals_of(Decimal("0.000")) == 0
    assert parse_decimal("1.50000000000000000000", decimals=2) == Decimal("1.5")


@pytest.mark.parametrize(
    ("number", "text"), [("1E+3", "1000"), ("0E-12", "0"), ("-0.0", "0"), ("1.500", "1.5"), ("1E-12", "0.000000000001")]
)
def test_numbers_are_written_plainly(number: str, text: str) -> None:
    assert plain(Decimal(number)) == text


def spread_cents(rounded_total: str, **exact: str) -> dict[str, str]:
    shares = spread(Decimal(rounded_total), {key: Decimal(amount) for key, amount in exact.items()}, CENT)
    return {key: str(amount) for key, amount in shares.items()}


def test_missing_cents_go_to_the_largest_fractions_and_ties_to_the_first_key() -> None:
    # 0.105 × 3 + 0.04 − 0.004 = 0.351: floors 10 + 10 + 10 + 4 − 1 = 33 of 35; −0.4 has fraction .6, then a (tie .5).
    assert spread_cents("0.35", a="0.105", b="0.105", c="0.105", d="0.04", e="-0.004") == {
        "a": "0.11", "b": "0.10", "c": "0.10", "d": "0.04", "e": "0.00",
    }  # fmt: skip


def test_ties_are_broken_by_bytes_not_by_alphabet() -> None:
    assert spread_cents("0.01", b="0.005", Z="0.005", é="0") == {"b": "0.00", "Z": "0.01", "é": "0.00"}
    assert spread(CENT, {"é": Decimal("0.005"), "z": Decimal("0.005")}, CENT)["z"] == CENT


@pytest.mark.parametrize("wrong", ["0.09", "0.13", "0.115"])
def test_a_total_that_is_not_the_lines_sum_rounded_is_refused(wrong: str) -> None:
    with pytest.raises(NotAnAmount):
        spread(Decimal(wrong), {"a": Decimal("0.105"), "b": Decimal("0.011")}, CENT)


def test_each_currency_has_its_minor_unit_and_stripe_its_own_integers() -> None:
    usd, yen, dinar, krona = (currency(code, ON) for code in ("USD", "JPY", "KWD", "ISK"))
    assert to_minor(Decimal("12.35"), usd) == 1235
    assert to_minor(Decimal("1235"), yen) == 1235
    assert to_minor(Decimal("12.350"), dinar) == 12350
    assert (to_minor(Decimal(7), krona), to_stripe(7, krona)) == (7, 700)
    assert from_minor(12350, dinar) == Decimal("12.350")
    with pytest.raises(NotAnAmount):
        to_minor(Decimal("12.345"), dinar)
    with pytest.raises(UnknownCurrency, match="XXX"):
        currency("XXX", ON)
    with pytest.raises(UnknownCurrency):
        currency("USD", date(1990, 1, 1))
