"""An invoice's shape, its lines and its totals.

Source: docs.stripe.com/api/invoices/object. While an invoice is a draft, what depends on its customer
(``customer_name``, ``starting_balance``, ``amount_due``, …) follows the customer and is worked out when shown;
finalizing freezes it.
"""

from __future__ import annotations

from typing import Any

from devstack.stripe_twin.errors import invalid
from devstack.stripe_twin.ids import Ids
from devstack.stripe_twin.resources import customer_object
from devstack.stripe_twin.resources.invoice_item_object import render_line
from devstack.stripe_twin.rules.currencies import maximum_charge, minimum_charge
from devstack.stripe_twin.rules.invoice_arithmetic import Settlement, settle
from devstack.stripe_twin.rules.invoice_status import InvoiceStatus
from devstack.stripe_twin.rules.pagination import list_object
from devstack.stripe_twin.session import Session, State

MAX_ITEMS = 250
"""docs.stripe.com/changelog/2016-02-22/no-more-than-250-invoice-items."""

EMBEDDED_LINES = 10
"""``lines`` inside an invoice shows the first page only; the rest comes from ``/lines``."""

COPIED_FROM_CUSTOMER = ("address", "email", "name", "phone", "shipping", "tax_exempt")


def new_invoice(invoice_id: str, now: int, customer: str, currency: str) -> State:
    return {
        "id": invoice_id,
        "object": "invoice",
        "account_country": "US",
        "account_name": "Stripe twin",
        "account_tax_ids": None,
        "amount_due": 0,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_paid_off_stripe": None,
        "amount_remaining": 0,
        "amount_shipping": 0,
        "application": None,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": False,
        "automatic_tax": {
            "disabled_reason": None,
            "enabled": False,
            "liability": None,
            "provider": None,
            "status": None,
        },
        "automatically_finalizes_at": None,
        "billing_reason": "manual",
        "collection_method": "charge_automatically",
        "created": now,
        "currency": currency,
        "custom_fields": None,
        "customer": customer,
        "customer_account": None,
        "customer_address": None,
        "customer_email": None,
        "customer_name": None,
        "customer_phone": None,
        "customer_shipping": None,
        "customer_tax_exempt": None,
        "customer_tax_ids": [],
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "due_date": None,
        "effective_at": None,
        "ending_balance": None,
        "footer": None,
        "from_invoice": None,
        "hosted_invoice_url": None,
        "invoice_pdf": None,
        "issuer": {"type": "self"},
        "last_finalization_error": None,
        "latest_revision": None,
        "livemode": False,
        "metadata": {},
        "next_payment_attempt": None,
        "number": None,
        "on_behalf_of": None,
        "parent": None,
        "payment_settings": {
            "default_mandate": None,
            "payment_method_options": None,
            "payment_method_types": None,
        },
        "period_end": now,
        "period_start": now,
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "receipt_number": None,
        "rendering": None,
        "shipping_cost": None,
        "shipping_details": None,
        "starting_balance": 0,
        "statement_descriptor": None,
        "status": InvoiceStatus.DRAFT.value,
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "subtotal": 0,
        "subtotal_excluding_tax": 0,
        "test_clock": None,
        "threshold_reason": None,
        "total": 0,
        "total_discount_amounts": [],
        "total_excluding_tax": 0,
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
        "webhooks_delivered_at": now,
        "_item_count": 0,
        "_next_position": 0,
        "_days_until_due": None,
        "_applied_balance": 0,
    }


def status(invoice: State) -> InvoiceStatus:
    return InvoiceStatus(invoice["status"])


def customer_of(session: Session, invoice: State) -> State:
    """The invoice's customer; a deleted one is refused, as a reference to nothing."""
    return session.get("customer", invoice["customer"], "customer")


def settlement(invoice: State, customer: State) -> Settlement:
    """What finalizing now would demand."""
    currency = invoice["currency"]
    balance = customer_object.balance(customer, currency)
    return settle(invoice["total"], balance, minimum_charge(currency), maximum_charge(currency))


def attach(ids: Ids, invoice: State, item: State) -> None:
    """Make ``item`` the invoice's last line; the caller saves both."""
    if invoice["_item_count"] >= MAX_ITEMS:
        raise invalid(
            f"You can only have up to {MAX_ITEMS} invoice items on an invoice. This invoice has reached it.",
            "invoice",
        )
    item["invoice"] = invoice["id"]
    item["_line_id"] = ids.new("il")
    item["_position"] = invoice["_next_position"]
    invoice["_next_position"] += 1
    add_to_totals(invoice, item["amount"], items=1)


def detach(invoice: State, item: State) -> None:
    """Make ``item`` pending again; the caller saves both."""
    add_to_totals(invoice, -item["amount"], items=-1)
    item["invoice"] = item["_line_id"] = item["_position"] = None


def add_to_totals(invoice: State, amount: int, items: int = 0) -> None:
    """Without discounts and taxes all totals are the sum of the lines."""
    invoice["_item_count"] += items
    for name in ("subtotal", "subtotal_excluding_tax", "total", "total_excluding_tax"):
        invoice[name] += amount


def freeze_customer(invoice: State, customer: State) -> None:
    for name in COPIED_FROM_CUSTOMER:
        invoice[f"customer_{name}"] = customer[name]


def render(session: Session, invoice: State) -> dict[str, Any]:
    shown = {name: value for name, value in invoice.items() if not name.startswith("_")}
    if status(invoice) is InvoiceStatus.DRAFT:
        customer = session.find("customer", invoice["customer"])
        if customer is not None:
            freeze_customer(shown, customer)
            shown["starting_balance"] = customer_object.balance(customer, invoice["currency"])
            due = settlement(invoice, customer).amount_due
            shown["amount_due"] = shown["amount_remaining"] = due
    items = session.items_of_invoice(invoice["id"], EMBEDDED_LINES)
    lines = [render_line(item) for item in items]
    shown["lines"] = {
        **list_object(f"/v1/invoices/{invoice['id']}/lines", lines, invoice["_item_count"] > len(lines)),
        "total_count": invoice["_item_count"],
    }
    return shown
