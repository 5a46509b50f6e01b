"""What is done to an invoice after it was finalized, and the requests that tell Stripe (docs/spec/money.md 7, 9, 10).

Pure. A correction is decided here, told to Stripe under a key of its own, and booked with the answer, so that the books
follow what Stripe has done. Only a credit note is a document of ours first. Amounts in requests are Stripe's integers.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from billing.errors import IllegalTransition
from billing.invoicing.invoices import Invoice, InvoiceIdentity
from billing.invoicing.sending import OURS, Operation, Request, key_of, request_of
from billing.invoicing.stripe_lines import stripe_lines
from billing.money import to_stripe

CORRECTION: Final = "correction"
"""The part of an idempotency key that says what it is for; and the metadata that names a correction in Stripe."""
NOTE_LINES_MAX: Final = 100
EMAIL_TYPE: Final = "none"
"""Stripe mails credit notes by itself unless it is told not to."""


class CorrectionKind(StrEnum):
    """What is done. `recovery`: what was written off is paid after all; `overpayment`: it becomes unapplied cash."""

    CREDIT_NOTE = "credit_note"
    VOID = "void"
    WRITE_OFF = "write_off"
    RECOVERY = "recovery"
    PAID_ELSEWHERE = "paid_elsewhere"
    REFUND = "refund"
    OVERPAYMENT = "overpayment"
    EVIDENCE = "evidence"


class CorrectionState(StrEnum):
    """Open until Stripe has done it, or definitely not."""

    OPEN = "open"
    DONE = "done"
    REFUSED = "refused"


class CorrectionEvent(StrEnum):
    """What ends a correction."""

    ANSWER = "answer"
    REFUSE = "refuse"


_NEXT: Final = {
    (CorrectionState.OPEN, CorrectionEvent.ANSWER): CorrectionState.DONE,
    (CorrectionState.OPEN, CorrectionEvent.REFUSE): CorrectionState.REFUSED,
}


def after(state: CorrectionState, event: CorrectionEvent) -> CorrectionState:
    """The state that an event leads to. Raises IllegalTransition."""
    try:
        return _NEXT[state, event]
    except KeyError:
        raise IllegalTransition(f"a correction that is {state} cannot {event}") from None


@dataclass(frozen=True, slots=True)
class Correction:
    """Something that is done to an invoice. `content` is what its kind needs; `told_because` says what hinders it."""

    correction_no: int
    invoice_id: uuid.UUID
    kind: CorrectionKind
    reason: str
    made_by: str
    note_id: uuid.UUID | None = None
    content: Mapping[str, Any] = field(default_factory=dict)
    state: CorrectionState = CorrectionState.OPEN
    told_because: str | None = None
    stripe_id: str | None = None
    entry_id: int | None = None


def credited(note: Invoice) -> int:
    """What a credit note takes off what is owed, in Stripe's integer: its total, less what goes back to credits."""
    return to_stripe(-note.receivable_minor, note.identity.money)


def note_request(
    correction: Correction, note: Invoice, number: str, *, stripe_invoice: str, remaining: int,
    refunds: Sequence[tuple[str, int]] = (), epoch: int = 0,
) -> Request:  # fmt: skip
    """Issue a credit note in Stripe as ours says. `remaining` is what is still to be paid of the invoice there.

    What is beyond that is linked to `refunds` (id, amount), or credited out of band: never to the customer's balance
    (docs/spec/money.md 10).
    """
    amount = credited(note)
    beyond = max(0, amount - remaining) - sum(each for _, each in refunds)
    parameters: dict[str, Any] = {
        "invoice": stripe_invoice,
        "lines": note_lines(note, number),
        "memo": number,
        "email_type": EMAIL_TYPE,
        "metadata": {"credit_note": number, **metadata(correction)},
    }
    if beyond > 0:
        parameters["out_of_band_amount"] = beyond
    if refunds:
        parameters["refunds"] = [{"type": "refund", "refund": r, "amount_refunded": part} for r, part in refunds]
    return _request(correction, note.identity, Operation.CREDIT_NOTE, "", parameters, epoch=epoch)


