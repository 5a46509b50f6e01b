"""The journal's values: chart of accounts, postings, entries that balance by construction (docs/spec/money.md 9).

Debit is positive, credit negative. An entry sums to zero per currency, or it cannot be made.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Final

from billing.errors import EntryInvalid
from billing.money import LINE_DECIMALS, ZERO, currency, exactly, parse_decimal, plain, to_minor

FEES_EARNED: Final = "fees_earned"
BREAKAGE_EXPECTED: Final = "breakage_expected"
"""The kind of the entries that recognise fees in advance."""


class AccountType(StrEnum):
    """What an account is; debit-normal ones are assets, expenses and contra income."""

    ASSET = "asset"
    LIABILITY = "liability"
    INCOME = "income"
    CONTRA_INCOME = "contra_income"
    EXPENSE = "expense"


class Side(StrEnum):
    """The column in which an account's balance usually stands."""

    DEBIT = "debit"
    CREDIT = "credit"


class Subledger(StrEnum):
    """What tells the accounts of one code apart."""

    NONE = "none"
    TENANT = "tenant"
    BILLING_ACCOUNT = "billing_account"
    GRANT = "grant"


class AccountCode(Enum):
    """The chart of accounts. Nothing else can be posted to. `in_quanta`: takes only whole quanta of its currency."""

    STRIPE_BALANCE_CLEARING = (1010, AccountType.ASSET, Subledger.NONE, True)
    STRIPE_CUSTOMER_CASH = (1012, AccountType.ASSET, Subledger.BILLING_ACCOUNT, True)
    BANK = (1020, AccountType.ASSET, Subledger.NONE, True)
    SUSPENSE = (1090, AccountType.ASSET, Subledger.NONE, False)
    ACCOUNTS_RECEIVABLE = (1100, AccountType.ASSET, Subledger.BILLING_ACCOUNT, True)
    UNBILLED_RECEIVABLE = (1150, AccountType.ASSET, Subledger.TENANT, False)
    DISPUTE_RECEIVABLE = (1180, AccountType.ASSET, Subledger.BILLING_ACCOUNT, True)
    FX_CLEARING = (1190, AccountType.ASSET, Subledger.NONE, False)
    DEFERRED_REVENUE_PREPAID = (2100, AccountType.LIABILITY, Subledger.GRANT, False)
    EXPECTED_BREAKAGE = (2105, AccountType.LIABILITY, Subledger.GRANT, False)
    DEFERRED_FEES = (2110, AccountType.LIABILITY, Subledger.TENANT, False)
    CUSTOMER_CREDIT_BALANCE = (2150, AccountType.LIABILITY, Subledger.BILLING_ACCOUNT, True)
    TAX_PAYABLE = (2200, AccountType.LIABILITY, Subledger.NONE, True)
    REFUNDS_PAYABLE = (2300, AccountType.LIABILITY, Subledger.NONE, True)
    USAGE_REVENUE = (4000, AccountType.INCOME, Subledger.NONE, False)
    FEE_REVENUE = (4010, AccountType.INCOME, Subledger.NONE, False)
    COMMITMENT_TRUE_UP_REVENUE = (4050, AccountType.INCOME, Subledger.NONE, False)
    BREAKAGE_REVENUE = (4100, AccountType.INCOME, Subledger.NONE, False)
    PROMO_CREDITS = (4900, AccountType.CONTRA_INCOME, Subledger.NONE, False)
    SLA_CREDITS = (4910, AccountType.CONTRA_INCOME, Subledger.NONE, False)
    REFUNDS = (4920, AccountType.CONTRA_INCOME, Subledger.NONE, False)
    DISPUTES_LOST = (4930, AccountType.CONTRA_INCOME, Subledger.NONE, False)
    STRIPE_FEES = (5100, AccountType.EXPENSE, Subledger.NONE, True)
    DISPUTE_FEES = (5110, AccountType.EXPENSE, Subledger.NONE, True)
    BAD_DEBT = (5200, AccountType.EXPENSE, Subledger.NONE, False)
    FX_GAIN_LOSS = (5300, AccountType.EXPENSE, Subledger.NONE, False)
    ROUNDING_DIFFERENCE = (5900, AccountType.EXPENSE, Subledger.NONE, False)

    def __init__(self, code: int, type_: AccountType, subledger: Subledger, in_quanta: bool) -> None:
        self.code = code
        self.type = type_
        self.subledger = subledger
        self.in_quanta = in_quanta

    @property
    def normal_side(self) -> Side:
        """Credit for what is owed and earned, debit for what is owned, spent and taken off income."""
        return Side.CREDIT if self.type in (AccountType.LIABILITY, AccountType.INCOME) else Side.DEBIT

    @property
    def title(self) -> str:
        """`1150 unbilled_receivable`."""
        return f"{self.code} {self.name.lower()}"


