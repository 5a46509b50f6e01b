"""Money that moved through Stripe, as journal entries: one for each balance transaction (docs/spec/money.md 9).

`amount` is what moved, `fee` what Stripe kept of it, `net` what its balance changed by: net = amount − fee. The other
side of `amount` follows from the reporting category (https://docs.stripe.com/reports/reporting-categories).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Final

from billing.errors import UnknownCurrency
from billing.ledger.journal import AccountCode, JournalEntry, Posting, Subledger
from billing.money import Currency, currency, exactly
from billing.posting.posting_rules import Booking

OTHER_SIDE: Final[Mapping[str, AccountCode]] = {
    "charge": AccountCode.ACCOUNTS_RECEIVABLE,
    "charge_failure": AccountCode.ACCOUNTS_RECEIVABLE,
    "partial_capture_reversal": AccountCode.ACCOUNTS_RECEIVABLE,
    "refund": AccountCode.REFUNDS,
    "refund_failure": AccountCode.REFUNDS,
    "dispute": AccountCode.DISPUTE_RECEIVABLE,
    "dispute_reversal": AccountCode.DISPUTE_RECEIVABLE,
    "payout": AccountCode.BANK,
    "payout_reversal": AccountCode.BANK,
    "topup": AccountCode.BANK,
    "topup_reversal": AccountCode.BANK,
    "fee": AccountCode.STRIPE_FEES,
    "tax": AccountCode.STRIPE_FEES,
    "unreconciled_customer_funds": AccountCode.CUSTOMER_CREDIT_BALANCE,
}
"""By reporting category; what is not here is unknown and goes to 1090, for a person to look at."""
DISPUTES: Final = ("dispute", "dispute_reversal")
PAYMENTS: Final = "payments"
"""The balance that `/v1/balance` shows as available and pending; reserves and what is prefunded are kept beside it."""
CREDIT_NOTE, CREDIT = "credit_note", "credit"
"""Metadata of a refund: it pays back what a credit note of ours took off, or what is left of a paid credit."""


@dataclass(frozen=True, slots=True)
class BalanceTransaction:
    """A balance transaction; amounts in Stripe's integers of `currency`, which is written as we write it.

    `paid` is what the payer's side moved, in its own currency, where it is another one: (amount, currency). `balance`:
    which of Stripe's balances changed.
    """

    transaction_id: str
    category: str
    currency: str
    amount: int
    fee: int
    net: int
    created_at: datetime
    source_id: str | None = None
    stripe_customer_id: str | None = None
    charge_id: str | None = None
    paid: tuple[int, str] | None = None
    balance: str = PAYMENTS
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CashMove:
    """What a customer's cash balance changed by, and came to, in Stripe's integers of `currency`."""

    move_id: str
    kind: str
    currency: str
    amount: int
    ending: int
    created_at: datetime


def cash_moved(moved: CashMove, billing_account: str, *, booking: Booking) -> JournalEntry | None:
    """Dr 1012 / Cr 2150 by what came in; the other way round by what went (docs/decisions/0029-cash-balances.md)."""
    amount = major(moved.amount, currency(moved.currency, booking.effective_at.date()))
    if not amount:
        return None
    return booking.entry(
        kind="stripe_cash_balance",
        postings=(
            Posting(AccountCode.STRIPE_CUSTOMER_CASH, moved.currency, amount, billing_account),
            Posting(AccountCode.CUSTOMER_CREDIT_BALANCE, moved.currency, -amount, billing_account),
        ),
        source={"cash_balance_transaction": moved.move_id, "type": moved.kind},
    )


def money_moved(moved: BalanceTransaction, billing_account: str | None, *, booking: Booking) -> JournalEntry | None:
    """Dr 1010 net · Dr 5100 (5110 for a dispute) fee · Cr the other side amount. None if nothing moved.

    What is owed by nobody that we know goes to 1090, and so does what was paid in a currency that we do not know. A
    payer's other currency goes through 1190, at Stripe's rate. Raises UnknownCurrency of what Stripe settled in.
    """
    on = booking.effective_at.date()
    money = currency(moved.currency, on)
    fees = AccountCode.DISPUTE_FEES if moved.category in DISPUTES else AccountCode.STRIPE_FEES
    paid = moved.paid if moved.paid is not None and moved.paid[1] != moved.currency else None
    payers = None if paid is None else _known(paid[1], on)
    other = _other_side(moved) if paid is None or payers else AccountCode.SUSPENSE
    subledger = ""
    if other.subledger is Subledger.BILLING_ACCOUNT:
        subledger = billing_account or ""
        other = other if billing_account else AccountCode.SUSPENSE
    legs = [
        (AccountCode.STRIPE_BALANCE_CLEARING, moved.currency, major(moved.net, money), ""),
        (fees, moved.currency, major(moved.fee, money), ""),
    ]
    if paid is None or payers is None:
        legs.append((other, moved.currency, major(-moved.amount, money), subledger))
    else:
        amount, code = paid
        theirs = major(amount, payers)
        legs += [
            (AccountCode.FX_CLEARING, moved.currency, major(-moved.amount, money), ""),
            (AccountCode.FX_CLEARING, code, theirs, ""),
            (other, code, -theirs, subledger),
        ]
    postings = tuple(Posting(code, unit, amount, sub) for code, unit, amount, sub in legs if amount)
    if not postings:
        return None
    return booking.entry(
        kind=f"stripe_{moved.category}",
        postings=postings,
        source={"balance_transaction": moved.transaction_id, "source": moved.source_id or ""},
    )


def opening_moved(moved: BalanceTransaction, opens_at: datetime, *, booking: Booking) -> JournalEntry | None:
    """What moved before an account's books here opened, whatever it was: Dr 1010 / Cr 1090 net, all under one name.

    docs/decisions/0066-what-was-in-stripe-before.md
    """
    net = major(moved.net, currency(moved.currency, booking.effective_at.date()))
    if not net:
        return None
    return booking.entry(
        kind="stripe_opening",
        postings=(
            Posting(AccountCode.STRIPE_BALANCE_CLEARING, moved.currency, net),
            Posting(AccountCode.SUSPENSE, moved.currency, -net),
        ),
        source={"balance_transaction": moved.transaction_id, "opening": f"opening_{opens_at:%Y%m%d}"},
    )


def dispute_lost(dispute_id: str, withdrawn: Sequence[Posting], *, booking: Booking) -> JournalEntry:
    """A dispute is lost, and what the bank withdrew stays away: Dr 4930 / Cr 1180 (1090 where the payer is not known).

    `withdrawn`: what the dispute has there by its balance transactions, which need not be what it is over.
    """
    return booking.entry(
        kind="dispute_lost",
        postings=(
            *(Posting(AccountCode.DISPUTES_LOST, p.currency, p.amount) for p in withdrawn),
            *(Posting(p.account, p.currency, -p.amount, p.subledger) for p in withdrawn),
        ),
        source={"dispute": dispute_id},
    )


def dispute_regained(lost: JournalEntry, lost_id: int, *, booking: Booking) -> JournalEntry:
    """A dispute that was lost is won after all: what it had taken back to 1180 comes from there once it is reinstated.

    `lost_id`: the id of the entry that booked the loss.
    """
    return booking.entry(
        kind="dispute_regained",
        postings=tuple(Posting(p.account, p.currency, -p.amount, p.subledger) for p in lost.postings),
        reverses=lost_id,
        source=lost.source,
    )


def major(amount: int, money: Currency) -> Decimal:
    """Stripe's integer as an amount in major units, exactly."""
    with exactly():
        return Decimal(amount) / money.stripe_factor * money.minor_unit


def _known(code: str, on: date) -> Currency | None:
    try:
        return currency(code, on)
    except UnknownCurrency:
        return None


def _other_side(moved: BalanceTransaction) -> AccountCode:
    if moved.category in ("refund", "refund_failure"):
        if CREDIT_NOTE in moved.metadata:
            return AccountCode.CUSTOMER_CREDIT_BALANCE
        if CREDIT in moved.metadata:
            return AccountCode.REFUNDS_PAYABLE
    return OTHER_SIDE.get(moved.category, AccountCode.SUSPENSE)
