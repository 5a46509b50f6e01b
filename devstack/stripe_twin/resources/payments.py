"""Paying an invoice: the payment intent, charge and invoice payment that it leaves, and what the invoice is then.

Sources: docs.stripe.com/api/payment_intents/object, /api/charges/object, /api/invoice-payment/object,
/payments/paymentintents/lifecycle.
"""

from __future__ import annotations

from typing import Any

from devstack.stripe_twin.events import emit
from devstack.stripe_twin.resources import customer_object, invoice_object, money_objects
from devstack.stripe_twin.resources.rendering import render
from devstack.stripe_twin.routing import Call
from devstack.stripe_twin.rules.invoice_status import InvoiceStatus
from devstack.stripe_twin.session import State

DECLINED = "Your card was declined."


def attempt(
    call: Call, invoice: State, amount: int, *, method: State | None = None, declined: bool = False,
    settled_in: tuple[str, str] | None = None, kind: str = "charge",
) -> State:  # fmt: skip
    """Try to pay ``amount`` of an invoice: the charge, which has failed where it was ``declined``.

    ``settled_in`` (currency, rate) settles it in another currency. ``kind`` is the type of the balance transaction.
    """
    intent = _new_intent(call, invoice, amount, method)
    charge = money_objects.new_charge(call, amount, invoice, intent["id"], intent["payment_method"])
    intent["latest_charge"] = charge["id"]
    invoice["attempted"], invoice["attempt_count"] = True, invoice["attempt_count"] + 1
    if declined:
        charge |= {"paid": False, "captured": False, "amount_captured": 0, "status": "failed"}
        charge |= {"failure_code": "card_declined", "failure_message": DECLINED}
        intent |= {"status": "requires_payment_method", "amount_received": 0}
        intent["last_payment_error"] = {"code": "card_declined", "message": DECLINED, "type": "card_error"}
    else:
        if settled_in is not None:
            charge |= {"_settled_in": settled_in[0], "_rate": settled_in[1]}
        came, currency, rate = money_objects.settled(charge, amount)
        fee = money_objects.charge_fee(came)
        moved = money_objects.add_balance_transaction(call, kind, "charge", charge["id"], came, currency, fee, rate)
        charge["balance_transaction"] = moved["id"]
    for made in (intent, charge, money_objects.new_invoice_payment(call, invoice, charge, amount)):
        call.session.insert(made, call.now)
    again = invoice["status"] == InvoiceStatus.PAID
    if not declined:
        _take(call, invoice, amount)
    call.session.update(invoice)
    emit(call, "charge.failed" if declined else "charge.succeeded", money_objects.public(charge))
    emit(call, f"payment_intent.{'payment_failed' if declined else 'succeeded'}", money_objects.public(intent))
    paid = invoice["amount_remaining"] == 0 and not again
    happened = "payment_failed" if declined else "paid" if paid else "updated"
    emit(call, f"invoice.{happened}", render(call.session, invoice))
    return charge


def _take(call: Call, invoice: State, amount: int) -> None:
    """What is beyond what remains becomes the customer's credit."""
    over = max(0, amount - invoice["amount_remaining"])
    invoice["amount_paid"] += amount - over
    invoice["amount_remaining"] -= amount - over
    if invoice["amount_remaining"] == 0:
        invoice["status"] = InvoiceStatus.PAID.value
        invoice["status_transitions"]["paid_at"] = call.now
    if over:
        invoice["amount_overpaid"] += over
        customer = invoice_object.customer_of(call.session, invoice)
        customer_object.move_balance(
            call.session, call.ids, call.now, customer, invoice["currency"], -over, "invoice_overpaid",
            invoice=invoice["id"],
        )  # fmt: skip


def _new_intent(call: Call, invoice: State, amount: int, method: State | None) -> State:
    name = call.ids.new("pi")
    intent: dict[str, Any] = {
        "id": name,
        "object": "payment_intent",
        "amount": amount,
        "amount_capturable": 0,
        "amount_received": amount,
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": "automatic",
        "client_secret": f"{name}_secret_{call.ids.new('s')[2:]}",
        "confirmation_method": "automatic",
        "created": call.now,
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "description": None,
        "last_payment_error": None,
        "latest_charge": None,
        "livemode": False,
        "metadata": {},
        "next_action": None,
        "payment_method": method["id"] if method else None,
        "payment_method_types": [method["type"] if method else "card"],
        "receipt_email": None,
        "status": "succeeded",
    }
    return intent
