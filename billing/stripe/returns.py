"""What Stripe tells of what happened there: events, balance transactions, disputes; as our types."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from billing.errors import EventRefused
from billing.invoicing.correcting import CORRECTION
from billing.posting.stripe_money import CREDIT_NOTE, BalanceTransaction, CashMove
from billing.stripe.returns_store import UNREADABLE, StripeEvent
from billing.stripe.stripe_gateway import StripeGateway

TOLERANCE_S: Final = 300
"""How old a signed webhook may be: https://docs.stripe.com/webhooks#replay-attacks."""
SENT: Final = "invoice.sent"
NOT_GIVEN: Final = ("failed", "canceled")
"""States of a refund that gave nothing back."""
_SIGNED: Final = re.compile(r"(t|v1)=([0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An entry of the list of balance transactions that cannot be read, and why."""

    transaction_id: str
    created_at: datetime
    because: str


@dataclass(frozen=True, slots=True)
class Dispute:
    """A dispute as it stands; `amount` in Stripe's integer of `currency`, `submissions` of evidence so far, `moved`:
    the balance transactions by which money went and came back."""

    dispute_id: str
    status: str
    amount: int
    currency: str
    charge_id: str
    reason: str
    created_at: datetime
    evidence_due_at: datetime | None
    submissions: int
    payment_intent: str | None = None
    moved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment of an invoice: its intent, what is left of it, what went back by credit note ("": for none); in
    Stripe's integers."""

    intent: str
    left: int
    back: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund as it stands; `amount` in Stripe's integer. `ours`: a correction of ours made it."""

    refund_id: str
    payment_intent: str | None
    amount: int
    failed: bool
    ours: bool


def events(gateway: StripeGateway, since: datetime | None, after: str | None = None) -> Iterator[list[StripeEvent]]:
    """Pages of events from a moment on, the newest first, those after one; Stripe keeps them for 30 days.

    One that cannot be read is as it came, of type UNREADABLE.
    """
    pages = gateway.each_page("/v1/events", after=after, **_since(since))
    return ([_listed_event(found) for found in page] for page in pages)


def deliveries(gateway: StripeGateway, stripe_invoice: str, since: datetime) -> list[StripeEvent]:
    """The events from a moment on that an invoice was sent to its payer; Stripe keeps them for 30 days."""
    found = map(event_of, gateway.pages("/v1/events", type=SENT, **_since(since)))
    return [event for event in found if event.object_id == stripe_invoice]


def balance_transactions(
    gateway: StripeGateway, since: datetime | None, after: str | None = None
) -> Iterator[list[BalanceTransaction | Unreadable]]:
    """Pages of balance transactions from a moment on, the newest first, those after one; each with what it is about."""
    pages = gateway.each_page("/v1/balance_transactions", after=after, expand=["data.source"], **_since(since))
    return ([_listed_transaction(found) for found in page] for page in pages)


def balance_transaction(gateway: StripeGateway, transaction_id: str) -> BalanceTransaction:
    """One balance transaction, with what it is about."""
    return _balance_transaction(gateway.get("/v1/balance_transactions/{}", transaction_id, expand=["source"]))


def _listed_transaction(found: Mapping[str, Any]) -> BalanceTransaction | Unreadable:
    try:
        return _balance_transaction(found)
    except Exception as error:  # of a shape that nobody thought of: the others of its page can be read
        return Unreadable(*_place(found), f"it cannot be read: {error!r}")


def _listed_event(found: Mapping[str, Any]) -> StripeEvent:
    try:
        return event_of(found)
    except EventRefused:
        name, created_at = _place(found)
        return StripeEvent(name, UNREADABLE, name, created_at, json.dumps(found, ensure_ascii=False))


def _place(found: Any) -> tuple[str, datetime]:
    """The id and the time of an entry that cannot be read, as far as it has them: else one that its content gives."""
    told = found if isinstance(found, Mapping) else {}
    name, created = told.get("id"), told.get("created")
    if not isinstance(name, str):
        name = f"{UNREADABLE}:{hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:24]}"
    return name, _moment(created if isinstance(created, int) else 0)


def event(gateway: StripeGateway, event_id: str) -> StripeEvent:
    """An event as Stripe has it. Raises EventRefused where it cannot be read."""
    return event_of(gateway.get("/v1/events/{}", event_id))


def balance(gateway: StripeGateway) -> dict[str, int]:
    """Stripe's balance of payments by currency, in its integers: what is available and what is pending
    (https://docs.stripe.com/api/balance/balance_object)."""
    found = gateway.get("/v1/balance")
    there: dict[str, int] = {}
    for each in (*found["available"], *found["pending"]):
        code = each["currency"].upper()
        there[code] = there.get(code, 0) + each["amount"]
    return there


def _balance_transaction(found: Mapping[str, Any]) -> BalanceTransaction:
    source = found["source"] if isinstance(found["source"], Mapping) else {}
    theirs = (source.get("amount"), str(source.get("currency", "")).upper())
    code = found["currency"].upper()
    paid = None
    if source.get("object") in ("charge", "dispute", "refund") and theirs[1] != code:
        sign = -1 if found["amount"] < 0 else 1
        paid = (sign * int(theirs[0] or 0), theirs[1])
    return BalanceTransaction(
        transaction_id=found["id"],
        category=found["reporting_category"],
        currency=code,
        amount=found["amount"],
        fee=found["fee"],
        net=found["net"],
        created_at=_moment(found["created"]),
        source_id=source.get("id") or found["source"],
        stripe_customer_id=source.get("customer"),
        charge_id=source.get("charge"),
        paid=paid,
        balance=found["balance_type"],
        metadata=dict(source.get("metadata") or {}),
    )


def cash_moves(gateway: StripeGateway, customer: str) -> Iterator[list[CashMove]]:
    """Pages of what moved a customer's cash balance, the newest first."""
    pages = gateway.each_page("/v1/customers/{}/cash_balance_transactions", customer)
    return ([_cash_move(found) for found in page] for page in pages)


def _cash_move(found: Mapping[str, Any]) -> CashMove:
    return CashMove(
        found["id"], found["type"], found["currency"].upper(), found["net_amount"], found["ending_balance"],
        _moment(found["created"]),
    )  # fmt: skip


def customer_of_charge(gateway: StripeGateway, charge_id: str) -> str | None:
    """The customer who paid a charge."""
    customer: str | None = gateway.get("/v1/charges/{}", charge_id)["customer"]
    return customer


def dispute(gateway: StripeGateway, dispute_id: str) -> Dispute:
    """A dispute as it stands now."""
    found = gateway.get("/v1/disputes/{}", dispute_id)
    details = found["evidence_details"]
    due_by = details["due_by"]
    return Dispute(
        found["id"], found["status"], found["amount"], found["currency"].upper(), found["charge"], found["reason"],
        _moment(found["created"]), due_by and _moment(due_by), details["submission_count"], found["payment_intent"],
        tuple(each["id"] for each in found["balance_transactions"]),
    )  # fmt: skip


def disputes(gateway: StripeGateway) -> Iterator[tuple[str, str, list[BalanceTransaction]]]:
    """Every dispute: its id, its status, and what moved because of it."""
    for found in gateway.pages("/v1/disputes"):
        moved = [_balance_transaction({**each, "source": found}) for each in found["balance_transactions"]]
        yield found["id"], found["status"], moved


def refund(gateway: StripeGateway, refund_id: str) -> Refund:
    """A refund as it stands now."""
    found = gateway.get("/v1/refunds/{}", refund_id)
    return Refund(
        found["id"], found["payment_intent"], found["amount"], found["status"] in NOT_GIVEN,
        CORRECTION in (found["metadata"] or {}),
    )  # fmt: skip


def invoice_of_payment(gateway: StripeGateway, payment_intent: str) -> str | None:
    """The invoice that a payment was for, by its Stripe id."""
    wanted = {"type": "payment_intent", "payment_intent": payment_intent}
    for found in gateway.pages("/v1/invoice_payments", payment=wanted):
        return str(found["invoice"])
    return None


def wholly_credited(gateway: StripeGateway, stripe_invoice: str, total: int) -> bool:
    """Whether credit notes took all of an invoice (`total`, Stripe's integer) back, and paid nothing out for it."""
    notes = [n for n in gateway.pages("/v1/credit_notes", invoice=stripe_invoice) if n["status"] == "issued"]
    kept = all(note["post_payment_amount"] == (note["out_of_band_amount"] or 0) for note in notes)
    return kept and sum(note["total"] for note in notes) == total


def payments(gateway: StripeGateway, stripe_invoice: str) -> list[Payment]:
    """An invoice's payments as they stand, the newest first; what failed to be given back was not."""
    found = []
    for paid in gateway.pages("/v1/invoice_payments", invoice=stripe_invoice, status="paid"):
        if (intent := paid["payment"].get("payment_intent")) is not None:  # left out of payments of other kinds
            left, back = paid["amount_paid"], dict[str, int]()
            for refund in gateway.pages("/v1/refunds", payment_intent=intent):
                if refund["status"] not in NOT_GIVEN:
                    left -= refund["amount"]
                    note = (refund["metadata"] or {}).get(CREDIT_NOTE, "")
                    back[note] = back.get(note, 0) + refund["amount"]
            found.append(Payment(str(intent), left, back))
    return found


def event_of(found: Mapping[str, Any]) -> StripeEvent:
    """An event from Stripe's JSON. Raises EventRefused if it is none."""
    try:
        about = found["data"]["object"]
        body = json.dumps(found, separators=(",", ":"), ensure_ascii=False)
        return StripeEvent(found["id"], found["type"], str(about.get("id") or ""), _moment(found["created"]), body)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EventRefused(f"this is no event of Stripe: {error!r}") from None


def signed_event(payload: bytes, header: str, secret: str, now: datetime) -> StripeEvent:
    """The event of a webhook, its body as it was signed for us (https://docs.stripe.com/webhooks#verify-manually).

    Raises EventRefused if the signature is not right, or more than five minutes old.
    """
    parts = _SIGNED.findall(header)
    times = [value for name, value in parts if name == "t" and value.isdecimal()]
    if not times:
        raise EventRefused("the header Stripe-Signature is missing or has no time")
    wanted = hmac.new(secret.encode(), times[0].encode() + b"." + payload, hashlib.sha256).hexdigest()
    if not any(hmac.compare_digest(wanted, value) for name, value in parts if name == "v1"):
        raise EventRefused("the signature is not of this body and TOLLBOOK_STRIPE_WEBHOOK_SECRET")
    if abs(now.timestamp() - int(times[0])) > TOLERANCE_S:
        raise EventRefused(f"the signature is more than {TOLERANCE_S} s old")
    try:
        return replace(event_of(json.loads(payload)), body=payload.decode())
    except ValueError:
        raise EventRefused("this is no JSON") from None


def _since(since: datetime | None) -> dict[str, Any]:
    return {} if since is None else {"created": {"gte": int(since.timestamp())}}


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
