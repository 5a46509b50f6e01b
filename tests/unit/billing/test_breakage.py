"""What of a paid credit is recognised before it expires, where an entity estimates it."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from billing.bills.breakage import BreakageEstimate, expected_breakage, share_at

MONTHS = [datetime(2026, month, 1, tzinfo=UTC) for month in (1, 2, 3)]


def test_it_goes_with_what_is_used_of_what_is_expected_to_be_used() -> None:
    # Gift cards of 5,000, a tenth never used: when 2,250 are, which is half of the 4,500 that will be, half of the 500.
    tenth = Decimal("0.1")
    assert expected_breakage(drawn=Decimal(2250), left=Decimal(2750), share=tenth) == 250
    assert expected_breakage(drawn=Decimal(4500), left=Decimal(500), share=tenth) == 500
    # More is used than was expected: never more than is left.
    assert expected_breakage(drawn=Decimal(4900), left=Decimal(100), share=tenth) == 100
    assert expected_breakage(drawn=Decimal(5000), left=Decimal(0), share=tenth) == 0
    assert expected_breakage(drawn=Decimal(0), left=Decimal(5000), share=tenth) == 0
    assert expected_breakage(drawn=Decimal(1), left=Decimal(4), share=Decimal("0.4")) == Decimal("0.666666666667")


@given(
    amount=st.integers(1, 10**9),
    drawn=st.tuples(st.fractions(0, 1), st.fractions(0, 1)).map(sorted),
    share=st.decimals("0.01", "0.99", places=2),
)
def test_more_use_recognises_more_until_what_was_expected_is_used_and_never_more_than_is_left(
    amount: int, drawn: list[Decimal], share: Decimal
) -> None:
    less, more = (Decimal(int(part * amount)) for part in drawn)
    found = [expected_breakage(drawn=each, left=amount - each, share=share) for each in (less, more)]
    assert all(0 <= each <= amount - used for each, used in zip(found, (less, more), strict=True))
    if more <= amount * (1 - share):
        assert found[0] <= found[1]


def test_the_last_estimate_that_was_recorded_of_the_latest_moment_holds_for_its_own_entity() -> None:
    estimates = [
        BreakageEstimate("default", Decimal("0.1"), MONTHS[0], "a"),
        BreakageEstimate("default", Decimal("0.3"), MONTHS[1], "b"),
        BreakageEstimate("default", None, MONTHS[2], "c"),
        BreakageEstimate("eu", Decimal("0.5"), MONTHS[0], "d"),
        BreakageEstimate("default", Decimal("0.2"), MONTHS[1], "corrects b"),
    ]
    assert [share_at(estimates, "default", at) for at in MONTHS] == [Decimal("0.1"), Decimal("0.2"), None]
    assert share_at(estimates, "us", MONTHS[2]) is None
    assert share_at(estimates, "eu", datetime(2025, 12, 31, tzinfo=UTC)) is None
