"""What customers, banks and Stripe itself do, which no request of ours does: pay, dispute, decide, pay out.

They are called by ``POST /_twin/acts/{name}`` with a test key; each is one transaction, like a request.
Sources: docs.stripe.com/invoicing/integration/workflow-transitions, /disputes/how-disputes-work, /payouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from devstack.stripe_twin.errors import invalid
from devstack.stripe_twin.events import emit
from devstack.stripe_twin.resources import customer_object, invoice_object, money_objects
from devstack.stripe_twin.resources.rendering import render
from devstack.stripe_twin.routing import Call
from devstack.stripe_twin.rules.invoice_status import InvoiceStatus
from devstack.stripe_twin.session import State


def pay(call: Call) -> dict[str, Any]:
    """A customer pays ``invoice`` on its page: all that remains, or ``amount`` of it; ``fails`` is a declined card.

    More than what remains, or what is paid already, only with ``overpay``: the rest becomes the customer's credit.
    ``settle`` (a currency) and ``rate`` settle it in another currency than it was paid in.
    """
    invoice = call.session.get("invoice", call.params["invoice"])
    again = invoice["status"] == InvoiceStatus.PAID and bool(call.params.get("overpay"))
    if invoice["status"] not in (InvoiceStatus.OPEN, InvoiceStatus.UNCOLLECTIBLE) and not again:
        raise invalid(f"Only open invoices can be paid; this one is {invoice['status']}.")
    remaining = invoice["amount_remaining"]
    amount = call.params.get("amount") or remaining
    if amount < 1 or (amount > remaining and not call.params.get("overpay")):
        raise invalid("The amount is more than what remains to be paid.", "amount")
    charge = money_objects.new_charge(call, amount, invoice["currency"], invoice["customer"], invoice["id"])
    invoice["attempted"], invoice["attempt_count"] = True, invoice["attempt_count"] + 1
    if call.params.get("fails"):
        charge |= {"paid": False, "captured": False, "amount_captured": 0, "status": "failed"}
        charge |= {"failure_code": "card_declined", "failure_message": "Your card was declined."}
        call.session.insert(charge, call.now)
        call.session.insert(money_objects.new_invoice_payment(call, invoice, charge, amount), call.now)
        call.session.update(invoice)
        emit(call, "charge.failed", money_objects.public(charge))
        emit(call, "invoice.payment_failed", render(call.session, invoice))
        return money_objects.public(charge)
    if "settle" in call.params:
        charge |= {"_settled_in": call.params["settle"], "_rate": call.params["rate"]}
    came, currency, rate = money_objects.settled(charge, amount)
    fee = money_objects.charge_fee(came)
    moved = money_objects.add_balance_transaction(call, "charge", "charge", charge["id"], came, currency, fee, rate)
    charge["balance_transaction"] = moved["id"]
    call.session.insert(charge, call.now)
    call.session.insert(money_objects.new_invoice_payment(call, invoice, charge, amount), call.now)
    _take(call, invoice, amount)
    call.session.update(invoice)
    emit(call, "charge.succeeded", money_objects.public(charge))
    paid = invoice["amount_remaining"] == 0 and not again
    emit(call, "invoice.paid" if paid else "invoice.updated", render(call.session, invoice))
    return money_objects.public(charge)


def _take(call: Call, invoice: State, amount: int) -> None:
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


def dispute(call: Call) -> dict[str, Any]:
    """A bank takes back a charge, or ``amount`` of it; Stripe asks a fee for it. An ``inquiry`` moves nothing."""
    charge = call.session.get("charge", call.params["charge"])
    left = charge["amount"] - charge["amount_refunded"] - charge["_disputed_amount"]
    amount = call.params.get("amount") or left
    if not 0 < amount <= left:
        raise invalid("There is not so much left of the charge to dispute.", "amount")
    made = money_objects.new_dispute(call, charge, amount)
    charge["disputed"] = True
    if call.params.get("inquiry"):
        made |= {"status": "warning_needs_response", "is_charge_refundable": True}
    else:
        taken, currency, rate = money_objects.settled(charge, -amount)
        moved = money_objects.add_balance_transaction(
            call, "adjustment", "dispute", made["id"], taken, currency, money_objects.DISPUTE_FEE, rate
        )
        made["balance_transactions"].append(moved)
        charge["_disputed_amount"] += amount
    call.session.insert(made, call.now)
    call.session.update(charge)
    emit(call, "charge.dispute.created", money_objects.public(made))
    if made["balance_transactions"]:
        emit(call, "charge.dispute.funds_withdrawn", money_objects.public(made))
    return money_objects.public(made)


def decide(call: Call) -> dict[str, Any]:
    """The bank decides a dispute: ``won`` gives the amount back, not the fee. An inquiry is closed."""
    made = call.session.get("dispute", call.params["dispute"])
    inquiry = made["status"].startswith("warning_")
    if made["status"] not in ("needs_response", "under_review", "warning_needs_response", "warning_under_review"):
        raise invalid(f"This dispute is {made['status']} already.")
    made["status"] = "warning_closed" if inquiry else "won" if call.params["won"] else "lost"
    if made["status"] == "won":
        charge = call.session.get("charge", made["charge"])
        back, currency, rate = money_objects.settled(charge, made["amount"])
        moved = money_objects.add_balance_transaction(
            call, "adjustment", "dispute_reversal", made["id"], back, currency, rate=rate
        )
        made["balance_transactions"].append(moved)
        charge["_disputed_amount"] -= made["amount"]
        call.session.update(charge)
        emit(call, "charge.dispute.funds_reinstated", money_objects.public(made))
    call.session.update(made)
    emit(call, "charge.dispute.closed", money_objects.public(made))
    return money_objects.public(made)


def fail_refund(call: Call) -> dict[str, Any]:
    """The payer's bank does not take ``refund``: its money comes back (docs.stripe.com/refunds#failed-refunds)."""
    refund = call.session.get("refund", call.params["refund"])
    if refund["status"] != "succeeded":
        raise invalid(f"This refund is {refund['status']} already.")
    charge = call.session.get("charge", refund["charge"])
    back, currency, rate = money_objects.settled(charge, refund["amount"])
    moved = money_objects.add_balance_transaction(
        call, "refund_failure", "refund_failure", refund["id"], back, currency, rate=rate
    )
    refund |= {"status": "failed", "failure_reason": "unknown", "failure_balance_transaction": moved["id"]}
    charge["amount_refunded"] -= refund["amount"]
    charge["refunded"] = False
    notes = call.session.all("credit_note")
    linked = any(each["refund"] == refund["id"] for note in notes for each in note["refunds"])
    invoice = call.session.find("invoice", charge.get("_invoice") or "")
    if invoice is not None and not linked:
        invoice["_refunded"] -= refund["amount"]
        call.session.update(invoice)
    call.session.update(refund)
    call.session.update(charge)
    emit(call, "refund.failed", money_objects.public(refund))
    return money_objects.public(refund)


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
    "fail_refund": fail_refund,
    "payout": payout,
}
