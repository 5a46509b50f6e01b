"""What customers, banks and Stripe itself do, which no request of ours does: pay, dispute, decide, pay out.

They are called by ``POST /_twin/acts/{name}`` with a test key; each is one transaction, like a request.
Sources: docs.stripe.com/invoicing/integration/workflow-transitions, /disputes/how-disputes-work, /payouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from devstack.stripe_twin.errors import invalid
from devstack.stripe_twin.events import emit
from devstack.stripe_twin.resources import money_objects
from devstack.stripe_twin.resources.rendering import render
from devstack.stripe_twin.routing import Call
from devstack.stripe_twin.rules.invoice_status import InvoiceStatus


def pay(call: Call) -> dict[str, Any]:
    """A customer pays ``invoice`` on its page: all that remains, or ``amount`` of it; ``fails`` is a declined card."""
    invoice = call.session.get("invoice", call.params["invoice"])
    if invoice["status"] not in (InvoiceStatus.OPEN, InvoiceStatus.UNCOLLECTIBLE):
        raise invalid(f"Only open invoices can be paid; this one is {invoice['status']}.")
    amount = call.params.get("amount") or invoice["amount_remaining"]
    if not 0 < amount <= invoice["amount_remaining"]:
        raise invalid("The amount is more than what remains to be paid.", "amount")
    charge = money_objects.new_charge(call, amount, invoice["currency"], invoice["customer"])
    invoice["attempted"], invoice["attempt_count"] = True, invoice["attempt_count"] + 1
    if call.params.get("fails"):
        charge |= {"paid": False, "captured": False, "amount_captured": 0, "status": "failed"}
        charge |= {"failure_code": "card_declined", "failure_message": "Your card was declined."}
        call.session.insert(charge, call.now)
        call.session.update(invoice)
        emit(call, "charge.failed", money_objects.public(charge))
        emit(call, "invoice.payment_failed", render(call.session, invoice))
        return money_objects.public(charge)
    fee = money_objects.charge_fee(amount)
    moved = money_objects.add_balance_transaction(
        call, "charge", "charge", charge["id"], amount, invoice["currency"], fee
    )
    charge["balance_transaction"] = moved["id"]
    call.session.insert(charge, call.now)
    invoice["amount_paid"] += amount
    invoice["amount_remaining"] -= amount
    if invoice["amount_remaining"] == 0:
        invoice["status"] = InvoiceStatus.PAID.value
        invoice["status_transitions"]["paid_at"] = call.now
    call.session.update(invoice)
    emit(call, "charge.succeeded", money_objects.public(charge))
    paid = invoice["amount_remaining"] == 0
    emit(call, "invoice.paid" if paid else "invoice.updated", render(call.session, invoice))
    return money_objects.public(charge)


def dispute(call: Call) -> dict[str, Any]:
    """A bank takes back a charge, or ``amount`` of it; Stripe asks a fee for it."""
    charge = call.session.get("charge", call.params["charge"])
    left = charge["amount"] - charge["amount_refunded"] - charge["_disputed_amount"]
    amount = call.params.get("amount") or left
    if not 0 < amount <= left:
        raise invalid("There is not so much left of the charge to dispute.", "amount")
    made = money_objects.new_dispute(call, charge, amount)
    moved = money_objects.add_balance_transaction(
        call, "adjustment", "dispute", made["id"], -amount, charge["currency"], money_objects.DISPUTE_FEE
    )
    made["balance_transactions"].append(moved)
    charge["disputed"], charge["_disputed_amount"] = True, charge["_disputed_amount"] + amount
    call.session.insert(made, call.now)
    call.session.update(charge)
    emit(call, "charge.dispute.created", money_objects.public(made))
    emit(call, "charge.dispute.funds_withdrawn", money_objects.public(made))
    return money_objects.public(made)


def decide(call: Call) -> dict[str, Any]:
    """The bank decides a dispute: ``won`` gives the amount back, not the fee."""
    made = call.session.get("dispute", call.params["dispute"])
    if made["status"] not in ("needs_response", "under_review"):
        raise invalid(f"This dispute is {made['status']} already.")
    made["status"] = "won" if call.params["won"] else "lost"
    if call.params["won"]:
        moved = money_objects.add_balance_transaction(
            call, "adjustment", "dispute_reversal", made["id"], made["amount"], made["currency"]
        )
        made["balance_transactions"].append(moved)
        emit(call, "charge.dispute.funds_reinstated", money_objects.public(made))
    call.session.update(made)
    emit(call, "charge.dispute.closed", money_objects.public(made))
    return money_objects.public(made)


def payout(call: Call) -> dict[str, Any]:
    """Stripe pays the whole balance of ``currency`` out to the bank."""
    currency = call.params.get("currency", "usd")
    amount = call.session.sum_of("balance_transaction", "net", "currency", currency)
    if amount <= 0:
        raise invalid("There is no balance to pay out.")
    made = money_objects.new_payout(call, amount, currency)
    moved = money_objects.add_balance_transaction(call, "payout", "payout", made["id"], -amount, currency)
    made["balance_transaction"] = moved["id"]
    call.session.insert(made, call.now)
    emit(call, "payout.paid", money_objects.public(made))
    return money_objects.public(made)


ACTS: dict[str, Callable[[Call], dict[str, Any]]] = {
    "pay": pay,
    "dispute": dispute,
    "decide": decide,
    "payout": payout,
}
