"""How many top-ups are due."""

from __future__ import annotations

from decimal import Decimal

import pytest

from billing.bills.top_ups import TopUpRule, top_ups_due
from tests.billing_builders import SINCE

RULE = TopUpRule("acme", "USD", Decimal(20), Decimal(50), Decimal(200), SINCE)


@pytest.mark.parametrize(
    ("left", "bought", "due"),
    [
        ("20", "0", 0),  # not below
        ("19.999999999999", "0", 1),
        ("-30", "0", 1),  # -30 + 50 = 20, which is not below
        ("-30.01", "0", 2),
        ("-500", "0", 4),  # the limit of 200
        ("-500", "100", 2),
        ("-500", "160", 0),  # another 50 would be beyond the limit
        ("0", "200", 0),
    ],
)
def test_as_many_top_ups_are_due_as_reach_the_bound_within_the_months_limit(left: str, bought: str, due: int) -> None:
    assert top_ups_due(RULE, left=Decimal(left), bought=Decimal(bought)) == due
