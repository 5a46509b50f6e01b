"""A credit note's shape and its lines: docs.stripe.com/api/credit_notes/object, /api/credit_notes/line_item."""

from __future__ import annotations

from typing import Any

from devstack.stripe_twin.rules.pagination import list_object
from devstack.stripe_twin.session import Session, State

EMBEDDED_LINES = 10


def new_credit_note(note_id: str, now: int, invoice: State, amount: int, number: str) -> State:
    return {
        "id": note_id,
        "object": "credit_note",
        "amount": amount,
        "amount_shipping": 0,
        "created": now,
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "customer_account": None,
        "customer_balance_transaction": None,
        "discount_amount": 0,
        "discount_amounts": [],
        "effective_at": now,
        "invoice": invoice["id"],
        "livemode": False,
        "memo": None,
        "metadata": {},
        "number": number,
        "out_of_band_amount": None,
        "pdf": "",
        "post_payment_amount": 0,
        "pre_payment_amount": 0,
        "pretax_credit_amounts": [],
        "reason": None,
        "refunds": [],
        "shipping_cost": None,
        "status": "issued",
        "subtotal": amount,
        "subtotal_excluding_tax": amount,
        "total": amount,
        "total_excluding_tax": amount,
        "total_taxes": [],
        "type": "pre_payment",
        "voided_at": None,
        "_lines": [],
    }


def new_line(
    line_id: str,
    amount: int,
    description: str | None,
    quantity: int,
    invoice_line: str | None,
    metadata: dict[str, str],
) -> State:
    """A line; one that names no line of the invoice is a custom one."""
    unit = None if invoice_line else amount // quantity
    return {
        "id": line_id,
        "object": "credit_note_line_item",
        "amount": amount,
        "description": description,
        "discount_amount": 0,
        "discount_amounts": [],
        "invoice_line_item": invoice_line,
        "livemode": False,
        "metadata": metadata,
        "pretax_credit_amounts": [],
        "quantity": quantity,
        "tax_rates": [],
        "taxes": [],
        "type": "invoice_line_item" if invoice_line else "custom_line_item",
        "unit_amount": unit,
        "unit_amount_decimal": None if unit is None else str(unit),
    }


def render(session: Session, note: State) -> dict[str, Any]:
    shown = {name: value for name, value in note.items() if not name.startswith("_")}
    lines = note["_lines"][:EMBEDDED_LINES]
    url = f"/v1/credit_notes/{note['id']}/lines"
    shown["lines"] = list_object(url, lines, len(note["_lines"]) > len(lines))
    return shown
