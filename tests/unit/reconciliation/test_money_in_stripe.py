"""Each balance transaction of Stripe's is in the ledger once, with what it changed Stripe's balance by."""

from __future__ import annotations

from reconciliation.comparison import Difference
from reconciliation.stripe_agreement import money_in_stripe

LISTED = {"txn_1": 1912, "txn_2": -500, "txn_3": 0}


def test_what_is_booked_as_stripe_has_it_agrees() -> None:
    check = money_in_stripe(LISTED, dict(LISTED))
    assert (check.agrees, check.compared) == (True, 3)


def test_what_waits_what_stripe_does_not_have_and_other_amounts_are_differences() -> None:
    check = money_in_stripe(LISTED, {"txn_1": 3824, "txn_3": 0, "txn_9": 7})
    assert check.differences == (
        Difference("txn_1", 1912, 3824),
        Difference("txn_2", -500, None),
        Difference("txn_9", None, 7),
    )
