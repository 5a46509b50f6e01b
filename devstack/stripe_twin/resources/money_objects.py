"""Shapes of what moves money: charges, refunds, disputes, payouts, and the balance transactions that they leave.

Sources: docs.stripe.com: /api/balance_transactions/object, /api/charges/object, /api/refunds/object,
/api/disputes/object, /api/payouts/object, /reports/reporting-categories; stripe.com/pricing (the fees).
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from devstack.stripe_twin.errors import invalid
from devstack.stripe_twin.events import emit
from devstack.stripe_twin.routing import Call
from devstack.stripe_twin.session import State

FEE_PER_MILLE = 29
FEE_FIXED = 30
DISPUTE_FEE = 1500
EVIDENCE_SECONDS = 9 * 24 * 60 * 60


def charge_fee(amount: int) -> int:
    """2.9 % and 30 of the minor unit, halves up."""
    return (amount * FEE_PER_MILLE + 500) // 1000 + FEE_FIXED


def settled(charge: State, amount: int) -> tuple[int, str, str | None]:
    """An amount of a charge in the currency that it was settled in, with that currency and the rate."""
    if "_settled_in" not in charge:
        return amount, charge["currency"], None
    rate = Decimal(charge["_rate"])
    return int((amount * rate).to_integral_value(ROUND_HALF_UP)), charge["_settled_in"], charge["_rate"]


def add_balance_transaction(
    call: Call, kind: str, category: str, source: str | None, amount: int, currency: str, fee: int = 0,
    rate: str | None = None, balance_type: str = "payments",
) -> State:  # fmt: skip
    """Money moves: ``amount`` is positive where it comes in, and ``net`` is what is left of it after the fee."""
    description = "Dispute fee" if category == "dispute" else "Stripe processing fees"
    details = [{"amount": fee, "application": None, "currency": currency, "description": description,
                "type": "stripe_fee"}] if fee else []  # fmt: skip
    transaction: State = {
        "id": call.ids.new("txn"),
        "object": "balance_transaction",
        "amount": amount,
        "available_on": call.told_at,
        "balance_type": balance_type,
        "created": call.told_at,
        "currency": currency,
        "description": None,
        "exchange_rate": None if rate is None else float(rate),
        "fee": fee,
        "fee_details": details,
        "net": amount - fee,
        "reporting_category": category,
        "source": source,
        "status": "available",
        "type": kind,
    }
    call.session.insert(transaction, call.told_at)
    return transaction


def new_charge(call: Call, amount: int, invoice: State, intent: str, method: str | None) -> State:
    """What a payment intent of an invoice has charged."""
    return {
        "id": call.ids.new("ch"),
        "object": "charge",
        "amount": amount,
        "amount_captured": amount,
        "amount_refunded": 0,
        "balance_transaction": None,
        "captured": True,
        "created": call.now,
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "description": None,
        "disputed": False,
        "failure_code": None,
        "failure_message": None,
        "livemode": False,
        "metadata": {},
        "paid": True,
        "payment_intent": intent,
        "payment_method": method,
        "refunded": False,
        "status": "succeeded",
        "_disputed_amount": 0,
        "_invoice": invoice["id"],
    }


def new_invoice_payment(call: Call, invoice: State, charge: State, requested: int) -> State:
    """What ties a charge to its invoice: docs.stripe.com/api/invoice-payment/object."""
    paid = bool(charge["paid"])
    return {
        "id": call.ids.new("inpay"),
        "object": "invoice_payment",
        "amount_paid": charge["amount"] if paid else None,
        "amount_requested": requested,
        "created": call.now,
        "currency": invoice["currency"],
        "invoice": invoice["id"],
        "is_default": False,
        "livemode": False,
        "payment": {
            "charge": None,
            "payment_intent": charge["payment_intent"],
            "payment_record": None,
            "type": "payment_intent",
        },
        "status": "paid" if paid else "open",
        "status_transitions": {"canceled_at": None, "paid_at": call.now if paid else None},
    }


def refundable(charge: State) -> int:
    """What is left of a charge to give back."""
    left: int = charge["amount_captured"] - charge["amount_refunded"] - charge["_disputed_amount"]
    return left


def refund_charge(call: Call, charge: State, amount: int, reason: str | None, metadata: dict[str, str]) -> State:
    """Give back ``amount`` of a charge; its fee is kept. Raises StripeError (400)."""
    left = refundable(charge)
    if left <= 0:
        raise invalid(f"Charge {charge['id']} has already been refunded.", "charge", "charge_already_refunded")
    if not 0 < amount <= left:
        raise invalid(f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})", "amount")
    refund = new_refund(call, charge, amount, reason, metadata)
    moved, currency, rate = settled(charge, -amount)
    transaction = add_balance_transaction(call, "refund", "refund", refund["id"], moved, currency, rate=rate)
    refund["balance_transaction"] = transaction["id"]
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] == charge["amount"]
    call.session.insert(refund, call.now)
    call.session.update(charge)
    emit(call, "charge.refunded", public(charge))
    return refund


def new_refund(call: Call, charge: State, amount: int, reason: str | None, metadata: dict[str, str]) -> State:
    return {
        "id": call.ids.new("re"),
        "object": "refund",
        "amount": amount,
        "balance_transaction": None,
        "charge": charge["id"],
        "created": call.now,
        "currency": charge["currency"],
        "failure_balance_transaction": None,
        "failure_reason": None,
        "metadata": metadata,
        "payment_intent": charge["payment_intent"],
        "reason": reason,
        "receipt_number": None,
        "status": "succeeded",
    }


def new_dispute(call: Call, charge: State, amount: int) -> State:
    return {
        "id": call.ids.new("du"),
        "object": "dispute",
        "amount": amount,
        "balance_transactions": [],
        "charge": charge["id"],
        "created": call.now,
        "currency": charge["currency"],
        "enhanced_eligibility_types": [],
        "evidence": {},
        "evidence_details": {
            "due_by": call.now + EVIDENCE_SECONDS,
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
        },
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "reason": "general",
        "status": "needs_response",
    }


def new_payout(call: Call, amount: int, currency: str) -> State:
    return {
        "id": call.ids.new("po"),
        "object": "payout",
        "amount": amount,
        "arrival_date": call.now,
        "automatic": True,
        "balance_transaction": None,
        "created": call.now,
        "currency": currency,
        "description": "STRIPE PAYOUT",
        "destination": None,
        "failure_balance_transaction": None,
        "failure_code": None,
        "livemode": False,
        "metadata": {},
        "method": "standard",
        "status": "paid",
        "type": "bank_account",
    }


def public(state: State) -> dict[str, Any]:
    """As Stripe shows it."""
    return {name: value for name, value in state.items() if not name.startswith("_")}
