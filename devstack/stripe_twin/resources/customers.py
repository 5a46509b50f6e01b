"""Customers: docs.stripe.com/api/customers."""

from __future__ import annotations

import re
from typing import Any

from stripe.params._customer_create_params import CustomerCreateParams
from stripe.params._customer_delete_params import CustomerDeleteParams
from stripe.params._customer_list_params import CustomerListParams
from stripe.params._customer_retrieve_params import CustomerRetrieveParams
from stripe.params._customer_update_params import CustomerUpdateParams

from devstack.stripe_twin.errors import invalid
from devstack.stripe_twin.resources import customer_object, test_clocks
from devstack.stripe_twin.resources.attributes import PAGE_PARAMS, address, chosen, filters, unset_to_none
from devstack.stripe_twin.resources.rendering import render, rendered_page
from devstack.stripe_twin.routing import Call, Route
from devstack.stripe_twin.rules.metadata import merge
from devstack.stripe_twin.session import State, deleted_object

_PLAIN = frozenset({"description", "email", "name", "phone", "preferred_locales"})
_WRITABLE = _PLAIN | {
    "address",
    "balance",
    "invoice_prefix",
    "invoice_settings",
    "metadata",
    "next_invoice_sequence",
    "shipping",
    "tax_exempt",
}
_FILTERS = frozenset({"email", "created", "test_clock"})

_PREFIX = re.compile(r"[A-Z0-9]{3,12}\Z")
_MAX_NAME = 256
_MAX_EMAIL = 512


def create(call: Call) -> dict[str, Any]:
    customer = customer_object.new_customer(call.ids.new("cus"), call.now, call.ids.invoice_prefix())
    _apply(customer, call.params)
    if "test_clock" in call.params:
        test_clocks.join(call.session, call.params["test_clock"], customer)
    call.session.insert(customer, call.now)
    _set_balance(call, customer, "initial")
    return render(call.session, customer)


def retrieve(call: Call) -> dict[str, Any]:
    """A deleted customer is still found, in the shape of a deleted object."""
    customer_id = call.target["customer"]
    if call.session.is_deleted("customer", customer_id):
        return deleted_object("customer", customer_id)
    return render(call.session, call.session.get("customer", customer_id))


def update(call: Call) -> dict[str, Any]:
    customer = call.session.get("customer", call.target["customer"])
    _apply(customer, call.params)
    call.session.update(customer)
    _set_balance(call, customer, "adjustment")
    return render(call.session, customer)


def delete(call: Call) -> dict[str, Any]:
    """The customer goes, with its pending items; its invoices stay. One with a cash balance cannot go, even of 0."""
    customer = call.session.get("customer", call.target["customer"])
    if customer.get("_cash"):
        raise invalid("You cannot delete a customer with a cash balance.")
    for item in call.session.pending_items(customer["id"]):
        call.session.delete(item)
    return call.session.delete(customer)


def list_customers(call: Call) -> dict[str, Any]:
    """Those under a test clock only where it is named."""
    chosen = {"test_clock": None, **filters(call.params, _FILTERS)}
    return rendered_page(call, "customer", chosen, "/v1/customers")


def _apply(customer: State, params: dict[str, Any]) -> None:
    _check(params)
    customer.update(chosen(params, _PLAIN))
    customer["preferred_locales"] = customer["preferred_locales"] or []
    customer["metadata"] = merge(customer["metadata"], params.get("metadata"))
    if "address" in params:
        customer["address"] = address(params["address"])
    if "shipping" in params:
        shipping = params["shipping"]
        customer["shipping"] = shipping and {
            "address": address(shipping["address"]),
            "name": shipping["name"],
            "phone": unset_to_none(shipping.get("phone")),
        }
        customer["shipping"] = unset_to_none(customer["shipping"])
    for name, value in params.get("invoice_settings", {}).items():
        customer["invoice_settings"][name] = unset_to_none(value)
    if "tax_exempt" in params:
        customer["tax_exempt"] = params["tax_exempt"] or "none"
    for name in ("invoice_prefix", "next_invoice_sequence"):
        if name in params:
            customer[name] = params[name]


def _check(params: dict[str, Any]) -> None:
    email = params.get("email")
    if email and ("@" not in email[1:-1] or len(email) > _MAX_EMAIL or " " in email):
        raise invalid(f"Invalid email address: {email}", "email", "email_invalid")
    if len(params.get("name", "")) > _MAX_NAME:
        raise invalid(f"Invalid string: name must be at most {_MAX_NAME} characters", "name")
    if "invoice_prefix" in params and not _PREFIX.match(params["invoice_prefix"]):
        raise invalid("Invalid invoice prefix: it must be 3–12 uppercase letters or numbers.", "invoice_prefix")
    if params.get("next_invoice_sequence", 1) < 1:
        raise invalid("Invalid integer: next_invoice_sequence must be at least 1.", "next_invoice_sequence")


def _set_balance(call: Call, customer: State, kind: str) -> None:
    """``balance`` sets the balance; the difference becomes a balance transaction."""
    if "balance" not in call.params:
        return
    currency = customer["currency"] or customer_object.DEFAULT_CURRENCY
    difference = call.params["balance"] - customer_object.balance(customer, currency)
    if difference:
        customer_object.move_balance(call.session, call.ids, call.now, customer, currency, difference, kind)


ROUTES = (
    Route("POST", "/v1/customers", create, CustomerCreateParams, _WRITABLE | {"test_clock"}, event="customer.created"),
    Route("GET", "/v1/customers", list_customers, CustomerListParams, _FILTERS | PAGE_PARAMS),
    Route("GET", "/v1/customers/{customer}", retrieve, CustomerRetrieveParams),
    Route("POST", "/v1/customers/{customer}", update, CustomerUpdateParams, _WRITABLE, event="customer.updated"),
    Route("DELETE", "/v1/customers/{customer}", delete, CustomerDeleteParams, event="customer.deleted"),
)
