"""Line amounts and settlement, against a naive oracle in fractions."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devstack.stripe_twin.rules.invoice_arithmetic import BalanceMove, line_amount, settle

units = st.decimals(min_value=-99_999_999, max_value=99_999_999, places=12, allow_nan=False, allow_infinity=False)
quantities = st.decimals(min_value=0, max_value=10**12, places=12, allow_nan=False, allow_infinity=False)
totals = st.integers(-200_000_000, 200_000_000)


@given(units, quantities)
def test_a_line_is_the_nearest_integer_to_the_exact_product(unit: Decimal, quantity: Decimal) -> None:
    exact = Fraction(unit) * Fraction(quantity)
    distance = abs(line_amount(unit, quantity) - exact)
    assert distance <= Fraction(1, 2)
    if distance == Fraction(1, 2):
        assert abs(line_amount(unit, quantity)) > abs(exact)


@pytest.mark.parametrize(
    ("unit", "quantity", "amount"),
    [("0.5", "1", 1), ("-0.5", "1", -1), ("1.5", "1", 2), ("2.5", "1", 3), ("0.15", "1000000", 150000), ("7", "0", 0)],
)
def test_halves_go_away_from_zero(unit: str, quantity: str, amount: int) -> None:
    assert line_amount(Decimal(unit), Decimal(quantity)) == amount


@given(totals, totals, st.integers(0, 20_000), st.integers(20_001, 99_999_999))
def test_finalizing_neither_makes_nor_loses_money(total: int, balance: int, minimum: int, maximum: int) -> None:
    settled = settle(total, balance, minimum, maximum)
    assert settled.amount_due + settled.ending_balance == total + balance
    assert balance + sum(amount for _, amount in settled.moves) == settled.ending_balance
    assert settled.amount_due == 0 or minimum <= settled.amount_due <= maximum
    assert settled.is_paid == (settled.amount_due == 0)
    assert settled.amount_due == 0 or settled.ending_balance == 0
    assert all(amount != 0 for _, amount in settled.moves)


@pytest.mark.parametrize(
    ("total", "balance", "due", "ending", "moves"),
    [
        (1000, 0, 1000, 0, ()),
        (0, 0, 0, 0, ()),
        (49, 0, 0, 49, ((BalanceMove.TOO_SMALL, 49),)),
        (50, 0, 50, 0, ()),
        (30, 20, 50, 0, ((BalanceMove.APPLIED, -20),)),
        (-300, 0, 0, -300, ((BalanceMove.APPLIED, -300),)),
        (1000, -400, 600, 0, ((BalanceMove.APPLIED, 400),)),
        (1000, -1000, 0, 0, ((BalanceMove.APPLIED, 1000),)),
        (1000, -980, 0, 20, ((BalanceMove.APPLIED, 980), (BalanceMove.TOO_SMALL, 20))),
        (1000, -5000, 0, -4000, ((BalanceMove.APPLIED, 1000),)),
        (0, -5000, 0, -5000, ()),
        (0, 700, 700, 0, ((BalanceMove.APPLIED, -700),)),
        (100_000_000, 0, 0, 100_000_000, ((BalanceMove.TOO_LARGE, 100_000_000),)),
    ],
)
def test_settlement(
    total: int, balance: int, due: int, ending: int, moves: tuple[tuple[BalanceMove, int], ...]
) -> None:
    settled = settle(total, balance, minimum=50, maximum=99_999_999)
    assert (settled.amount_due, settled.ending_balance, settled.moves) == (due, ending, moves)
