"""The shapes of replies against the SDK's own resource classes, which come from Stripe's specification."""

from __future__ import annotations

import typing
from typing import Any

import pytest
import stripe

from devstack.stripe_twin.resources import (
    cash_balance,
    credit_note_object,
    customer_object,
    invoice_item_object,
    invoice_object,
)

INCLUDED_ON_EXPAND: dict[str, set[str]] = {
    "cash_balance": set(),
    "credit_note": set(),
    "credit_note_line_item": set(),
    "customer": {"cash_balance", "invoice_credit_balance", "sources", "subscriptions", "tax", "tax_ids"},
    "invoice": {"confirmation_secret", "payments"},
    "invoiceitem": set(),
    "line_item": set(),
}
"""docs.stripe.com/expand: "includable" attributes are shown on request only; the twin has none of these but
``invoice_credit_balance``."""

ONLY_WHERE_IT_APPLIES = {"deleted", "business_name", "individual_name", "status_details"}


def item() -> dict[str, Any]:
    return invoice_item_object.new_item("ii_1", 1, "cus_1", "usd")


def note() -> dict[str, Any]:
    invoice = invoice_object.new_invoice("in_1", 1, "cus_1", "usd")
    return credit_note_object.new_credit_note("cn_1", 1, invoice, 1, "A-CN-01")


@pytest.mark.parametrize(
    ("resource", "shape"),
    [
        (stripe.Customer, customer_object.new_customer("cus_1", 1, "ABC")),
        (stripe.CashBalance, cash_balance.show({"id": "cus_1"})),
        (stripe.Invoice, {**invoice_object.new_invoice("in_1", 1, "cus_1", "usd"), "lines": {}}),
        (stripe.CreditNote, {**note(), "lines": {}}),
        (stripe.CreditNoteLineItem, credit_note_object.new_line("cnli_1", 1, "x", 1, None, {})),
        (stripe.InvoiceItem, item()),
        (stripe.InvoiceLineItem, invoice_item_object.render_line(item())),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_object_has_the_attributes_that_the_sdk_knows(resource: Any, shape: dict[str, Any]) -> None:
    known = {
        name
        for name, hint in resource.__annotations__.items()
        if not name.startswith("_") and typing.get_origin(hint) is not typing.ClassVar and name.islower()
    }
    shown = {name for name in shape if not name.startswith("_")}
    assert shown - known == set(), "attributes that Stripe does not have"
    left_out = known - shown - INCLUDED_ON_EXPAND[shape["object"]] - ONLY_WHERE_IT_APPLIES
    assert left_out == set(), "attributes that Stripe shows and the twin does not"
