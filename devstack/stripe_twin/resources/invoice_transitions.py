"""What moves an invoice from one state to another: finalize, pay, void, mark uncollectible, send.

Sources: docs.stripe.com/api/invoices/finalize, /pay, /void, /mark_uncollectible, /send;
docs.stripe.com/billing/customer/balance; docs.stripe.com/invoicing/customize (numbering). The states and their
moves are in ``rules.invoice_status``, the arithmetic in ``rules.invoice_arithmetic``.
"""

from __future__ import annotations

from typing import Any

from stripe.params._invoice_finalize_invoice_params import InvoiceFinalizeInvoiceParams
from stripe.params._invoice_mark_uncollectible_params import InvoiceMarkUncollectibleParams
from stripe.params._invoice_pay_params import InvoicePayParams
from stripe.params._invoice_send_invoice_params import InvoiceSendInvoiceParams
from stripe.params._invoice_void_invoice_params import InvoiceVoidInvoiceParams

from devstack.stripe_twin.errors import StripeError, invalid, missing_email
from devstack.stripe_twin.events import emit
from devstack.stripe_twin.resources import customer_object, invoice_object, payment_methods, payments
from devstack.stripe_twin.resources.rendering import render
from devstack.stripe_twin.routing import Call, Route
from devstack.stripe_twin.rules.invoice_arithmetic import BalanceMove
from devstack.stripe_twin.rules.invoice_status import InvoiceAction, InvoiceStatus, transition
from devstack.stripe_twin.session import State


def finalize(call: Call) -> dict[str, Any]:
    invoice = _invoice(call)
    if "auto_advance" in call.params:
        invoice["auto_advance"] = call.params["auto_advance"]
    _finalize(call, invoice)
    return _saved(call, invoice)


def finalization_refused(call: Call, error: StripeError) -> None:
    """A draft stays one, with the reason (docs.stripe.com/api/events/types#event_types-invoice.finalization_failed)."""
    invoice = _invoice(call)
    invoice["last_finalization_error"] = {"code": error.code, "message": error.message, "type": error.type}
    emit(call, "invoice.finalization_failed", _saved(call, invoice))


def pay(call: Call) -> dict[str, Any]:
    """Out of band, or with a payment method: the one named, or the default one. A draft is finalized first."""
    invoice = _invoice(call)
    if invoice_object.status(invoice) is InvoiceStatus.DRAFT:
        _finalize(call, invoice)
        if invoice_object.status(invoice) is InvoiceStatus.PAID:
            return _paid(call, invoice)
    paid = transition(invoice_object.status(invoice), InvoiceAction.PAY)
    if not call.params.get("paid_out_of_band"):
        return _charge(call, invoice)
    invoice["status"] = paid.value
    invoice["status_transitions"]["paid_at"] = call.now
    invoice["amount_paid_off_stripe"] = invoice["amount_remaining"]
    invoice["amount_paid"] += invoice["amount_remaining"]
    invoice["amount_remaining"] = 0
    invoice["attempted"] = True
    invoice["auto_advance"] = False
    return _paid(call, invoice)


def _paid(call: Call, invoice: State) -> dict[str, Any]:
    shown = _saved(call, invoice)
    emit(call, "invoice.paid", shown)
    return shown


def _charge(call: Call, invoice: State) -> dict[str, Any]:
    """Charge what remains. A declined charge stays, with its events, though the request is refused (402)."""
    method = payment_methods.method_for(call.session, invoice, call.params.get("payment_method"))
    if method is None:
        raise invalid(
            "There is no `default_payment_method` set on this Customer or Invoice. Please set a "
            "`default_payment_method`."
        )
    failed = payment_methods.is_declined(method)
    payments.attempt(call, invoice, invoice["amount_remaining"], method=method, declined=failed)
    if failed:
        raise payment_methods.declined()
    return render(call.session, invoice)


def void(call: Call) -> dict[str, Any]:
    """The balance that finalizing applied goes back to the customer (``unapplied_from_invoice``)."""
    invoice = _invoice(call)
    invoice["status"] = transition(invoice_object.status(invoice), InvoiceAction.VOID).value
    invoice["status_transitions"]["voided_at"] = call.now
    invoice["auto_advance"] = False
    customer = call.session.find("customer", invoice["customer"])
    if invoice["_applied_balance"] and customer is not None:
        _move(call, invoice, customer, -invoice["_applied_balance"], "unapplied_from_invoice")
        invoice["_applied_balance"] = 0
    return _saved(call, invoice)


def mark_uncollectible(call: Call) -> dict[str, Any]:
    invoice = _invoice(call)
    status = transition(invoice_object.status(invoice), InvoiceAction.MARK_UNCOLLECTIBLE)
    invoice["status"] = status.value
    invoice["status_transitions"]["marked_uncollectible_at"] = call.now
    invoice["auto_advance"] = False
    return _saved(call, invoice)


