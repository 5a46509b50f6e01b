"""Journal entries: what cannot be made, what is hashed, what a reversal is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from billing.errors import EntryInvalid, NotAnAmount
from billing.ledger.journal import ACCOUNTS, AccountCode, AccountType, JournalEntry, Posting, balances, reversal

AT = datetime(2026, 10, 31, tzinfo=UTC)
UNBILLED, REVENUE, RECEIVABLE = (
    AccountCode.UNBILLED_RECEIVABLE,
    AccountCode.USAGE_REVENUE,
    AccountCode.ACCOUNTS_RECEIVABLE,
)


def entry(*postings: Posting, **changed: Any) -> JournalEntry:
    values: dict[str, Any] = {
        "idempotency_key": "k1", "kind": "accrual", "legal_entity": "default", "accounting_period": "2026-10",
        "effective_at": AT,
    }  # fmt: skip
    return JournalEntry(postings=postings, **(values | changed))


def leg(account: AccountCode, amount: str, subledger: str = "", currency: str = "USD") -> Posting:
    return Posting(account, currency, Decimal(amount), subledger)


GOOD = entry(leg(UNBILLED, "1.000000000001", "t1"), leg(REVENUE, "-1.000000000001"))


@pytest.mark.parametrize(
    ("postings", "reason"),
    [
        ([leg(UNBILLED, "1", "t1"), leg(REVENUE, "-0.99")], "unbalanced by 0.01 USD"),
        ([leg(UNBILLED, "1", "t1"), leg(REVENUE, "-1", currency="EUR")], "unbalanced by -1 EUR, 1 USD"),
        ([leg(UNBILLED, "1", "t1")], "1 legs"),
        ([], "0 legs"),
    ],
)
def test_what_does_not_balance_per_currency_cannot_be_made(postings: list[Posting], reason: str) -> None:
    with pytest.raises(EntryInvalid, match=reason):
        entry(*postings)


@pytest.mark.parametrize("amount", ["0", "0.0000000000001", "NaN", "Infinity"])
def test_a_leg_of_nothing_too_fine_or_not_finite_cannot_be_made(amount: str) -> None:
    with pytest.raises((EntryInvalid, NotAnAmount)):
        leg(UNBILLED, amount, "t1")


def test_a_float_is_never_an_amount() -> None:
    with pytest.raises(EntryInvalid, match="no Decimal"):
        Posting(UNBILLED, "USD", 0.1, "t1")  # type: ignore[arg-type]


def test_an_account_kept_per_tenant_needs_one_and_another_takes_none() -> None:
    with pytest.raises(EntryInvalid, match="kept per tenant"):
        leg(UNBILLED, "1")
    with pytest.raises(EntryInvalid, match="kept per none"):
        leg(REVENUE, "1", "t1")


def test_receivables_take_whole_cents_only() -> None:
    with pytest.raises(NotAnAmount, match=r"no multiple of 0\.01"):
        entry(leg(RECEIVABLE, "1.005", "acme"), leg(UNBILLED, "-1.005", "t1"))


def test_the_hash_covers_everything_the_entry_says() -> None:
    others = [
        replace(GOOD, kind="invoice"),
        replace(GOOD, legal_entity="eu"),
        replace(GOOD, accounting_period="2026-11"),
        replace(GOOD, original_period="2026-09"),
        replace(GOOD, effective_at=AT.replace(hour=1)),
        replace(GOOD, reverses=7),
        replace(GOOD, source={"a": "b"}),
        replace(GOOD, postings=(leg(UNBILLED, "1.000000000002", "t1"), leg(REVENUE, "-1.000000000002"))),
        replace(GOOD, postings=(leg(UNBILLED, "1.000000000001", "t2"), leg(REVENUE, "-1.000000000001"))),
    ]
    assert len({GOOD.input_hash, *(other.input_hash for other in others)}) == 10
    assert replace(GOOD, idempotency_key="k2").input_hash == GOOD.input_hash
    assert replace(GOOD).input_hash == GOOD.input_hash


def test_a_reversal_takes_back_every_leg_and_names_what_it_reverses() -> None:
    back = reversal(GOOD, entry_id=7, idempotency_key="k1:reversal", accounting_period="2026-11", effective_at=AT)
    assert balances([GOOD, back]) == {}
    assert (back.reverses, back.original_period, back.accounting_period) == (7, "2026-10", "2026-11")


def test_the_chart_has_one_account_per_code_in_the_range_of_its_type() -> None:
    assert len(ACCOUNTS) == len(AccountCode)
    ranges = {
        AccountType.ASSET: range(1000, 2000), AccountType.LIABILITY: range(2000, 3000),
        AccountType.INCOME: range(4000, 4900), AccountType.CONTRA_INCOME: range(4900, 5000),
        AccountType.EXPENSE: range(5000, 6000),
    }  # fmt: skip
    assert all(account.code in ranges[account.type] for account in AccountCode)
