"""Money: the one module that rounds (docs/spec/money.md 3, 5 and 13.14).

Amounts are `Decimal` in major units. Nothing here or elsewhere in billing uses float, and no arithmetic relies on
Python's default context, which would round silently at 28 digits: compute inside `with exactly():`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from decimal import (
    ROUND_FLOOR,
    ROUND_HALF_EVEN,
    ROUND_HALF_UP,
    Context,
    Decimal,
    DivisionByZero,
    FloatOperation,
    Inexact,
    InvalidOperation,
    Overflow,
    Underflow,
    localcontext,
)
from enum import StrEnum
from fractions import Fraction
from typing import Final

from billing.errors import NotAnAmount, UnknownCurrency

LINE_DECIMALS: Final = 12
PRICE_DECIMALS: Final = 18
LINE_STEP: Final = Decimal(1).scaleb(-LINE_DECIMALS)
ZERO: Final = Decimal(0)
_HALF: Final = Fraction(1, 2)

# 60 digits hold the product of any quantity (19 digits) and price (12 + 18) with room to add up lines.
_TRAPS: Final = [InvalidOperation, DivisionByZero, Overflow, Underflow, FloatOperation]
_EXACT: Final = Context(prec=60, rounding=ROUND_HALF_EVEN, traps=[*_TRAPS, Inexact])
_ROUNDING: Final = Context(prec=60, rounding=ROUND_HALF_EVEN, traps=_TRAPS)


class Rounding(StrEnum):
    """How a half is rounded. Half-up means away from zero (docs/spec/money.md 13.17)."""

    HALF_EVEN = "half_even"
    HALF_UP = "half_up"


@dataclass(frozen=True, slots=True)
class Currency:
    """A currency as of some date.

    `minor_unit` is what minor amounts count (0.01 for USD). `quantum` is the smallest step of a rounded amount.
    Stripe's integer is the minor amount × `stripe_factor`. `stripe_minimum` (minor units) is the least Stripe
    charges: https://docs.stripe.com/currencies#minimum-and-maximum-charge-amounts. Where none is published Stripe goes
    by that of the currency it settles in, at the day's rate: the amount here is above any of those (some 1 USD, the
    highest being near 0.65), since a smaller invoice would be marked paid there and become a customer's balance.
    """

    code: str
    since: date
    minor_unit: Decimal
    quantum: Decimal
    stripe_factor: int
    stripe_minimum: int


def _row(code: str, minimum: int, minor: str = "0.01", quantum: str = "", factor: int = 1) -> Currency:
    return Currency(code, date(2020, 1, 1), Decimal(minor), Decimal(quantum or minor), factor, minimum)


# Dated: a change of a currency is a further row with its date.
CURRENCIES: Final = (
    _row("AUD", 50), _row("CAD", 50), _row("CHF", 50), _row("DKK", 250), _row("EUR", 50), _row("GBP", 30),
    _row("INR", 50), _row("NOK", 300), _row("NZD", 50), _row("PLN", 200), _row("SEK", 300), _row("SGD", 50),
    _row("USD", 50),
    _row("JPY", 50, "1"), _row("KRW", 1500, "1"), _row("VND", 30000, "1"),
    # Three decimals, of which Stripe wants the last to be 0.
    _row("BHD", 400, "0.001", "0.010"), _row("JOD", 800, "0.001", "0.010"), _row("KWD", 400, "0.001", "0.010"),
    _row("OMR", 400, "0.001", "0.010"), _row("TND", 3500, "0.001", "0.010"),
    # No minor unit, but Stripe counts hundredths.
    _row("ISK", 150, "1", factor=100), _row("UGX", 4000, "1", factor=100),
)  # fmt: skip


def currency(code: str, on: date) -> Currency:
    """The currency as it is on a day. Raises UnknownCurrency."""
    rows = [row for row in CURRENCIES if row.code == code and row.since <= on]
    if not rows:
        known = ", ".join(sorted({row.code for row in CURRENCIES}))
        raise UnknownCurrency(f"{code!r} is no currency known on {on}: {known}")
    return max(rows, key=lambda row: row.since)


def exactly() -> AbstractContextManager[Context]:
    """A context in which an operation that would lose a digit raises `decimal.Inexact`, and a float is refused."""
    return localcontext(_EXACT)


def parse_decimal(value: str | int | Decimal, *, decimals: int) -> Decimal:
    """An exact number with at most so many decimals. Raises NotAnAmount; a float is never accepted."""
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise NotAnAmount(f"{value!r} is a {type(value).__name__}: give an exact decimal number")
    try:
        number = Decimal(value, _EXACT)
    except InvalidOperation:
        raise NotAnAmount(f"{value!r} is no decimal number") from None
    if not number.is_finite():
        raise NotAnAmount(f"{value!r} is no finite number")
    if decimals_of(number) > decimals:
        raise NotAnAmount(f"{value} has more than {decimals} decimals")
    if number.adjusted() > 17:
        raise NotAnAmount(f"{value} has more than 18 digits before the point")
    return number


def decimals_of(number: Decimal) -> int:
    """How many decimals a finite number has, trailing zeros not counted."""
    if not number:
        return 0
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int), "finite"
    zeros = len(digits) - len("".join(map(str, digits)).rstrip("0"))
    return max(0, -exponent - zeros)


def plain(number: Decimal) -> str:
    """The number as people write it: no exponent, no trailing zeros, no minus before zero."""
    text = format(number, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def total(amounts: Iterable[Decimal]) -> Decimal:
    """The exact sum."""
    with exactly():
        return sum(amounts, ZERO)


def quantise_line(amount: Decimal | Fraction) -> Decimal:
    """An exact amount at 10⁻¹², half-even: the one named point of docs/spec/money.md 3."""
    if isinstance(amount, Fraction):
        return Decimal(round(amount * 10**LINE_DECIMALS)).scaleb(-LINE_DECIMALS, _EXACT)
    return amount.quantize(LINE_STEP, ROUND_HALF_EVEN, _ROUNDING)


def quantise_pieces(amounts: Iterable[Fraction]) -> list[Decimal]:
    """Pieces of one whole at 10⁻¹² so that they add up: each is round(Σ up to it) − round(Σ before it), half-even.

    The sum is kept as whole steps of 10⁻¹² and a rest in [0, 1) of one, which most prices never have.
    """
    found, steps, before, rest = [], 0, 0, Fraction(0)
    for amount in amounts:
        whole, over = divmod(amount.numerator * 10**LINE_DECIMALS, amount.denominator)
        steps += whole
        if over:
            rest += Fraction(over, amount.denominator)
            if rest >= 1:
                steps, rest = steps + 1, rest - 1
        after = steps
        if rest and (rest > _HALF or (rest == _HALF and steps % 2)):
            after += 1
        found.append(Decimal(after - before).scaleb(-LINE_DECIMALS, _EXACT))
        before = after
    return found


def decimal_of(number: Fraction) -> Decimal:
    """The number exactly where it ends as a decimal of up to 30 digits, else half-even at 10⁻¹²."""
    numerator, denominator = number.numerator, number.denominator
    if denominator == 1:
        return Decimal(numerator)
    scale = 10**30
    if scale % denominator == 0:
        return Decimal(numerator * (scale // denominator)).scaleb(-30, _EXACT).normalize(_EXACT)
    return quantise_line(number)


def round_to_quantum(amount: Decimal, quantum: Decimal, rounding: Rounding = Rounding.HALF_EVEN) -> Decimal:
    """The nearest multiple of the quantum (a power of ten); a half goes as `rounding` says (docs/spec/money.md 5)."""
    mode = ROUND_HALF_UP if rounding is Rounding.HALF_UP else ROUND_HALF_EVEN
    return amount.quantize(_power_of_ten(quantum), mode, _ROUNDING)


def whole_quanta(amount: Decimal, quantum: Decimal) -> Decimal:
    """The amount without what is less than a quantum, toward −∞."""
    return amount.quantize(_power_of_ten(quantum), ROUND_FLOOR, _ROUNDING)


def round_fraction(amount: Fraction, quantum: Decimal, rounding: Rounding) -> Decimal:
    """The nearest multiple of the quantum to a number that may not end as a decimal (docs/spec/money.md 5)."""
    step = _power_of_ten(quantum)
    quanta = amount / Fraction(step)
    if rounding is Rounding.HALF_UP:
        whole = (2 * abs(quanta.numerator) + quanta.denominator) // (2 * quanta.denominator)
        whole = -whole if quanta < 0 else whole
    else:
        whole = round(quanta)
    with exactly():
        return Decimal(whole) * step


def spread(rounded_total: Decimal, exact: Mapping[str, Decimal], quantum: Decimal) -> dict[str, Decimal]:
    """Spread a rounded total over its lines by largest remainder (docs/spec/money.md 5).

    Each line gets its floor (toward −∞); the quanta still missing go to the largest fractions, ties to the key
    that comes first bytewise. The result sums to the total, and no line is a whole quantum away from exact.
    `rounded_total` must be the sum of the lines rounded to the quantum, a half either way.
    """
    step = _power_of_ten(quantum)
    with exactly():
        floors = {key: amount.quantize(step, ROUND_FLOOR, _ROUNDING) for key, amount in exact.items()}
        fractions = {key: amount - floors[key] for key, amount in exact.items()}
        residue = sum(exact.values(), ZERO) - rounded_total
        missing = (rounded_total - sum(floors.values(), ZERO)) / step
        if missing != int(missing) or abs(residue) * 2 > step:
            raise NotAnAmount(f"{rounded_total} is not the rounded sum of these {len(exact)} lines")
    order = sorted(exact, key=lambda key: (-fractions[key], key.encode()))
    raised = set(order[: int(missing)])
    with exactly():
        return {key: floors[key] + step if key in raised else floors[key] for key in exact}


def to_minor(amount: Decimal, of: Currency) -> int:
    """A rounded amount in minor units. Raises NotAnAmount if it is no whole number of quanta."""
    with exactly():
        quanta = amount.quantize(_power_of_ten(of.quantum), ROUND_FLOOR, _ROUNDING)
        if quanta != amount:
            raise NotAnAmount(f"{plain(amount)} {of.code} is no multiple of {of.quantum}")
        return int(amount / of.minor_unit)


def from_minor(minor: int, of: Currency) -> Decimal:
    """An amount in major units from minor units."""
    with exactly():
        return Decimal(minor) * of.minor_unit


def to_stripe(minor: int, of: Currency) -> int:
    """The integer that Stripe wants for an amount in minor units."""
    return minor * of.stripe_factor


def _power_of_ten(quantum: Decimal) -> Decimal:
    step = quantum.normalize(_EXACT)
    if step.as_tuple().digits != (1,):
        raise NotAnAmount(f"a quantum is a power of ten, not {quantum}")
    return step
