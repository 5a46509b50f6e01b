"""What customers, banks and Stripe itself do, which no request of ours does: pay, dispute, decide, pay out.

They are called by ``POST /_twin/acts/{name}`` with a test key; each is one transaction, like a request.
Sources: docs.stripe.com/invoicing/integration/workflow-transitions, /disputes/how-disputes-work, /payouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from devstack.stripe_twin.errors import invalid
from devstack.stripe_twin.events import emit
from devstack.stripe_twin.resources import balance, cash_balance, money_objects, payments
from devstack.stripe_twin.routing import Call
from devstack.stripe_twin.rules.invoice_status import InvoiceStatus
from devstack.stripe_twin.session import State


def pay(call: Call) -> dict[str, Any]:
    """A customer pays ``invoice`` on its page: all that remains, or ``amount`` of it; ``fails`` is a declined card.

    More than what remains, or what is paid already, only with ``overpay``: the rest becomes the customer's credit.
    ``settle`` (a currency) and ``rate`` settle it in another currency than it was paid in.
    """
    invoice = call.session.get("invoice", call.params["invoice"])
    if not (invoice["status"] == InvoiceStatus.PAID and call.params.get("overpay")):
        _check_payable(invoice)
    remaining = invoice["amount_remaining"]
    amount = call.params.get("amount") or remaining
    if amount < 1 or (amount > remaining and not call.params.get("overpay")):
        raise invalid("The amount is more than what remains to be paid.", "amount")
    settled_in = (call.params["settle"], call.params["rate"]) if "settle" in call.params else None
    declined = bool(call.params.get("fails"))
    return money_objects.public(payments.attempt(call, invoice, amount, declined=declined, settled_in=settled_in))


def _check_payable(invoice: State) -> None:
    if invoice["status"] not in (InvoiceStatus.OPEN, InvoiceStatus.UNCOLLECTIBLE):
        raise invalid(f"Only open invoices can be paid; this one is {invoice['status']}.")


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
        _give_back(call, made)
    call.session.update(made)
    emit(call, "charge.dispute.closed", money_objects.public(made))
    return money_objects.public(made)


def reinstate(call: Call) -> dict[str, Any]:
    """The bank gives back a ``dispute`` that was lost (docs.stripe.com/api/events/types, funds_reinstated)."""
    made = call.session.get("dispute", call.params["dispute"])
    if made["status"] != "lost":
        raise invalid(f"This dispute is {made['status']}.")
    made["status"] = "won"
    _give_back(call, made)
    emit(call, "charge.dispute.updated", money_objects.public(made))
    return money_objects.public(made)


def _give_back(call: Call, made: State) -> None:
    charge = call.session.get("charge", made["charge"])
    back, currency, rate = money_objects.settled(charge, made["amount"])
    moved = money_objects.add_balance_transaction(
        call, "adjustment", "dispute_reversal", made["id"], back, currency, rate=rate
    )
    made["balance_transactions"].append(moved)
    charge["_disputed_amount"] -= made["amount"]
    call.session.update(charge)
    call.session.update(made)
    emit(call, "charge.dispute.funds_reinstated", money_objects.public(made))


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


def apply_cash(call: Call) -> dict[str, Any]:
    """Somebody pays ``invoice`` (``amount`` of it) with its customer's cash balance, in Stripe by hand."""
    invoice = call.session.get("invoice", call.params["invoice"])
    _check_payable(invoice)
    customer = call.session.get("customer", invoice["customer"])
    held = cash_balance.available(customer, invoice["currency"])
    cash_balance.apply(call, customer, invoice, call.params.get("amount") or min(held, invoice["amount_remaining"]))
    return money_objects.public(invoice)


def transfer_cash(call: Call) -> dict[str, Any]:
    """Stripe moves what ``customer`` has as cash in ``currency``, and nobody applied, to the account's balance."""
    customer = call.session.get("customer", call.params["customer"])
    return money_objects.public(cash_balance.transfer(call, customer, call.params.get("currency", "usd")))


def return_cash(call: Call) -> dict[str, Any]:
    """Somebody sends ``amount`` of the cash of ``customer`` back to its bank, in Stripe by hand."""
    customer, currency = call.session.get("customer", call.params["customer"]), call.params.get("currency", "usd")
    if not 0 < call.params["amount"] <= cash_balance.available(customer, currency):
        raise invalid("There is not so much in the cash balance.", "amount")
    moved = cash_balance.move(call, customer, currency, -call.params["amount"], "return_initiated")
    return money_objects.public(moved)


def reserve(call: Call) -> dict[str, Any]:
    """Stripe holds ``amount`` of ``currency`` in reserve: it leaves the payments balance, and is kept beside it
    (docs.stripe.com/changelog/clover/2026-01-28/monitor-reserve-activity-on-balance-transactions)."""
    currency, amount = call.params.get("currency", "usd"), call.params["amount"]
    kind, category = "reserve_hold", "risk_reserved_funds"
    money_objects.add_balance_transaction(call, kind, category, None, -amount, currency)
    held = money_objects.add_balance_transaction(
        call, kind, category, None, amount, currency, balance_type="risk_reserved"
    )
    return money_objects.public(held)


def payout(call: Call) -> dict[str, Any]:
    """Stripe pays the whole balance of ``currency`` out to the bank."""
    currency = call.params.get("currency", "usd")
    amount = balance.payments(call).get(currency, 0)
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
    "reinstate": reinstate,
    "fail_refund": fail_refund,
    "apply_cash": apply_cash,
    "transfer_cash": transfer_cash,
    "return_cash": return_cash,
    "payout": payout,
    "reserve": reserve,
}
