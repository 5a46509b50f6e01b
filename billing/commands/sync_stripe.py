"""Take in what happened in Stripe: money into the books, payments onto invoices. Running it again takes in what is new.

Money is booked from balance transactions alone, each once. Events only say what to look at: the object is asked for as
it is now, so that their order and repeats do not matter. Nothing external happens inside a transaction.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine

from billing.database import transaction
from billing.errors import StripeRefused, UnknownInvoice
from billing.invoicing import invoice_store
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceEvent, InvoiceState
from billing.invoicing.sending import OURS
from billing.ledger import ledger_store
from billing.plans import account_store
from billing.posting.booking import booking
from billing.posting.stripe_money import BalanceTransaction, dispute_lost, money_moved
from billing.stripe import returns, returns_store
from billing.stripe.returns_store import EVENTS, MONEY, StripeEvent
from billing.stripe.stripe_gateway import StripeGateway, StripeInvoice

OVERLAP: Final = timedelta(hours=1)
"""Lists are read again from so long before where they were read to: what Stripe dates back is not missed."""
AT_ONCE: Final = 500
PERSON: Final = "needs a person: "
ECHOES: Final = ("invoice.created", "invoice.updated", "invoice.finalized", "customer.created")
WAITS: Final = "waits"
PAID: Final = "paid"
UNPAID: Final = (InvoiceState.FINALIZED, InvoiceState.UNCOLLECTIBLE)
NOT_ISSUED: Final = (InvoiceState.DRAFT, InvoiceState.APPROVED)


@dataclass(frozen=True, slots=True)
class StripeSynced:
    """What a run took in: balance transactions, events, invoices that are paid now. `problems` need a person."""

    booked: int
    events: int
    paid: int
    waiting: int
    problems: tuple[str, ...]


def sync_stripe(
    engine: Engine, *, gateway: StripeGateway, now: datetime, actor: str = "tollbook", poll: bool = True
) -> StripeSynced:
    """Take in what is new in Stripe; without `poll` only the events that webhooks brought, and the money."""
    booked = _take_money(engine, gateway, now)
    if poll:
        _take_events(engine, gateway)
    outcomes = _handle(engine, gateway, now, actor)
    with transaction(engine) as connection:
        waiting = returns_store.waiting(connection)
    handled = sum(len(events) for _, events in outcomes)
    paid = sum(outcome == PAID for outcome, _ in outcomes)
    problems = tuple(
        f"{events[0].object_id}: {outcome.removeprefix(PERSON)}"
        for outcome, events in outcomes
        if outcome.startswith(PERSON)
    )
    return StripeSynced(booked, handled, paid, waiting, problems)


def _take_money(engine: Engine, gateway: StripeGateway, now: datetime) -> int:
    """Book balance transactions that are not booked yet, the oldest first; how many."""
    with transaction(engine) as connection:
        read_to = returns_store.read_to(connection, MONEY)
    listed = list(returns.balance_transactions(gateway, read_to and read_to - OVERLAP))[::-1]
    with transaction(engine) as connection:
        known = returns_store.booked(connection, [moved.transaction_id for moved in listed])
    count = 0
    for moved in listed:
        if moved.transaction_id in known:
            continue
        customer = moved.stripe_customer_id or _customer(engine, gateway, moved.charge_id)
        with transaction(engine) as connection:
            if not returns_store.booked(connection, [moved.transaction_id]):
                _book(connection, moved, customer, now)
                count += 1
            returns_store.set_read_to(connection, MONEY, moved.created_at)
    return count


def _customer(engine: Engine, gateway: StripeGateway, charge_id: str | None) -> str | None:
    """Who paid the charge that a refund or a dispute is about."""
    if charge_id is None:
        return None
    with transaction(engine) as connection:
        known = returns_store.customer_of_source(connection, charge_id)
    return known or returns.customer_of_charge(gateway, charge_id)


def _book(connection: Connection, moved: BalanceTransaction, customer: str | None, now: datetime) -> None:
    account, entity = _payer(connection, customer)
    key = f"stripe:{moved.transaction_id}"
    where = booking(connection, key, legal_entity=entity, at=moved.created_at, now=now)
    entry = money_moved(moved, account, booking=where)
    entry_id = None if entry is None else ledger_store.post(connection, [entry])[key]
    returns_store.keep_transaction(connection, moved, customer, entry_id)


def _payer(connection: Connection, customer: str | None) -> tuple[str | None, str]:
    """The billing account of a customer, and whose books its money goes to."""
    account = returns_store.account_of_customer(connection, customer) if customer else None
    if account is None:
        return None, account_store.DEFAULT_LEGAL_ENTITY
    return account, account_store.accounts(connection, [account])[account].legal_entity


def _take_events(engine: Engine, gateway: StripeGateway) -> None:
    """Keep what the list of events has since it was read last: what webhooks did not bring."""
    with transaction(engine) as connection:
        read_to = returns_store.read_to(connection, EVENTS)
    listed = list(returns.events(gateway, read_to and read_to - OVERLAP))[::-1]
    for first in range(0, len(listed), AT_ONCE):
        part = listed[first : first + AT_ONCE]
        with transaction(engine) as connection:
            for event in part:
                returns_store.keep_event(connection, event, received_as="poll")
            returns_store.set_read_to(connection, EVENTS, part[-1].created_at)


def _handle(engine: Engine, gateway: StripeGateway, now: datetime, actor: str) -> list[tuple[str, list[StripeEvent]]]:
    """Handle the events that wait, object by object; what became of each object's."""
    outcomes: list[tuple[str, list[StripeEvent]]] = []
    after: StripeEvent | None = None
    while True:
        with transaction(engine) as connection:
            found = returns_store.unhandled(connection, AT_ONCE, after)
        if not found:
            return outcomes
        after = found[-1]
        outcomes += _handle_some(engine, gateway, found, now, actor)


