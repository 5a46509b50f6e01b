"""Invoice items and the lines they make.

Sources: docs.stripe.com/api/invoiceitems/object, docs.stripe.com/api/invoice-line-item ("Each line item is
backed by either an invoice item or a subscription item"; the twin has no subscriptions, so a line is its item
seen through the invoice). An attached item carries its line's id and its place in ``_line_id``, ``_position``.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from devstack.stripe_twin.errors import invalid, parameter_missing, parameters_exclusive, unsupported
from devstack.stripe_twin.resources.attributes import unset_to_none
from devstack.stripe_twin.rules.currencies import check_amount
from devstack.stripe_twin.rules.invoice_arithmetic import line_amount
from devstack.stripe_twin.rules.metadata import merge
from devstack.stripe_twin.session import Session, State

AMOUNT_PARAMS = frozenset({"amount", "unit_amount_decimal", "quantity", "quantity_decimal"})
ITEM_PARAMS = AMOUNT_PARAMS | {"description", "discountable", "discounts", "metadata", "period", "tax_rates"}


def new_item(item_id: str, now: int, customer: str, currency: str) -> State:
    return {
        "id": item_id,
        "object": "invoiceitem",
        "amount": 0,
        "currency": currency,
        "customer": customer,
        "customer_account": None,
        "date": now,
        "description": None,
        "discountable": True,
        "discounts": [],
        "frozen_fields": None,
        "invoice": None,
        "invoicing_rules": None,
        "livemode": False,
        "metadata": {},
        "net_amount": 0,
        "parent": None,
        "period": {"start": now, "end": now},
        "pricing": None,
        "proration": False,
        "proration_details": None,
        "quantity": 1,
        "quantity_decimal": "1",
        "tax_rates": [],
        "test_clock": None,
        "_unit_amount_decimal": "0",
        "_line_id": None,
        "_position": None,
        "_was_pending": False,
    }


def apply(item: State, params: dict[str, Any], prefix: str = "") -> None:
    """Set what ``params`` give; ``prefix`` names the line in error messages (``lines[3]``)."""
    for name in ("discounts", "tax_rates"):
        if params.get(name):
            raise unsupported(_named(prefix, name), " other than empty")
    _apply_amount(item, params, prefix)
    if "description" in params:
        item["description"] = unset_to_none(params["description"])
    if "discountable" in params:
        item["discountable"] = params["discountable"]
    item["metadata"] = merge(item["metadata"], params.get("metadata"))
    period = params.get("period")
    if period:
        if period["end"] < period["start"]:
            raise invalid("The end of the period must be greater than or equal to the start.", _named(prefix, "period"))
        item["period"] = {"start": period["start"], "end": period["end"]}


def _apply_amount(item: State, params: dict[str, Any], prefix: str) -> None:
    given = AMOUNT_PARAMS & params.keys()
    if not given:
        return
    if "amount" in given:
        for other in ("unit_amount_decimal", "quantity", "quantity_decimal"):
            if other in given:
                raise parameters_exclusive((_named(prefix, "amount"), _named(prefix, other)))
        unit, quantity = Decimal(params["amount"]), Decimal(1)
    else:
        if {"quantity", "quantity_decimal"} <= given:
            raise parameters_exclusive((_named(prefix, "quantity"), _named(prefix, "quantity_decimal")))
        unit = params.get("unit_amount_decimal", Decimal(item["_unit_amount_decimal"]))
        quantity = Decimal(params.get("quantity_decimal", params.get("quantity", Decimal(item["quantity_decimal"]))))
    if quantity < 0:
        raise invalid("Invalid quantity: it must be greater than or equal to 0.", _named(prefix, "quantity"))
    amount = check_amount(line_amount(unit, quantity), item["currency"], _named(prefix, "amount"))
    item["amount"] = item["net_amount"] = amount
    item["quantity"] = int(quantity)  # "truncated to an integer": changelog 2026-03-25, quantity_decimal
    item["quantity_decimal"] = decimal_string(quantity)
    item["_unit_amount_decimal"] = decimal_string(unit)
    item["pricing"] = {
        "price_details": None,
        "type": "price_details",
        "unit_amount_decimal": item["_unit_amount_decimal"],
    }


def require_amount(params: dict[str, Any], prefix: str = "") -> None:
    if "amount" not in params and "unit_amount_decimal" not in params:
        raise parameter_missing(_named(prefix, "amount"))


def decimal_string(value: Decimal) -> str:
    """Plain digits, without exponent and trailing zeros: 1E+2 → "100", 0.50 → "0.5"."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def render(session: Session, state: State) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.startswith("_")}


def render_line(item: State) -> dict[str, Any]:
    """The attached item as a line of its invoice."""
    return {
        "id": item["_line_id"],
        "object": "line_item",
        "amount": item["amount"],
        "currency": item["currency"],
        "description": item["description"],
        "discount_amounts": [],
        "discountable": item["discountable"],
        "discounts": [],
        "invoice": item["invoice"],
        "livemode": False,
        "metadata": item["metadata"],
        "parent": {
            "invoice_item_details": {
                "invoice_item": item["id"],
                "proration": False,
                "proration_details": {"credited_items": None},
                "subscription": None,
            },
            "subscription_item_details": None,
            "type": "invoice_item_details",
        },
        "period": item["period"],
        "pretax_credit_amounts": [],
        "pricing": item["pricing"],
        "quantity": item["quantity"],
        "quantity_decimal": item["quantity_decimal"],
        "subscription": None,
        "subtotal": item["amount"],
        "taxes": [],
    }


def _named(prefix: str, name: str) -> str:
    return f"{prefix}[{name}]" if prefix else name
