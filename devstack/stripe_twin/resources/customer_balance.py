"""Customer balance transactions: docs.stripe.com/api/customer_balance_transactions."""

from __future__ import annotations

from typing import Any

from stripe.params._customer_create_balance_transaction_params import CustomerCreateBalanceTransactionParams
from stripe.params._customer_list_balance_transactions_params import CustomerListBalanceTransactionsParams
from stripe.params._customer_retrieve_balance_transaction_params import (
    CustomerRetrieveBalanceTransactionParams,
)

from devstack.stripe_twin.errors import invalid, resource_missing
from devstack.stripe_twin.resources import customer_object
from devstack.stripe_twin.resources.attributes import PAGE_PARAMS, filters, unset_to_none
from devstack.stripe_twin.resources.rendering import render, rendered_page
from devstack.stripe_twin.routing import Call, Route
from devstack.stripe_twin.rules.currencies import check_currency
from devstack.stripe_twin.rules.metadata import merge

_KIND = "customer_balance_transaction"
_FILTERS = frozenset({"created", "invoice"})
_COLLECTION = "/v1/customers/{customer}/balance_transactions"


def create(call: Call) -> dict[str, Any]:
    """An adjustment made by hand; a positive amount is owed by the customer."""
    customer = call.session.get("customer", call.target["customer"])
    if call.params["amount"] == 0:
        raise invalid("Invalid amount: it must not be 0.", "amount")
    transaction = customer_object.move_balance(
        call.session,
        call.ids,
        call.now,
        customer,
        check_currency(call.params["currency"]),
        call.params["amount"],
        "adjustment",
        description=unset_to_none(call.params.get("description")),
        metadata=merge({}, call.params.get("metadata")),
    )
    return render(call.session, transaction)


def retrieve(call: Call) -> dict[str, Any]:
    transaction = call.session.get(_KIND, call.target["transaction"])
    if transaction["customer"] != call.target["customer"]:
        raise resource_missing(_KIND, call.target["transaction"])
    return render(call.session, transaction)


def list_transactions(call: Call) -> dict[str, Any]:
    """Also those of a deleted customer: they are its history."""
    customer_id = call.target["customer"]
    if not call.session.is_deleted("customer", customer_id):
        call.session.get("customer", customer_id)
    chosen = {**filters(call.params, _FILTERS), "customer": customer_id}
    return rendered_page(call, _KIND, chosen, _COLLECTION.format(customer=customer_id))


ROUTES = (
    Route(
        "POST",
        _COLLECTION,
        create,
        CustomerCreateBalanceTransactionParams,
        frozenset({"amount", "currency", "description", "metadata"}),
    ),
    Route(
        "GET",
        _COLLECTION,
        list_transactions,
        CustomerListBalanceTransactionsParams,
        _FILTERS | PAGE_PARAMS,
    ),
    Route("GET", f"{_COLLECTION}/{{transaction}}", retrieve, CustomerRetrieveBalanceTransactionParams),
)
