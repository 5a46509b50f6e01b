"""Corrections and dunning as values: states, requests, parts of payments, entries."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.errors import IllegalTransition
from billing.invoicing.correcting import (
    Correction,
    CorrectionEvent,
    CorrectionKind,
    CorrectionState,
    after,
    parts,
    refund_request,
    simple_request,
)
from billing.invoicing.dunning import DunningState, Standing, dunning
from billing.invoicing.invoice_states import InvoiceState
from billing.invoicing.invoices import InvoiceIdentity, InvoiceKind
from billing.posting.correction_rules import corrected
from billing.posting.posting_rules import Booking
from tests.billing_builders import OCTOBER

IDENTITY = InvoiceIdentity("default", "acme:eu", InvoiceKind.USAGE, OCTOBER, "USD")
TODAY = date(2026, 12, 2)
AT = datetime(2026, 12, 1, tzinfo=UTC)


def correction(kind: CorrectionKind) -> Correction:
    return Correction(7, uuid.UUID(int=1), kind, "r", "ada")


def test_a_correction_ends_once() -> None:
    assert after(CorrectionState.OPEN, CorrectionEvent.ANSWER) is CorrectionState.DONE
    assert after(CorrectionState.OPEN, CorrectionEvent.REFUSE) is CorrectionState.REFUSED
    for state in (CorrectionState.DONE, CorrectionState.REFUSED):
        for event in CorrectionEvent:
            with pytest.raises(IllegalTransition):
                after(state, event)


def test_each_change_of_a_correction_has_a_key_of_its_own() -> None:
    refunds = [
        refund_request(correction(CorrectionKind.REFUND), IDENTITY, payment_intent="pi", amount=5, chunk=chunk)
        for chunk in (0, 1)
    ]
    void = simple_request(correction(CorrectionKind.VOID), IDENTITY, stripe_invoice="in_1", epoch=2)
    assert void.idempotency_key == "tollbook:default:acme%3Aeu:correction:7:void:0:e2"
    assert (
        void.key_at(0)
        == simple_request(correction(CorrectionKind.VOID), IDENTITY, stripe_invoice="in_1").idempotency_key
    )
    assert len({void.key_at(0), *(each.idempotency_key for each in refunds)}) == 3
    assert [each.decoded["metadata"]["part"] for each in refunds] == ["0", "1"]


@given(st.integers(1, 10**6), st.lists(st.integers(0, 10**6), max_size=5))
def test_an_amount_is_given_back_whole_from_payments_or_not_at_all(amount: int, left: list[int]) -> None:
    payments = [(f"pi_{n}", each) for n, each in enumerate(left)]
    found = parts(amount, payments)
    assert (found is None) == (amount > sum(left))
    if found is not None:
        assert sum(part for _, part in found) == amount
        assert all(0 < part <= dict(payments)[name] for name, part in found)


@pytest.mark.parametrize(
    ("kind", "legs"),
    [
        (CorrectionKind.WRITE_OFF, [(5200, 5, ""), (1100, -5, "acme")]),
        (CorrectionKind.PAID_ELSEWHERE, [(1020, 5, ""), (1100, -5, "acme")]),
        (CorrectionKind.CREDIT_NOTE, [(2150, -5, "acme"), (1100, 5, "acme")]),
        (CorrectionKind.OVERPAYMENT, [(2150, -5, "acme"), (1100, 5, "acme")]),
        (CorrectionKind.VOID, [(2150, -5, "acme"), (1100, 5, "acme")]),
        (CorrectionKind.RECOVERY, [(5200, -5, ""), (1100, 5, "acme")]),
    ],
)
def test_what_a_correction_books(kind: CorrectionKind, legs: list[tuple[int, int, str]]) -> None:
    where = Booking("k", "default", "2026-12", AT)
    entry = corrected(correction(kind), Decimal(5), "USD", "acme", booking=where)
    assert entry is not None
    assert [(p.account.code, p.amount, p.subledger) for p in entry.postings] == legs
    assert corrected(correction(kind), Decimal(0), "USD", "acme", booking=where) is None


def standing(remaining: int = 5, failed: bool = False, again: bool = False) -> Standing:
    return Standing("open", 0, remaining, 1, AT if again else None, AT if failed else None)


@pytest.mark.parametrize(
    ("state", "found", "due", "expected"),
    [
        (InvoiceState.FINALIZED, None, date(2026, 1, 1), DunningState.DUE),
        (InvoiceState.FINALIZED, standing(), date(2026, 1, 1), DunningState.DUE),
        (InvoiceState.FINALIZED, standing(failed=True), TODAY, DunningState.RETRYING),
        (InvoiceState.FINALIZED, standing(failed=True), date(2026, 12, 1), DunningState.FAILED),
        (InvoiceState.FINALIZED, standing(failed=True, again=True), date(2026, 12, 1), DunningState.RETRYING),
        (InvoiceState.FINALIZED, standing(remaining=0, failed=True), date(2026, 12, 1), None),
        (InvoiceState.UNCOLLECTIBLE, standing(failed=True), date(2026, 12, 1), DunningState.UNCOLLECTIBLE),
        (InvoiceState.PAID, standing(remaining=0), TODAY, None),
        (InvoiceState.VOID, None, None, None),
        (InvoiceState.DRAFT, None, None, None),
    ],
)
def test_how_the_collection_of_an_invoice_stands(
    state: InvoiceState, found: Standing | None, due: date | None, expected: DunningState | None
) -> None:
    assert dunning(state, found, due, TODAY) is expected
