"""Journal entries: whatever is made balances, and a reversal cancels it."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from billing.errors import EntryInvalid
from billing.ledger.journal import AccountCode, JournalEntry, Posting, Subledger, balances, reversal
from billing.plans.price_plans import Metric
from billing.posting.posting_rules import accrual, invoice_issued
from tests.billing_builders import NOW, OCTOBER, charge, invoice, rated, usage, version

AT = datetime(2026, 10, 31, tzinfo=UTC)
FREE = [account for account in AccountCode if not account.in_quanta]
PICO = st.integers(-(10**20), 10**20).filter(bool)


def posting(account: AccountCode, currency: str, pico: int) -> Posting:
    subledger = "" if account.subledger is Subledger.NONE else "t1"
    return Posting(account, currency, Decimal(pico).scaleb(-12), subledger)


@st.composite
def legs(draw: st.DrawFn) -> list[Posting]:
    """Legs in up to three currencies that sum to zero in each."""
    found: list[Posting] = []
    for currency in draw(st.sets(st.sampled_from(["USD", "EUR", "JPY"]), min_size=1)):
        picos = draw(st.lists(PICO, min_size=1, max_size=6))
        last = -sum(picos)
        assume(last)
        accounts = draw(st.lists(st.sampled_from(FREE), min_size=len(picos) + 1, max_size=len(picos) + 1))
        found += [posting(a, currency, p) for a, p in zip(accounts, [*picos, last], strict=True)]
    return draw(st.permutations(found))


def entry(postings: list[Posting]) -> JournalEntry:
    return JournalEntry("k", "test", "default", "2026-10", AT, tuple(postings))


@given(postings=legs())
def test_balanced_legs_make_an_entry_and_its_reversal_cancels_it(postings: list[Posting]) -> None:
    made = entry(postings)
    for currency in {p.currency for p in made.postings}:
        assert sum(Fraction(p.amount) for p in made.postings if p.currency == currency) == 0
    back = reversal(made, entry_id=1, idempotency_key="k:r", accounting_period="2026-11", effective_at=AT)
    assert balances([made, back]) == {}


@given(postings=legs(), data=st.data(), off=PICO)
def test_one_leg_that_is_off_by_anything_makes_no_entry(postings: list[Posting], data: st.DataObject, off: int) -> None:
    index = data.draw(st.integers(0, len(postings) - 1))
    wrong = postings[index]
    amount = int(wrong.amount.scaleb(12)) + off
    assume(amount)
    with pytest.raises(EntryInvalid, match="unbalanced"):
        entry([*postings[:index], posting(wrong.account, wrong.currency, amount), *postings[index + 1 :]])


@given(runs=st.lists(st.integers(0, 10**9), min_size=1, max_size=5), atto=st.integers(0, 10**16))
def test_accruals_and_the_invoice_leave_nothing_unbilled_and_the_residue_in_rounding(
    runs: list[int], atto: int
) -> None:
    plan = version(charge("a", Metric.OUTPUT, f"{Decimal(atto).scaleb(-18):f}"))
    lines = [rated(plan, [usage(output_tokens=tokens)]).lines for tokens in runs]
    entries = [accrual(of, legal_entity="default", period=OCTOBER, rating_no=n, now=NOW) for n, of in enumerate(lines)]
    posted = [line for of in lines for line in of]
    bill = invoice(posted)
    journal = [e for e in [*entries, invoice_issued(bill, now=NOW)] if e is not None]
    left = {account: amount for (account, _, _), amount in balances(journal).items()}
    assert AccountCode.UNBILLED_RECEIVABLE not in left
    assert Fraction(left.get(AccountCode.ACCOUNTS_RECEIVABLE, Decimal(0))) == Fraction(bill.total_minor, 100)
    assert left.get(AccountCode.ROUNDING_DIFFERENCE, Decimal(0)) == bill.rounding
    assert sum(map(Fraction, left.values())) == 0