def _handle_some(
    engine: Engine, gateway: StripeGateway, found: Sequence[StripeEvent], now: datetime, actor: str
) -> list[tuple[str, list[StripeEvent]]]:
    by_object: dict[tuple[str, str], list[StripeEvent]] = defaultdict(list)
    for event in found:
        by_object[_kind(event), event.object_id].append(event)
    outcomes = []
    for (kind, object_id), events in by_object.items():
        if kind == "invoice":
            outcome = _invoice(engine, gateway, object_id, events[-1], now, actor)
        elif kind == "dispute":
            outcome = _dispute(engine, gateway, object_id, now)
        else:
            outcome = "kept"
        if outcome == WAITS:
            continue
        with transaction(engine) as connection:
            returns_store.handled(connection, events, outcome)
        outcomes.append((outcome, events))
    return outcomes


def _kind(event: StripeEvent) -> str:
    if event.type in ECHOES and _asked_by_us(event):
        return "echo"
    if event.type.startswith("charge.dispute."):
        return "dispute"
    return "invoice" if event.type.startswith("invoice.") else "other"


def _asked_by_us(event: StripeEvent) -> bool:
    """Whether a request of ours caused an event: its reply has said all that the event can say."""
    request = json.loads(event.body).get("request") or {}
    return str(request.get("idempotency_key") or "").startswith(OURS)


def _invoice(
    engine: Engine, gateway: StripeGateway, stripe_id: str, event: StripeEvent, now: datetime, actor: str
) -> str:
    """What an invoice is in Stripe by now, put onto ours."""
    try:
        theirs, _ = gateway.invoice(stripe_id)
    except StripeRefused as error:
        return "gone" if error.code == "resource_missing" else f"{PERSON}{error}"
    with transaction(engine) as connection:
        try:
            stored = invoice_store.find(connection, stripe_id)
        except UnknownInvoice:
            return WAITS if _will_be_ours(connection, event) else "not ours"
        return _settle(connection, stored, theirs, now, actor)


def _settle(connection: Connection, stored: StoredInvoice, theirs: StripeInvoice, now: datetime, actor: str) -> str:
    name, status = stored.number or theirs.invoice_id, theirs.seen.status
    if stored.state in NOT_ISSUED:
        # Its sender has not recorded yet what it has done: ours becomes what it is there first.
        return WAITS if status in ("paid", "open") else "noted"
    if status == "paid" and stored.state in UNPAID:
        if theirs.paid_off_stripe:
            return f"{PERSON}{name} was marked as paid outside Stripe: book the receipt with `tollbook ledger propose`"
        invoice_store.move(connection, stored, InvoiceEvent.PAY, now, actor)
        return PAID
    if status in ("void", "uncollectible") and stored.state is InvoiceState.FINALIZED:
        return f"{PERSON}{name} was made {status} in Stripe by hand; our books still have it as due"
    return "noted"


def _will_be_ours(connection: Connection, event: StripeEvent) -> bool:
    """Whether an invoice that we do not know by its Stripe id says that it is one of ours: its reply is on the way."""
    about = json.loads(event.body)["data"]["object"]
    try:
        claimed = uuid.UUID(str((about.get("metadata") or {}).get("invoice_id", "")))
        return invoice_store.load(connection, claimed).stripe_invoice_id is None
    except (ValueError, UnknownInvoice):
        return False


def _dispute(engine: Engine, gateway: StripeGateway, dispute_id: str, now: datetime) -> str:
    """A dispute that is lost is an expense from then on; what moves because of it comes as balance transactions."""
    found = returns.dispute(gateway, dispute_id)
    if found.status != "lost":
        return f"dispute {found.status}"
    customer = _customer(engine, gateway, found.charge_id)
    with transaction(engine) as connection:
        account, entity = _payer(connection, customer)
        key = f"stripe:dispute:{dispute_id}:lost"
        booked = ledger_store.entry(connection, key)
        if booked is None:
            where = booking(connection, key, legal_entity=entity, at=now, now=now)
            lost = dispute_lost(dispute_id, found.amount, found.currency, account, booking=where)
            ledger_store.post(connection, [lost])
    return "dispute lost"