ACCOUNTS: Final[Mapping[int, AccountCode]] = {account.code: account for account in AccountCode}


@dataclass(frozen=True, slots=True)
class Posting:
    """One leg: an account and a signed amount in major units, at most 12 decimals, never zero."""

    account: AccountCode
    currency: str
    amount: Decimal
    subledger: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.amount, Decimal):
            raise EntryInvalid(f"{self.account.title}: {self.amount!r} is no Decimal")
        parse_decimal(self.amount, decimals=LINE_DECIMALS)
        if self.amount == 0:
            raise EntryInvalid(f"{self.account.title}: a leg of zero says nothing")
        if (self.account.subledger is Subledger.NONE) != (self.subledger == ""):
            raise EntryInvalid(f"{self.account.title} is kept per {self.account.subledger}, got {self.subledger!r}")


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A balanced set of postings. `idempotency_key` names the fact it books; the same key is booked once.

    `effective_at` is when it holds for business, `accounting_period` (`2026-10`) the book it goes to. `source`
    says what caused it, as strings.
    """

    idempotency_key: str
    kind: str
    legal_entity: str
    accounting_period: str
    effective_at: datetime
    postings: tuple[Posting, ...]
    original_period: str | None = None
    reverses: int | None = None
    source: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.effective_at.utcoffset() is None:
            raise EntryInvalid(f"{self.idempotency_key}: effective_at has no time zone")
        if len(self.postings) < 2:
            raise EntryInvalid(f"{self.idempotency_key}: {len(self.postings)} legs, an entry has at least two")
        sums: dict[str, Decimal] = defaultdict(lambda: ZERO)
        with exactly():
            for posting in self.postings:
                sums[posting.currency] += posting.amount
        wrong = [f"{plain(amount)} {code}" for code, amount in sorted(sums.items()) if amount]
        if wrong:
            raise EntryInvalid(f"{self.idempotency_key}: unbalanced by {', '.join(wrong)}")
        for posting in self.postings:
            if posting.account.in_quanta:
                to_minor(posting.amount, currency(posting.currency, self.effective_at.astimezone(UTC).date()))

    @property
    def input_hash(self) -> bytes:
        """SHA-256 of everything the entry says."""
        content = {
            "kind": self.kind,
            "legal_entity": self.legal_entity,
            "accounting_period": self.accounting_period,
            "original_period": self.original_period,
            "effective_at": self.effective_at.astimezone(UTC).isoformat(),
            "reverses": self.reverses,
            "source": dict(self.source),
            "postings": [[p.account.code, p.currency, p.subledger, plain(p.amount)] for p in self.postings],
        }
        return hashlib.sha256(b"tollbook.journal_entry.v1\n" + json.dumps(content, sort_keys=True).encode()).digest()


def reversal(
    entry: JournalEntry, *, entry_id: int, idempotency_key: str, accounting_period: str, effective_at: datetime
) -> JournalEntry:
    """The entry that takes back a booked one (`entry_id`), leg by leg. An entry can be reversed once."""
    return JournalEntry(
        idempotency_key=idempotency_key,
        kind="reversal",
        legal_entity=entry.legal_entity,
        accounting_period=accounting_period,
        effective_at=effective_at,
        postings=tuple(Posting(p.account, p.currency, -p.amount, p.subledger) for p in entry.postings),
        original_period=entry.accounting_period,
        reverses=entry_id,
        source={"reverses": entry.idempotency_key},
    )


def balances(entries: Iterable[JournalEntry]) -> dict[tuple[AccountCode, str, str], Decimal]:
    """The sum per (account, currency, subledger) of some entries; accounts that come to zero are left out."""
    sums: dict[tuple[AccountCode, str, str], Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for entry in entries:
            for posting in entry.postings:
                sums[posting.account, posting.currency, posting.subledger] += posting.amount
    return {key: amount for key, amount in sums.items() if amount}
