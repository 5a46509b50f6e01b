"""Cash balances: what customers sent by bank transfer, and what becomes of it.

Sources: docs.stripe.com/api/cash_balance, /api/cash_balance_transactions, docs.stripe.com/payments/customer-balance,
/payments/customer-balance/reconciliation (automatic: an invoice of exactly that amount first, then the others).
The money is no part of the account's balance until it is applied to a payment or transferred.
"""

from __future__ import annotations

from typing import Any, Final

from stripe.params._customer_cash_balance_retrieve_params import CustomerCashBalanceRetrieveParams
from stripe.params._customer_cash_balance_transaction_list_params import CustomerCashBalanceTransactionListParams
from stripe.params._customer_cash_balance_transaction_retrieve_params import (
    CustomerCashBalanceTransactionRetrieveParams,
)
from stripe.params._customer_cash_balance_update_params import CustomerCashBalanceUpdateParams
from stripe.params._customer_fund_cash_balance_params import CustomerFundCashBalanceParams

from devstack.stripe_twin.errors import invalid, resource_missing
from devstack.stripe_twin.events import emit
from devstack.stripe_twin.resources import money_objects, payments
from devstack.stripe_twin.resources.attributes import PAGE_PARAMS
from devstack.stripe_twin.resources.rendering import render, rendered_page
from devstack.stripe_twin.routing import Call, Route
from devstack.stripe_twin.rules.currencies import check_currency
from devstack.stripe_twin.session import State

KIND: Final = "customer_cash_balance_transaction"
METHOD: Final = {"id": None, "type": "customer_balance"}
_DETAILS: Final = (
    "adjusted_for_overdraft", "applied_to_payment", "funded", "refunded_from_payment", "transferred_to_balance",
    "unapplied_from_payment",
)  # fmt: skip


def show(customer: State) -> dict[str, Any]:
    """A customer's cash balance."""
    mode = customer.get("_cash_mode")
    return {
        "object": "cash_balance",
        "available": customer.get("_cash"),
        "customer": customer["id"],
        "customer_account": None,
        "livemode": False,
        "settings": {"reconciliation_mode": mode or "automatic", "using_merchant_default": mode is None},
    }


def available(customer: State, currency: str) -> int:
    """What a customer has in a currency."""
    amount: int = (customer.get("_cash") or {}).get(currency, 0)
    return amount


def update(call: Call) -> dict[str, Any]:
    customer = _customer(call)
    mode = (call.params.get("settings") or {}).get("reconciliation_mode")
    if mode is not None:
        customer["_cash_mode"] = None if mode == "merchant_default" else mode
    call.session.update(customer)
    return show(customer)


def fund(call: Call) -> dict[str, Any]:
    """A bank transfer comes in, as in a sandbox; it is applied to open invoices unless that is done by hand."""
    customer, currency = _customer(call), check_currency(call.params["currency"])
    amount = call.params["amount"]
    if amount < 1:
        raise invalid("Invalid positive integer", "amount", "parameter_invalid_integer")
    transfer = {
        "eu_bank_transfer": None, "gb_bank_transfer": None, "jp_bank_transfer": None,
        "reference": call.params.get("reference"), "type": "us_bank_transfer",
        "us_bank_transfer": {"network": "ach", "sender_name": customer["name"]},
    }  # fmt: skip
    made = move(call, customer, currency, amount, "funded", {"bank_transfer": transfer})
    if customer.get("_cash_mode") != "manual":
        _apply_all(call, customer, currency)
    if left := available(customer, currency):
        shown = {**show(customer), "available": {currency: left}}
        emit(call, "cash_balance.funds_available", shown)
    return render(call.session, made)


def _apply_all(call: Call, customer: State, currency: str) -> None:
    opened = [i for i in call.session.of_customer("invoice", customer["id"], "open") if i["currency"] == currency]
    for invoice in sorted(opened, key=lambda each: each["amount_remaining"] != available(customer, currency)):
        if amount := min(invoice["amount_remaining"], available(customer, currency)):
            apply(call, customer, invoice, amount)


def apply(call: Call, customer: State, invoice: State, amount: int) -> None:
    """Pay so much of an invoice with it."""
    if not 0 < amount <= min(available(customer, invoice["currency"]), invoice["amount_remaining"]):
        raise invalid("The amount is more than the customer's cash balance, or what remains to be paid.", "amount")
    charge = payments.attempt(call, invoice, amount, method=METHOD, kind="payment")
    move(
        call, customer, invoice["currency"], -amount, "applied_to_payment",
        {"payment_intent": charge["payment_intent"]},
    )  # fmt: skip


def move(
    call: Call, customer: State, currency: str, amount: int, kind: str, details: dict[str, Any] | None = None
) -> State:
    """Change a cash balance, and record why."""
    ending = available(customer, currency) + amount
    customer["_cash"] = {**(customer.get("_cash") or {}), currency: ending}
    call.session.update(customer)
    made: State = {
        "id": call.ids.new("ccsbtxn"),
        "object": KIND,
        **dict.fromkeys(_DETAILS),
        "created": call.told_at,
        "currency": currency,
        "customer": customer["id"],
        "customer_account": None,
        "ending_balance": ending,
        "livemode": False,
        "net_amount": amount,
        "type": kind,
    }
    if details is not None:
        made[kind] = details
    call.session.insert(made, call.told_at)
    emit(call, f"{KIND}.created", render(call.session, made))
    return made


def transfer(call: Call, customer: State, currency: str) -> State:
    """What nobody applied for long goes to the account's balance: docs.stripe.com/payments/customer-balance."""
    amount = available(customer, currency)
    if amount <= 0:
        raise invalid("There is nothing in the cash balance.")
    made = move(call, customer, currency, -amount, "transferred_to_balance", {"balance_transaction": None})
    moved = money_objects.add_balance_transaction(
        call, "payment_unreconciled", "unreconciled_customer_funds", made["id"], amount, currency
    )
    made["transferred_to_balance"]["balance_transaction"] = moved["id"]
    call.session.update(made)
    return made


def retrieve(call: Call) -> dict[str, Any]:
    found = call.session.get(KIND, call.target["transaction"])
    if found["customer"] != call.target["customer"]:
        raise resource_missing(KIND, call.target["transaction"])
    return render(call.session, found)


def list_transactions(call: Call) -> dict[str, Any]:
    customer = _customer(call)["id"]
    return rendered_page(call, KIND, {"customer": customer}, _TRANSACTIONS.format(customer=customer))


def _customer(call: Call) -> State:
    return call.session.get("customer", call.target["customer"])


_CASH = "/v1/customers/{customer}/cash_balance"
_TRANSACTIONS = "/v1/customers/{customer}/cash_balance_transactions"

ROUTES = (
    Route("GET", _CASH, lambda call: show(_customer(call)), CustomerCashBalanceRetrieveParams),
    Route("POST", _CASH, update, CustomerCashBalanceUpdateParams, frozenset({"settings"})),
    Route("GET", _TRANSACTIONS, list_transactions, CustomerCashBalanceTransactionListParams, PAGE_PARAMS),
    Route("GET", f"{_TRANSACTIONS}/{{transaction}}", retrieve, CustomerCashBalanceTransactionRetrieveParams),
    Route(
        "POST", "/v1/test_helpers/customers/{customer}/fund_cash_balance", fund, CustomerFundCashBalanceParams,
        frozenset({"amount", "currency", "reference"}),
    ),
)  # fmt: skip
