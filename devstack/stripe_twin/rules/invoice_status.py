"""An invoice's states and the one function that moves between them.

Source: docs.stripe.com/invoicing/integration/workflow-transitions and
support.stripe.com/questions/invoice-states: draft → open → paid | void | uncollectible;
uncollectible → paid | void; paid and void are final; only drafts can be deleted.
"""

from __future__ import annotations

from enum import StrEnum

from devstack.stripe_twin.errors import StripeError, invalid


class InvoiceStatus(StrEnum):
    DRAFT = "draft"
    OPEN = "open"
    PAID = "paid"
    VOID = "void"
    UNCOLLECTIBLE = "uncollectible"


class InvoiceAction(StrEnum):
    FINALIZE = "finalize"
    PAY = "pay"
    VOID = "void"
    MARK_UNCOLLECTIBLE = "mark_uncollectible"
    SEND = "send"
    DELETE = "delete"


_RESULT = {
    (InvoiceStatus.DRAFT, InvoiceAction.FINALIZE): InvoiceStatus.OPEN,
    (InvoiceStatus.OPEN, InvoiceAction.PAY): InvoiceStatus.PAID,
    (InvoiceStatus.UNCOLLECTIBLE, InvoiceAction.PAY): InvoiceStatus.PAID,
    (InvoiceStatus.OPEN, InvoiceAction.VOID): InvoiceStatus.VOID,
    (InvoiceStatus.UNCOLLECTIBLE, InvoiceAction.VOID): InvoiceStatus.VOID,
    (InvoiceStatus.OPEN, InvoiceAction.MARK_UNCOLLECTIBLE): InvoiceStatus.UNCOLLECTIBLE,
    (InvoiceStatus.OPEN, InvoiceAction.SEND): InvoiceStatus.OPEN,
    (InvoiceStatus.PAID, InvoiceAction.SEND): InvoiceStatus.PAID,
    (InvoiceStatus.UNCOLLECTIBLE, InvoiceAction.SEND): InvoiceStatus.UNCOLLECTIBLE,
    (InvoiceStatus.DRAFT, InvoiceAction.DELETE): InvoiceStatus.DRAFT,
}

EDITABLE_AFTER_FINALIZING = {
    InvoiceStatus.OPEN: frozenset({"metadata", "description", "auto_advance"}),
    InvoiceStatus.UNCOLLECTIBLE: frozenset({"metadata"}),
    InvoiceStatus.PAID: frozenset({"metadata"}),
    InvoiceStatus.VOID: frozenset({"metadata"}),
}
"""support.stripe.com/questions/invoice-states: of an open invoice "only some elements … such as the memo or
metadata"; docs.stripe.com/api/invoices/update adds ``auto_advance``."""


def transition(status: InvoiceStatus, action: InvoiceAction) -> InvoiceStatus:
    """The state after ``action``, or Stripe's refusal."""
    result = _RESULT.get((status, action))
    if result is None:
        raise _refusal(status, action)
    return result


def _refusal(status: InvoiceStatus, action: InvoiceAction) -> StripeError:
    if action is InvoiceAction.FINALIZE:
        message = "This invoice is already finalized, you can't re-finalize a non-draft invoice."
        return invalid(message, code="invoice_not_editable")
    if action is InvoiceAction.DELETE:
        message = f"You can only delete draft invoices. This invoice is {status.value}."
        return invalid(message, code="invoice_not_editable")
    if action is InvoiceAction.PAY and status is InvoiceStatus.PAID:
        return invalid("Invoice is already paid.")
    return invalid(f"You can't {action.value.replace('_', ' ')} an invoice whose status is {status.value}.")


def check_editable(status: InvoiceStatus, names: set[str]) -> None:
    """Refuse a change of ``names`` that ``status`` does not allow."""
    if status is InvoiceStatus.DRAFT or names <= EDITABLE_AFTER_FINALIZING[status]:
        return
    raise invalid("Finalized invoices can't be updated in this way.", code="invoice_not_editable")


def check_draft(status: InvoiceStatus) -> None:
    """Lines change only while the invoice is a draft."""
    if status is not InvoiceStatus.DRAFT:
        message = "This invoice is no longer editable. Consider creating additional invoice items."
        raise invalid(message, "invoice", "invoice_not_editable")
