"""Fees in advance, moment by moment: what a period comes to when it changes in its midst."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from billing.money import ZERO, total
from billing.periods import parse_period
from billing.plans.charge_models import Flat, Seat, Timing
from billing.plans.price_plans import Charge, Discount, Filters
from billing.plans.subscriptions import Subscription, pieces
from billing.rating.advance import advance_bills
from tests.billing_builders import subscription, version

SEPTEMBER = parse_period("2026-09")
AMOUNT = Discount(amount=Decimal(10))
SHARE = Discount(percent=Decimal("0.1"))


def day(number: int) -> datetime:
    return datetime(2026, 9, number, tzinfo=UTC)


def bills(
    discount: Discount, *parts: Subscription, fee: str = "100", later: Discount | None = None
) -> list[list[tuple[str, Decimal]]]:
    """`later`: the discount of a version that begins in the middle of the month."""
    base = Charge("base", None, Filters(), Flat(Decimal(fee)), timing=Timing.ADVANCE, discount=discount)
    seats = Charge("seats", None, Filters(), Seat(Decimal(30)), timing=Timing.ADVANCE)
    versions = [version(base, seats)]
    if later is not None:
        versions.append(version(replace(base, discount=later), seats, name="v2", valid_from=day(16)))
    cut = pieces(parts, {"p": versions}, SEPTEMBER)
    found = advance_bills(cut, SEPTEMBER, lambda line, at: ZERO)
    return [
        [(line.identity.kind, line.amount) for line in each.lines if line.identity.charge_key == "base"]
        for each in found
    ]


def seated(*changes: tuple[int, int]) -> list[Subscription]:
    """One subscription whose seats change on days of September."""
    found: list[Subscription] = []
    for number, (since, seats) in enumerate(changes):
        until = day(changes[number + 1][0]) if number + 1 < len(changes) else None
        found.append(subscription(starts_at=day(since), ends_at=until, seats=seats))
    return found


def comes_to(found: list[list[tuple[str, Decimal]]]) -> Decimal:
    return total(amount for each in found for _, amount in each)


@pytest.mark.parametrize("discount", [AMOUNT, SHARE])
def test_a_discount_is_given_once_a_period_however_often_its_fees_are_billed_anew(discount: Discount) -> None:
    once = bills(discount, *seated((1, 1), (16, 2)))
    assert once[0] == [("fee", Decimal(100)), ("discount", Decimal(-10))]
    assert once[1] == [("unused", Decimal(-45)), ("fee", Decimal(50)), ("discount", Decimal(-5))]
    assert comes_to(once) == 90
    assert comes_to(bills(discount, *seated((1, 1), (7, 2), (16, 5), (22, 1)))) == 90


def test_what_a_fee_was_too_small_for_is_left_for_the_fee_after_it() -> None:
    assert comes_to(bills(AMOUNT, *seated((1, 1), (16, 2)), fee="8")) == 0
    assert bills(AMOUNT, *seated((16, 1)))[0] == [("fee", Decimal(50)), ("discount", Decimal(-10))]


def test_a_discount_that_was_used_is_not_given_again_to_who_comes_back() -> None:
    away = [replace(each, ends_at=each.ends_at or day(22)) for each in seated((1, 1))]
    again = bills(AMOUNT, *away, *seated((25, 1)))
    assert [kind for kind, _ in again[1]] == ["unused"]
    assert comes_to(again) == Decimal(100) * 27 / 30 - 10


def test_a_share_takes_nothing_of_the_amount_that_a_later_version_gives() -> None:
    changed = bills(SHARE, *seated((1, 1)), later=AMOUNT)
    assert changed[1] == [("unused", Decimal(-45)), ("fee", Decimal(50)), ("discount", Decimal(-10))]
    back = bills(AMOUNT, *seated((1, 1)), later=SHARE)
    assert back[1] == [("unused", Decimal(-45)), ("fee", Decimal(50)), ("discount", Decimal(-5))]
