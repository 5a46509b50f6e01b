"""Exact numbers, the few places where they are rounded, and how they are written (money.md 3, 5, 13.1, 13.17)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache

ZERO = Fraction(0)
ONE = Fraction(1)
TRILLION = 10**12
PRICE_SCALE = 18
"""Prices have at most 18 decimals (13.19), lines at most 12."""


@lru_cache(maxsize=65536, typed=True)
def exact(value: object) -> Fraction:
    """The number that an int, or a string of decimal digits, says; a float is refused: it is already rounded.

    Raises:
        TypeError: for a float, a bool, or anything that is not a number or its text.
        ValueError: for text that is no number.
    """
    if isinstance(value, (str, int, Fraction)) and not isinstance(value, bool):
        return Fraction(value)
    raise TypeError(f"not an exact number: {value!r}")


def half_even(number: Fraction) -> int:
    """The nearest integer; a half goes to the even one (5)."""
    whole, rest = divmod(number.numerator, number.denominator)
    twice = 2 * rest
    up = twice > number.denominator or (twice == number.denominator and whole % 2 == 1)
    return whole + 1 if up else whole


def half_up(number: Fraction) -> int:
    """The nearest integer; a half goes away from zero (13.17)."""
    size = abs(number)
    whole, rest = divmod(size.numerator, size.denominator)
    if 2 * rest >= size.denominator:
        whole += 1
    return whole if number >= 0 else -whole


def at_twelve(number: Fraction) -> Fraction:
    """The nearest multiple of 10⁻¹², half-even: the one named point where the exact amount is cut (3)."""
    if TRILLION % number.denominator == 0:
        return number
    return Fraction(half_even(number * TRILLION), TRILLION)


def pieces_that_add_up(amounts: Iterable[Fraction]) -> list[Fraction]:
    """Each amount at 10⁻¹², so that the first n of the result add up to the first n amounts, rounded once (3)."""
    result = []
    total = before = ZERO
    for amount in amounts:
        total += amount
        after = at_twelve(total)
        result.append(after - before)
        before = after
    return result


def largest_remainder(amounts: Sequence[tuple[str, Fraction]], whole: int) -> list[int]:
    """Integers that add up to `whole`, one per (line key, amount): floors, then one more for the largest remainders.

    Floors go toward −∞, so the remainder of a negative amount counts up from there; ties go to the smaller key,
    compared bytewise (5, 13.1). The result is in the order of `amounts`.
    """
    floors = [amount.numerator // amount.denominator for _, amount in amounts]
    missing = whole - sum(floors)
    if not 0 <= missing <= len(amounts):
        raise ValueError(f"{whole} is not the rounded sum of {[str(amount) for _, amount in amounts]}")
    order = sorted(range(len(amounts)), key=lambda i: (floors[i] - amounts[i][1], amounts[i][0].encode()))
    for i in order[:missing]:
        floors[i] += 1
    return floors


@lru_cache(maxsize=65536)
def written(number: Fraction) -> str:
    """The number as decimal digits without trailing zeros.

    Raises:
        ValueError: if it has more than 18 decimals.
    """
    scaled, rest = divmod(abs(number.numerator) * 10**PRICE_SCALE, number.denominator)
    if rest:
        raise ValueError(f"{number} has no end within {PRICE_SCALE} decimals")
    digits = str(scaled).rjust(PRICE_SCALE + 1, "0")
    text = f"{digits[:-PRICE_SCALE]}.{digits[-PRICE_SCALE:]}".rstrip("0").rstrip(".")
    return f"-{text}" if number < 0 else text


def counted(number: Fraction) -> int | str:
    """A quantity: an int where it is whole, else its decimals; thirds of a unit keep their fraction (13.13)."""
    if number.denominator == 1:
        return number.numerator
    try:
        return written(number)
    except ValueError:
        return str(number)
