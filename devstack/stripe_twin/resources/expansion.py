"""``expand[]``: replacing an id by the object it names.

Source: docs.stripe.com/expand: dots go down, ``data.`` goes into a list, at most four levels; what is not
expandable is an error.
"""

from __future__ import annotations

from typing import Any

from devstack.stripe_twin.errors import StripeError, invalid
from devstack.stripe_twin.resources.rendering import render
from devstack.stripe_twin.session import Session, deleted_object

MAX_DEPTH = 4

_REFERENCES = {
    ("invoice", "customer"): "customer",
    ("invoiceitem", "customer"): "customer",
    ("invoiceitem", "invoice"): "invoice",
    ("customer_balance_transaction", "customer"): "customer",
    ("customer_balance_transaction", "invoice"): "invoice",
    ("balance_transaction", "source"): "",
    ("credit_note", "customer"): "customer",
    ("credit_note", "invoice"): "invoice",
    ("charge", "balance_transaction"): "balance_transaction",
    ("charge", "customer"): "customer",
    ("charge", "payment_intent"): "payment_intent",
    ("payment_intent", "customer"): "customer",
    ("payment_intent", "latest_charge"): "charge",
    ("customer_cash_balance_transaction", "customer"): "customer",
    ("dispute", "charge"): "charge",
    ("refund", "balance_transaction"): "balance_transaction",
    ("refund", "charge"): "charge",
    ("payout", "balance_transaction"): "balance_transaction",
}
"""What an id refers to; "" where its prefix tells."""
_PREFIXES = {
    "ch": "charge", "re": "refund", "du": "dispute", "po": "payout", "ccsbtxn": "customer_cash_balance_transaction",
}  # fmt: skip
_ALWAYS_THERE = frozenset(
    {("credit_note", "lines"), ("invoice", "lines"), ("invoice", "discounts"), ("line_item", "discounts")}
)
_CURRENCY_BALANCES = ("customer", "invoice_credit_balance")


def expand(session: Session, shown: dict[str, Any], paths: list[str]) -> dict[str, Any]:
    """``shown`` with every path expanded. Raises StripeError (400)."""
    for path in paths:
        steps = path.split(".")
        if len(steps) > MAX_DEPTH:
            raise invalid(f"You cannot expand more than {MAX_DEPTH} levels of a property ({path}).", "expand")
        _expand(session, shown, steps, path)
    return shown


def _expand(session: Session, shown: dict[str, Any], steps: list[str], path: str) -> None:
    if not steps:
        return
    step, rest = steps[0], steps[1:]
    if shown.get("object") == "list":
        if step != "data":
            raise _not_expandable(path)
        for entry in shown["data"]:
            _expand(session, entry, rest, path)
        return
    place = (str(shown.get("object")), step)
    if place == _CURRENCY_BALANCES:
        shown[step] = _currency_balances(session, shown["id"])
    elif place in _REFERENCES:
        if isinstance(shown[step], str):
            shown[step] = _referenced(session, _REFERENCES[place], shown[step])
        if isinstance(shown[step], dict):
            _expand(session, shown[step], rest, path)
    elif place in _ALWAYS_THERE:
        if isinstance(shown[step], dict):
            _expand(session, shown[step], rest, path)
    else:
        raise _not_expandable(path)


def _referenced(session: Session, kind: str, object_id: str) -> dict[str, Any]:
    kind = kind or _PREFIXES[object_id.partition("_")[0]]
    state = session.find(kind, object_id)
    return deleted_object(kind, object_id) if state is None else render(session, state)


def _currency_balances(session: Session, customer_id: str) -> dict[str, int]:
    """Here, unlike in ``balance``, "If positive in a currency, the customer has a credit"."""
    customer = session.get("customer", customer_id)
    return {currency: -amount for currency, amount in customer["_balances"].items()}


def _not_expandable(path: str) -> StripeError:
    return invalid(f"This property cannot be expanded ({path}).", "expand")