def note_lines(note: Invoice, number: str) -> list[dict[str, Any]]:
    """A credit note's lines with positive amounts; one for all of it where Stripe would not take them as they are."""
    money = note.identity.money
    lines = [(line.description, to_stripe(-line.amount_minor, money)) for line in stripe_lines(note)]
    lines = [(text, amount) for text, amount in lines if amount]
    if len(lines) > NOTE_LINES_MAX or any(amount < 0 for _, amount in lines):
        lines = [(f"Credit note {number} for {note.identity.period.name}", credited(note))]
    return [
        {"type": "custom_line_item", "description": text, "quantity": 1, "unit_amount": amount}
        for text, amount in lines
    ]


def simple_request(
    correction: Correction, identity: InvoiceIdentity, *, stripe_invoice: str, epoch: int = 0
) -> Request:
    """Void, mark uncollectible, or mark as paid elsewhere."""
    operation, parameters = _SIMPLE[correction.kind]
    return _request(correction, identity, operation, stripe_invoice, parameters, epoch=epoch)


_SIMPLE: Final[Mapping[CorrectionKind, tuple[Operation, Mapping[str, Any]]]] = {
    CorrectionKind.VOID: (Operation.VOID, {}),
    CorrectionKind.WRITE_OFF: (Operation.MARK_UNCOLLECTIBLE, {}),
    CorrectionKind.PAID_ELSEWHERE: (Operation.PAY_ELSEWHERE, {"paid_out_of_band": True}),
}


def refund_request(
    correction: Correction, identity: InvoiceIdentity, *, payment_intent: str, amount: int, chunk: int,
    note: str | None = None, epoch: int = 0,
) -> Request:  # fmt: skip
    """Give back an amount of one payment; `note` is the credit note that it pays back."""
    said = {**metadata(correction), "part": str(chunk), **({"credit_note": note} if note else {})}
    parameters = {"payment_intent": payment_intent, "amount": amount, "metadata": said}
    return _request(correction, identity, Operation.REFUND, "", parameters, chunk=chunk, epoch=epoch)


def balance_request(
    correction: Correction, identity: InvoiceIdentity, *, customer: str, amount: int, number: str, epoch: int = 0
) -> Request:
    """Take an overpayment out of the customer's balance in Stripe: it is kept as unapplied cash in our books."""
    parameters = {
        "amount": amount,
        "currency": identity.currency.lower(),
        "description": f"Overpayment of {number}, kept as unapplied cash",
        "metadata": metadata(correction),
    }
    return _request(correction, identity, Operation.MOVE_BALANCE, customer, parameters, epoch=epoch)


def evidence_request(correction: Correction, identity: InvoiceIdentity, epoch: int = 0) -> Request:
    """Submit what a dispute's evidence says to the bank."""
    parameters = {"evidence": correction.content["evidence"], "submit": True, "metadata": metadata(correction)}
    target = str(correction.content["dispute"])
    return _request(correction, identity, Operation.SUBMIT_EVIDENCE, target, parameters, epoch=epoch)


def metadata(correction: Correction) -> dict[str, str]:
    """What tells, in Stripe, which correction of ours it is."""
    return {CORRECTION: str(correction.correction_no), "invoice_id": str(correction.invoice_id)}


def correction_of(idempotency_key: str) -> int | None:
    """The number of the correction that a request with this key is for; None: for none."""
    (_, _, what, number, *_) = idempotency_key.removeprefix(OURS).split(":")
    return int(number) if what == CORRECTION else None


def parts(amount: int, payments: Sequence[tuple[str, int]]) -> list[tuple[str, int]] | None:
    """How an amount is given back: from payments (id, what is left of it), the first first; None if they do not do."""
    found: list[tuple[str, int]] = []
    for payment, left in payments:
        if part := min(left, amount):
            found.append((payment, part))
            amount -= part
    return found if amount == 0 else None


def _request(
    correction: Correction, identity: InvoiceIdentity, operation: Operation, target: str,
    parameters: Mapping[str, Any], *, chunk: int = 0, epoch: int,
) -> Request:  # fmt: skip
    key = key_of(
        identity.legal_entity, identity.billing_account, CORRECTION, str(correction.correction_no), operation.value,
        str(chunk), epoch=epoch,
    )  # fmt: skip
    return request_of(key, operation, target, parameters, chunk=chunk, epoch=epoch)
