"""Balance transactions as journal entries: what moved, what Stripe kept, and where the other side goes."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from billing.ledger.journal import AccountCode as Code
from billing.ledger.journal import Posting
from billing.posting.posting_rules import Booking
from billing.posting.stripe_money import BalanceTransaction, dispute_lost, money_moved

AT = datetime(2026, 11, 3, tzinfo=UTC)
BOOKING = Booking("stripe:txn_1", "default", "2026-11", AT)


def moved(category: str, amount: int, fee: int = 0, **changed: object) -> BalanceTransaction:
    values: dict[str, object] = {"currency": "USD", "created_at": AT, "source_id": "x_1"}
    return BalanceTransaction("txn_1", category, amount=amount, fee=fee, net=amount - fee, **(values | changed))  # type: ignore[arg-type]


def legs(transaction: BalanceTransaction, account: str | None = "acme") -> dict[tuple[Code, str, str], Decimal]:
    entry = money_moved(transaction, account, booking=BOOKING)
    assert entry is not None
    return {(p.account, p.currency, p.subledger): p.amount for p in entry.postings}


@pytest.mark.parametrize(
    ("transaction", "other", "subledger"),
    [
        (moved("charge", 2000, 88), Code.ACCOUNTS_RECEIVABLE, "acme"),
        (moved("refund", -500), Code.REFUNDS, ""),
        (moved("refund", -500, metadata={"credit_note": "CN-1"}), Code.CUSTOMER_CREDIT_BALANCE, "acme"),
        (moved("refund", -500, metadata={"credit": "g1"}), Code.REFUNDS_PAYABLE, ""),
        (moved("refund_failure", 500), Code.REFUNDS, ""),
        (moved("dispute", -2000, 1500), Code.DISPUTE_RECEIVABLE, "acme"),
        (moved("dispute_reversal", 2000), Code.DISPUTE_RECEIVABLE, "acme"),
        (moved("payout", -9000), Code.BANK, ""),
        (moved("payout_reversal", 9000), Code.BANK, ""),
        (moved("fee", -210), Code.STRIPE_FEES, ""),
        (moved("something_new", 77), Code.SUSPENSE, ""),
    ],
    ids=lambda value: getattr(value, "category", ""),
)
def test_each_category_has_its_other_side(transaction: BalanceTransaction, other: Code, subledger: str) -> None:
    found = legs(transaction)
    assert found.pop((Code.STRIPE_BALANCE_CLEARING, "USD", "")) * 100 == transaction.net
    assert found.pop((other, "USD", subledger)) * 100 == -transaction.amount
    fees = Code.DISPUTE_FEES if transaction.category.startswith("dispute") else Code.STRIPE_FEES
    assert found == ({(fees, "USD", ""): Decimal(transaction.fee) / 100} if transaction.fee else {})


def test_a_payer_that_nobody_knows_is_in_suspense() -> None:
    assert legs(moved("charge", 2000), None)[Code.SUSPENSE, "USD", ""] == -20


def test_a_payment_in_another_currency_goes_through_exchange_at_stripes_rate() -> None:
    found = legs(moved("charge", 2160, 93, paid=(2000, "EUR")))
    assert found == {
        (Code.STRIPE_BALANCE_CLEARING, "USD", ""): Decimal("20.67"),
        (Code.STRIPE_FEES, "USD", ""): Decimal("0.93"),
        (Code.FX_CLEARING, "USD", ""): Decimal("-21.60"),
        (Code.FX_CLEARING, "EUR", ""): Decimal("20.00"),
        (Code.ACCOUNTS_RECEIVABLE, "EUR", "acme"): Decimal("-20.00"),
    }


def test_a_payment_in_a_currency_that_we_do_not_know_is_in_suspense_as_it_was_settled() -> None:
    for each in (moved("charge", 2160, paid=(780_000, "HUF")), moved("dispute", 2160, paid=(780_000, "HUF"))):
        assert legs(each) == {
            (Code.STRIPE_BALANCE_CLEARING, "USD", ""): Decimal("21.60"), (Code.SUSPENSE, "USD", ""): Decimal("-21.60"),
        }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "amount", "major"), [("JPY", 2000, "2000"), ("KWD", 20010, "20.010"), ("ISK", 200_000, "2000")]
)
def test_stripes_integers_are_read_as_it_writes_them(code: str, amount: int, major: str) -> None:
    found = legs(moved("charge", amount, currency=code))
    assert found[Code.ACCOUNTS_RECEIVABLE, code, "acme"] == -Decimal(major)


def test_nothing_moved_is_no_entry() -> None:
    assert money_moved(moved("charge", 0), "acme", booking=BOOKING) is None


def test_a_lost_dispute_is_an_expense() -> None:
    withdrawn = [Posting(Code.DISPUTE_RECEIVABLE, "USD", Decimal(20), "acme")]
    entry = dispute_lost("du_1", withdrawn, booking=BOOKING)
    assert [(p.account, p.amount) for p in entry.postings] == [(Code.DISPUTES_LOST, 20), (Code.DISPUTE_RECEIVABLE, -20)]