def send(call: Call) -> dict[str, Any]:
    """The twin sends no mail; it checks what Stripe checks. A draft is finalized first."""
    invoice = _invoice(call)
    if invoice["collection_method"] != "send_invoice":
        raise invalid("You can only manually send an invoice if its collection method is 'send_invoice'.")
    if invoice_object.status(invoice) is InvoiceStatus.DRAFT:
        _finalize(call, invoice)
    transition(invoice_object.status(invoice), InvoiceAction.SEND)
    if not invoice["customer_email"]:
        raise missing_email()
    return _saved(call, invoice)


def advance_draft(call: Call, invoice: State) -> None:
    """What Stripe does with a draft that advances by itself: finalize it, and charge what it can be paid with."""
    _finalize(call, invoice)
    emit(call, "invoice.finalized", _saved(call, invoice))
    method = payment_methods.method_for(call.session, invoice, None)
    if invoice["status"] == InvoiceStatus.OPEN and invoice["collection_method"] == "charge_automatically" and method:
        failed = payment_methods.is_declined(method)
        payments.attempt(call, invoice, invoice["amount_remaining"], method=method, declined=failed)


def _finalize(call: Call, invoice: State) -> None:
    """Freeze the invoice, number it, apply the balance; paid at once if nothing is left to pay."""
    invoice["status"] = transition(invoice_object.status(invoice), InvoiceAction.FINALIZE).value
    customer = invoice_object.customer_of(call.session, invoice)
    invoice_object.freeze_customer(invoice, customer)
    if invoice["number"] is None:
        invoice["number"] = _next_number(call, customer)
    settlement = invoice_object.settlement(invoice, customer)
    invoice["starting_balance"] = customer_object.balance(customer, invoice["currency"])
    invoice["ending_balance"] = settlement.ending_balance
    for kind, amount in settlement.moves:
        _move(call, invoice, customer, amount, kind.value)
        if kind is BalanceMove.APPLIED:
            invoice["_applied_balance"] = amount
    invoice["amount_due"] = invoice["amount_remaining"] = settlement.amount_due
    invoice["status_transitions"]["finalized_at"] = call.now
    invoice["effective_at"] = invoice["effective_at"] or call.now
    invoice["automatically_finalizes_at"] = None
    # Addresses to look at: the twin serves the invoice as JSON, and no PDF.
    page = f"{call.base_url}/_twin/objects/invoice/{invoice['id']}"
    invoice["hosted_invoice_url"], invoice["invoice_pdf"] = page, f"{page}/pdf"
    if settlement.is_paid:
        invoice["status"] = transition(InvoiceStatus.OPEN, InvoiceAction.PAY).value
        invoice["status_transitions"]["paid_at"] = call.now
        invoice["attempted"] = True
        invoice["auto_advance"] = False


def _next_number(call: Call, customer: State) -> str:
    """``PREFIX-0001``, numbered per customer; a number that was given by hand is passed over."""
    while True:
        number = f"{customer['invoice_prefix']}-{customer['next_invoice_sequence']:04d}"
        customer["next_invoice_sequence"] += 1
        if call.session.invoice_with_number(number) is None:
            call.session.update(customer)
            return number


def _move(call: Call, invoice: State, customer: State, amount: int, kind: str) -> None:
    customer_object.move_balance(
        call.session,
        call.ids,
        call.now,
        customer,
        invoice["currency"],
        amount,
        kind,
        invoice=invoice["id"],
    )


def _invoice(call: Call) -> State:
    return call.session.get("invoice", call.target["invoice"])


def _saved(call: Call, invoice: State) -> dict[str, Any]:
    call.session.update(invoice)
    return render(call.session, invoice)


_INVOICE = "/v1/invoices/{invoice}"

ROUTES = (
    Route(
        "POST",
        f"{_INVOICE}/finalize",
        finalize,
        InvoiceFinalizeInvoiceParams,
        frozenset({"auto_advance"}),
        event="invoice.finalized",
    ),
    Route("POST", f"{_INVOICE}/pay", pay, InvoicePayParams, frozenset({"paid_out_of_band", "payment_method"})),
    Route("POST", f"{_INVOICE}/void", void, InvoiceVoidInvoiceParams, event="invoice.voided"),
    Route(
        "POST",
        f"{_INVOICE}/mark_uncollectible",
        mark_uncollectible,
        InvoiceMarkUncollectibleParams,
        event="invoice.marked_uncollectible",
    ),
    Route("POST", f"{_INVOICE}/send", send, InvoiceSendInvoiceParams, event="invoice.sent"),
)
