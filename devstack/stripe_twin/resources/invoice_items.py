"""Invoice items: docs.stripe.com/api/invoiceitems."""

from __future__ import annotations

from typing import Any

from stripe.params._invoice_item_create_params import InvoiceItemCreateParams
from stripe.params._invoice_item_delete_params import InvoiceItemDeleteParams
from stripe.params._invoice_item_list_params import InvoiceItemListParams
from stripe.params._invoice_item_retrieve_params import InvoiceItemRetrieveParams
from stripe.params._invoice_item_update_params import InvoiceItemUpdateParams

from devstack.stripe_twin.errors import invalid, parameter_missing
from devstack.stripe_twin.resources import customer_object, invoice_item_object, invoice_object
from devstack.stripe_twin.resources.attributes import PAGE_PARAMS, filters
from devstack.stripe_twin.resources.invoice_item_object import ITEM_PARAMS
from devstack.stripe_twin.resources.rendering import render, rendered_page
from devstack.stripe_twin.routing import Call, Route
from devstack.stripe_twin.rules.currencies import check_currency
from devstack.stripe_twin.rules.invoice_status import check_draft
from devstack.stripe_twin.session import PRESENT, State

_FILTERS = frozenset({"created", "customer", "invoice"})


def create(call: Call) -> dict[str, Any]:
    """With ``invoice`` the item becomes a line of that draft at once; without, it is pending."""
    params = call.params
    invoice = _draft(call, params.get("invoice"))
    customer_id = params.get("customer") or (invoice["customer"] if invoice else None)
    if customer_id is None:
        raise parameter_missing("customer")
    customer = call.session.get("customer", customer_id, "customer")
    currency = _currency(params.get("currency"), invoice, customer)
    invoice_item_object.require_amount(params)
    item = invoice_item_object.new_item(call.ids.new("ii"), call.now, customer["id"], currency)
    invoice_item_object.apply(item, params)
    customer_object.adopt_currency(call.session, customer, currency)
    if invoice is not None:
        if invoice["customer"] != customer["id"]:
            raise invalid("The invoice belongs to another customer.", "invoice")
        invoice_object.attach(call.ids, invoice, item)
        call.session.update(invoice)
    call.session.insert(item, call.now)
    return render(call.session, item)


def _currency(given: str | None, invoice: State | None, customer: State) -> str:
    if given:
        currency = check_currency(given)
        if invoice is not None and currency != invoice["currency"]:
            raise invalid(
                f"The currency of the invoice item ({currency}) must match the currency of the invoice "
                f"({invoice['currency']}).",
                "currency",
            )
        return currency
    inherited: str | None = invoice["currency"] if invoice is not None else customer["currency"]
    if inherited is None:
        raise parameter_missing("currency")
    return inherited


def retrieve(call: Call) -> dict[str, Any]:
    return render(call.session, call.session.get("invoiceitem", call.target["item"]))


def update(call: Call) -> dict[str, Any]:
    """Also on a draft, whose totals follow; an item of a finalized invoice is refused."""
    item = call.session.get("invoiceitem", call.target["item"])
    invoice = _draft(call, item["invoice"])
    before = item["amount"]
    invoice_item_object.apply(item, {name: call.params[name] for name in call.params if name != "expand"})
    call.session.update(item)
    if invoice is not None:
        invoice_object.add_to_totals(invoice, item["amount"] - before)
        call.session.update(invoice)
    return render(call.session, item)


def delete(call: Call) -> dict[str, Any]:
    """ "Deleting invoice items is only possible when they're not attached to invoices, or if it's attached to a
    draft invoice"."""
    item = call.session.get("invoiceitem", call.target["item"])
    invoice = _draft(call, item["invoice"])
    if invoice is not None:
        invoice_object.detach(invoice, item)
        call.session.update(invoice)
    return call.session.delete(item)


def list_items(call: Call) -> dict[str, Any]:
    chosen = filters(call.params, _FILTERS)
    pending = call.params.get("pending")
    if pending is not None and "invoice" not in chosen:
        chosen["invoice"] = None if pending else PRESENT
    return rendered_page(call, "invoiceitem", chosen, "/v1/invoiceitems")


def _draft(call: Call, invoice_id: str | None) -> State | None:
    if invoice_id is None:
        return None
    invoice = call.session.get("invoice", invoice_id, "invoice")
    check_draft(invoice_object.status(invoice))
    return invoice


_ITEM = "/v1/invoiceitems/{item}"

ROUTES = (
    Route(
        "POST",
        "/v1/invoiceitems",
        create,
        InvoiceItemCreateParams,
        ITEM_PARAMS | {"currency", "customer", "invoice"},
        event="invoiceitem.created",
    ),
    Route("GET", "/v1/invoiceitems", list_items, InvoiceItemListParams, _FILTERS | PAGE_PARAMS | {"pending"}),
    Route("GET", _ITEM, retrieve, InvoiceItemRetrieveParams),
    Route("POST", _ITEM, update, InvoiceItemUpdateParams, ITEM_PARAMS),
    Route("DELETE", _ITEM, delete, InvoiceItemDeleteParams, event="invoiceitem.deleted"),
)
