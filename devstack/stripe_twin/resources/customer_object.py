"""A customer's shape and its balances.

Source: docs.stripe.com/api/customers/object. Balances are kept per currency
(docs.stripe.com/invoicing/multi-currency-customers); ``balance`` shows the one in the customer's own currency.
"""

from __future__ import annotations

from typing import Any

from devstack.stripe_twin.ids import Ids
from devstack.stripe_twin.session import Session, State

DEFAULT_CURRENCY = "usd"
"""The account's currency: a balance set before the customer has a currency is in this one."""


def new_customer(customer_id: str, now: int, invoice_prefix: str) -> State:
    return {
        "id": customer_id,
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": now,
        "currency": None,
        "customer_account": None,
        "default_source": None,
        "delinquent": False,
        "description": None,
        "discount": None,
        "email": None,
        "invoice_prefix": invoice_prefix,
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": {},
        "name": None,
        "next_invoice_sequence": 1,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
        "_balances": {},
    }


def render(session: Session, state: State) -> dict[str, Any]:
    shown = {name: value for name, value in state.items() if not name.startswith("_")}
    shown["balance"] = balance(state, state["currency"] or DEFAULT_CURRENCY)
    return shown


def balance(customer: State, currency: str) -> int:
    """Minor units; negative is the customer's credit."""
    amount: int = customer["_balances"].get(currency, 0)
    return amount


def adopt_currency(session: Session, customer: State, currency: str) -> None:
    """The first currency a customer is billed in becomes the customer's currency."""
    if customer["currency"] is None:
        customer["currency"] = currency
        session.update(customer)


def move_balance(
    session: Session,
    ids: Ids,
    now: int,
    customer: State,
    currency: str,
    amount: int,
    kind: str,
    *,
    invoice: str | None = None,
    description: str | None = None,
    metadata: dict[str, str] | None = None,
) -> State:
    """Change the balance by ``amount`` (positive: owed) and record why, as one balance transaction.

    Source: docs.stripe.com/api/customer_balance_transactions/object (types, ``ending_balance``).
    """
    ending = balance(customer, currency) + amount
    customer["_balances"][currency] = ending
    customer["currency"] = customer["currency"] or currency
    session.update(customer)
    transaction: State = {
        "id": ids.new("cbtxn"),
        "object": "customer_balance_transaction",
        "amount": amount,
        "checkout_session": None,
        "created": now,
        "credit_note": None,
        "currency": currency,
        "customer": customer["id"],
        "customer_account": None,
        "description": description,
        "ending_balance": ending,
        "invoice": invoice,
        "livemode": False,
        "metadata": metadata or {},
        "type": kind,
    }
    session.insert(transaction, now)
    return transaction
