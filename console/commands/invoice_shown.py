"""How an invoice's document is shown on a terminal."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from billing.money import currency as currency_of
from billing.money import from_minor
from console.output import listing, out


def print_invoice(found: dict[str, Any]) -> None:
    """An invoice with its lines."""
    number, state = found["number"] or "without a number", found["state"]
    out.print(f"Invoice {number} ({state}) for {found['billing_account']}, {found['period']}", style="bold")
    lines = [line | {"amount": major(line["amount"], found)} for line in found["lines"]]
    listing(lines, ("line_key", "token_class", "model", "quantity", "unit_price", "amount_exact", "amount"))
    out.print(f"exact {found['exact_total']}, rounding {found['rounding']}")
    out.print(f"total {major(found['total'], found)} {found['currency']}", style="bold")
    if found["stripe_invoice_id"]:
        out.print(f"Stripe {found['stripe_invoice_id']}: {found['hosted_invoice_url']}")
    for reason in (found["reason_not_in_stripe"], found["parked_because"]):
        if reason:
            out.print(reason)


def major(minor: int, found: dict[str, Any]) -> Decimal:
    """Minor units as major units of the invoice's currency."""
    return from_minor(minor, currency_of(found["currency"], datetime.fromisoformat(found["service_end"]).date()))
