"""Limits of amounts per currency."""

from __future__ import annotations

import pytest

from devstack.stripe_twin.errors import StripeError
from devstack.stripe_twin.rules.currencies import check_amount, check_currency, maximum_charge, minimum_charge


@pytest.mark.parametrize(
    ("amount", "currency"),
    [(99_999_999, "usd"), (-99_999_999, "usd"), (999_999_999_999, "idr"), (1230, "kwd"), (500, "isk"), (7, "jpy")],
)
def test_amounts_that_stripe_takes(amount: int, currency: str) -> None:
    assert check_amount(amount, currency, "amount") == amount


@pytest.mark.parametrize(
    ("amount", "currency", "code"),
    [
        (100_000_000, "usd", "amount_too_large"),
        (-100_000_000, "usd", "amount_too_large"),
        (1234, "kwd", None),
        (550, "ugx", None),
    ],
)
def test_amounts_that_stripe_refuses(amount: int, currency: str, code: str | None) -> None:
    with pytest.raises(StripeError) as caught:
        check_amount(amount, currency, "amount")
    assert (caught.value.code, caught.value.param) == (code, "amount")


def test_currencies() -> None:
    assert check_currency("USD") == "usd"
    with pytest.raises(StripeError, match="Invalid currency: xxx"):
        check_currency("xxx")
    assert (minimum_charge("usd"), minimum_charge("gbp"), minimum_charge("krw")) == (50, 30, 1)
    assert maximum_charge("usd") == 99_999_999
