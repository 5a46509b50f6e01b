"""The states of an invoice's life, what leads from one to the next, and what is never sent (docs/spec/money.md 10)."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from billing.errors import IllegalTransition
from billing.invoicing.invoices import Invoice


class InvoiceState(StrEnum):
    """Where an invoice is in its life. A preview is never stored. A credit note is issued here, then in Stripe."""

    PREVIEW = "preview"
    DRAFT = "draft"
    APPROVED = "approved"
    FINALIZED = "finalized"
    PAID = "paid"
    VOID = "void"
    UNCOLLECTIBLE = "uncollectible"
    ZERO = "zero"
    CARRIED_BELOW_MINIMUM = "carried_below_minimum"
    ISSUED_LOCALLY = "issued_locally"
    ISSUED = "issued"


ISSUED: Final = frozenset(InvoiceState) - {InvoiceState.DRAFT, InvoiceState.APPROVED, InvoiceState.PREVIEW}
"""States in which an invoice is in the journal."""


class InvoiceEvent(StrEnum):
    """What can happen to an invoice."""

    APPROVE = "approve"
    FINALIZE = "finalize"
    SETTLE_AS_ZERO = "settle_as_zero"
    CARRY = "carry"
    ISSUE = "issue"
    TELL = "tell"
    PAY = "pay"
    VOID = "void"
    GIVE_UP = "give_up"


_NEXT: Final = {
    (InvoiceState.DRAFT, InvoiceEvent.APPROVE): InvoiceState.APPROVED,
    (InvoiceState.DRAFT, InvoiceEvent.SETTLE_AS_ZERO): InvoiceState.ZERO,
    (InvoiceState.DRAFT, InvoiceEvent.CARRY): InvoiceState.CARRIED_BELOW_MINIMUM,
    (InvoiceState.DRAFT, InvoiceEvent.ISSUE): InvoiceState.ISSUED_LOCALLY,
    (InvoiceState.ISSUED_LOCALLY, InvoiceEvent.TELL): InvoiceState.ISSUED,
    (InvoiceState.APPROVED, InvoiceEvent.FINALIZE): InvoiceState.FINALIZED,
    (InvoiceState.FINALIZED, InvoiceEvent.PAY): InvoiceState.PAID,
    (InvoiceState.FINALIZED, InvoiceEvent.VOID): InvoiceState.VOID,
    (InvoiceState.FINALIZED, InvoiceEvent.GIVE_UP): InvoiceState.UNCOLLECTIBLE,
    (InvoiceState.UNCOLLECTIBLE, InvoiceEvent.PAY): InvoiceState.PAID,
    (InvoiceState.UNCOLLECTIBLE, InvoiceEvent.VOID): InvoiceState.VOID,
}


def after(state: InvoiceState, event: InvoiceEvent) -> InvoiceState:
    """The state that an event leads to: the one place that knows. Raises IllegalTransition."""
    try:
        return _NEXT[state, event]
    except KeyError:
        raise IllegalTransition(f"an invoice that is {state} cannot {event}") from None


def settled_locally(invoice: Invoice) -> InvoiceEvent | None:
    """Why an invoice is never sent (docs/spec/money.md 10): zero, or below what Stripe charges. None if it is sent.

    An amount equal to the minimum is not below it (13.16). A negative one is below any.
    """
    if invoice.amount_due_minor == 0:
        return InvoiceEvent.SETTLE_AS_ZERO
    if invoice.amount_due_minor < invoice.identity.money.stripe_minimum:
        return InvoiceEvent.CARRY
    return None
