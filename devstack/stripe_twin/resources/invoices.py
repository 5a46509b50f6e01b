"""Invoices: docs.stripe.com/api/invoices; their lines and transitions are in modules of their own."""

from __future__ import annotations

from typing import Any

from stripe.params._invoice_create_params import InvoiceCreateParams
from stripe.params._invoice_delete_params import InvoiceDeleteParams
from stripe.params._invoice_list_params import InvoiceListParams
from stripe.params._invoice_retrieve_params import InvoiceRetrieveParams
from stripe.params._invoice_update_params import InvoiceUpdateParams

from devstack.stripe_twin.errors import StripeError, invalid, missing_email, parameters_exclusive, unsupported
from devstack.stripe_twin.resources import customer_object, invoice_object
from devstack.stripe_twin.resources.attributes import PAGE_PARAMS, chosen, filters
from devstack.stripe_twin.resources.rendering import render, rendered_page
from devstack.stripe_twin.routing import Call, Route
from devstack.stripe_twin.rules.currencies import check_currency
from devstack.stripe_twin.rules.invoice_status import InvoiceAction, InvoiceStatus, check_editable, transition
from devstack.stripe_twin.rules.metadata import merge
from devstack.stripe_twin.session import State

_PLAIN = frozenset({
    "auto_advance", "collection_method", "custom_fields", "default_payment_method", "description", "effective_at",
    "footer",
})  # fmt: skip
_WRITABLE = _PLAIN | {
    "automatic_tax",
    "days_until_due",
    "default_tax_rates",
    "discounts",
    "due_date",
    "metadata",
    "number",
}
_ONLY_AT_CREATION = frozenset({"currency", "customer", "pending_invoice_items_behavior"})
_FILTERS = frozenset({"collection_method", "created", "customer", "due_date", "status"})
_DAY = 24 * 60 * 60
_HOUR = 60 * 60
"""So long after it is made a draft with ``auto_advance`` is finalized; the twin does it under test clocks alone."""


def create(call: Call) -> dict[str, Any]:
    params = call.params
    customer = call.session.get("customer", params["customer"], "customer")
    given = params.get("currency")
    currency = check_currency(given) if given else customer["currency"] or customer_object.DEFAULT_CURRENCY
    invoice = invoice_object.new_invoice(call.ids.new("in"), call.now, customer["id"], currency)
    invoice["test_clock"] = customer["test_clock"]
    _apply(call, invoice)
    customer_object.adopt_currency(call.session, customer, currency)
    if params.get("pending_invoice_items_behavior") == "include":
        _pull_pending_items(call, invoice)
    call.session.insert(invoice, call.now)
    return render(call.session, invoice)


def _pull_pending_items(call: Call, invoice: State) -> None:
    """Up to 250 pending items of the invoice's currency, "the remainder to be added on the next invoice"
    (docs.stripe.com/invoicing/multi-currency-customers): the oldest go first, the newest is the first line."""
    pending = [
        item for item in call.session.pending_items(invoice["customer"]) if item["currency"] == invoice["currency"]
    ]
    if not pending:
        raise invalid("Nothing to invoice for customer", "customer", "invoice_no_customer_line_items")
    for item in pending[-invoice_object.MAX_ITEMS :]:
        invoice_object.attach(call.ids, invoice, item)
        item["_was_pending"] = True
        call.session.update(item)


def retrieve(call: Call) -> dict[str, Any]:
    return render(call.session, call.session.get("invoice", call.target["invoice"]))


def update(call: Call) -> dict[str, Any]:
    invoice = call.session.get("invoice", call.target["invoice"])
    check_editable(invoice_object.status(invoice), call.params.keys() - {"expand"})
    _apply(call, invoice)
    call.session.update(invoice)
    return render(call.session, invoice)


def delete(call: Call) -> dict[str, Any]:
    """Drafts only. Items that were pending before become pending again, the others go with the draft."""
    invoice = call.session.get("invoice", call.target["invoice"])
    transition(invoice_object.status(invoice), InvoiceAction.DELETE)
    for item in call.session.items_of_invoice(invoice["id"]):
        if item["_was_pending"]:
            invoice_object.detach(invoice, item)
            call.session.update(item)
        else:
            call.session.delete(item)
    return call.session.delete(invoice)


def list_invoices(call: Call) -> dict[str, Any]:
    return rendered_page(call, "invoice", filters(call.params, _FILTERS), "/v1/invoices")


def _apply(call: Call, invoice: State) -> None:
    params = call.params
    if params.get("automatic_tax", {}).get("enabled"):
        raise unsupported("automatic_tax[enabled]", " = true")
    for name in ("default_tax_rates", "discounts"):
        if params.get(name):
            raise unsupported(name, " other than empty")
    email = call.session.get("customer", invoice["customer"])["email"]
    if params.get("collection_method") == "send_invoice" and not email:
        raise missing_email()
    invoice.update(chosen(params, _PLAIN))
    invoice["metadata"] = merge(invoice["metadata"], params.get("metadata"))
    _apply_due_date(params, invoice)
    if invoice["status"] == InvoiceStatus.DRAFT:
        alone = invoice["auto_advance"] and invoice["test_clock"]
        invoice["automatically_finalizes_at"] = invoice["created"] + _HOUR if alone else None
    if "number" in params:
        _check_number_is_free(call, invoice, params["number"])
        invoice["number"] = params["number"] or None


def _apply_due_date(params: dict[str, Any], invoice: State) -> None:
    if "days_until_due" in params and "due_date" in params:
        raise parameters_exclusive(("days_until_due", "due_date"))
    if invoice["collection_method"] != "send_invoice":
        for name in ("days_until_due", "due_date"):
            if name in params:
                raise invalid(f"`{name}` can only be set if `collection_method` is `send_invoice`.", name)
        invoice["due_date"] = invoice["_days_until_due"] = None
        return
    if "due_date" in params:
        invoice["due_date"], invoice["_days_until_due"] = params["due_date"], None
    elif "days_until_due" in params:
        if params["days_until_due"] < 0:
            raise invalid("Invalid integer: days_until_due must not be negative.", "days_until_due")
        invoice["_days_until_due"] = params["days_until_due"]
        invoice["due_date"] = invoice["created"] + params["days_until_due"] * _DAY
    if invoice["due_date"] is None:
        raise invalid(
            "If `collection_method` is `send_invoice`, you must specify `days_until_due` or `due_date`.",
            "days_until_due",
            "parameter_missing",
        )


def _check_number_is_free(call: Call, invoice: State, number: str) -> None:
    holder = call.session.invoice_with_number(number) if number else None
    if holder not in (None, invoice["id"]):
        raise _number_taken(number)


def _number_taken(number: str) -> StripeError:
    return invalid(f"The invoice number {number} is already in use.", "number")


ROUTES = (
    Route(
        "POST",
        "/v1/invoices",
        create,
        InvoiceCreateParams,
        _WRITABLE | _ONLY_AT_CREATION,
        requires=("customer",),
        event="invoice.created",
    ),
    Route("GET", "/v1/invoices", list_invoices, InvoiceListParams, _FILTERS | PAGE_PARAMS),
    Route("GET", "/v1/invoices/{invoice}", retrieve, InvoiceRetrieveParams),
    Route("POST", "/v1/invoices/{invoice}", update, InvoiceUpdateParams, _WRITABLE, event="invoice.updated"),
    Route("DELETE", "/v1/invoices/{invoice}", delete, InvoiceDeleteParams, event="invoice.deleted"),
)
