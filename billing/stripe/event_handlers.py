"""What to do about events of Stripe, by the kind of object: it is asked for as it is now, and ours follows it.

So any order and any repeat come to the same. Each handler says in words what became of its events; WAITS keeps them.
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection, Engine

from billing.database import transaction
from billing.errors import CashDiffers, MoneyNotBooked, StripeRefused, UnknownInvoice
from billing.invoicing import correction_store, invoice_store
from billing.invoicing.correcting import CORRECTION, CorrectionEvent, CorrectionKind, CorrectionState
from billing.invoicing.dunning import Standing
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceEvent, InvoiceState
from billing.invoicing.sending import OURS
from billing.ledger import balance_store, ledger_store
from billing.ledger.journal import AccountCode, JournalEntry
from billing.money import ZERO, currency, exactly, plain, to_minor, to_stripe, total
from billing.posting.booking import booking
from billing.posting.correction_amounts import bad_debt, book, left_of
from billing.posting.stripe_money import CashMove, cash_moved, dispute_lost, dispute_regained, major
from billing.stripe import customer_store, returns, returns_store, standing_store
from billing.stripe.hindrances import GONE, TAKE_OVER, customer_deleted
from billing.stripe.payers import customer_who_paid, payer
from billing.stripe.returns_store import UNREADABLE, StripeEvent
from billing.stripe.stripe_gateway import StripeGateway, StripeInvoice

PERSON: Final = "needs a person: "
WAITS: Final = "waits"
PAID: Final = "paid"
ECHOES: Final = (
    "invoice.created", "invoice.updated", "invoice.finalized", "customer.created", "credit_note.created",
    "refund.created",
)  # fmt: skip
FAILED: Final = "invoice.payment_failed"
TAKEN_OVER: Final = {
    "void": "void {} --reason …` (or `write-off`, where what is on it cannot be billed anew) takes that over",
    "uncollectible": "write-off {} --document …` takes that over",
}
"""What somebody made an invoice in Stripe, and the verb by which our books follow."""
UNPAID: Final = (InvoiceState.FINALIZED, InvoiceState.UNCOLLECTIBLE)
NOT_ISSUED: Final = (InvoiceState.DRAFT, InvoiceState.APPROVED)

Handler = Callable[[Engine, StripeGateway, Sequence[StripeEvent], datetime, str], str]


def kind_of(event: StripeEvent) -> str:
    """What an event is about, as HANDLERS has it; an echo says nothing that our request's reply has not said. An object
    without an id (`invoice.upcoming`) is a forecast or a sum: there is nothing to ask for."""
    if event.type == UNREADABLE:
        return UNREADABLE
    if not event.object_id:
        return "nothing"
    if event.type.startswith("charge.dispute."):
        return "dispute"
    key = _asked_with(event)
    changed_more = f":{CORRECTION}:" in key and event.type == "invoice.updated"
    if event.type in ECHOES and key.startswith(OURS) and not changed_more:
        return "echo"
    return event.type.partition(".")[0]


def _asked_with(event: StripeEvent) -> str:
    """The idempotency key of the request that caused an event."""
    request = json.loads(event.body).get("request") or {}
    return str(request.get("idempotency_key") or "")


def _invoice(engine: Engine, gateway: StripeGateway, events: Sequence[StripeEvent], now: datetime, actor: str) -> str:
    """What an invoice is in Stripe by now, put onto ours."""
    stripe_id = events[-1].object_id
    try:
        theirs, _ = gateway.invoice(stripe_id)
    except StripeRefused as error:
        if error.code != GONE:
            raise
        with transaction(engine) as connection:
            return _draft_gone(connection, stripe_id)
    failed = max((event.created_at for event in events if event.type == FAILED), default=None)
    with transaction(engine) as connection:
        try:
            stored = invoice_store.find(connection, stripe_id)
        except UnknownInvoice:
            return WAITS if _will_be_ours(connection, events[-1]) else "not ours"
        standing_store.keep_standing(connection, stored.invoice.invoice_id, standing_of(theirs, failed))
        return settle(connection, stored, theirs, now, actor)


def _draft_gone(connection: Connection, stripe_id: str) -> str:
    """Somebody deleted a draft there: one of ours is missing."""
    try:
        stored = invoice_store.find(connection, stripe_id)
    except UnknownInvoice:
        return "gone"
    name = stored.number or stored.invoice.invoice_id
    return f"{PERSON}the draft of {name} was deleted in Stripe by hand: `tollbook invoice restart {name}`"


def standing_of(theirs: StripeInvoice, failed: datetime | None) -> Standing:
    """How an invoice of Stripe's stands; `failed`: when a payment of it is known to have failed."""
    next_s = theirs.next_attempt_s
    return Standing(
        theirs.seen.status, theirs.amount_paid, theirs.amount_remaining, theirs.attempts,
        None if next_s is None else datetime.fromtimestamp(next_s, UTC), failed,
    )  # fmt: skip


def settle(connection: Connection, stored: StoredInvoice, theirs: StripeInvoice, now: datetime, actor: str) -> str:
    name, status = stored.number or theirs.invoice_id, theirs.seen.status
    if stored.state in NOT_ISSUED:
        # Its sender has not recorded yet what it has done: ours becomes what it is there first.
        return WAITS if status in ("paid", "open") else "noted"
    ours = correction_store.open_end(connection, stored.invoice.invoice_id) is not None
    if theirs.overpaid:
        _unapply(
            connection, stored.invoice.invoice_id, theirs.overpaid, f"{name} was paid twice or with too much", actor
        )
    if stored.state is InvoiceState.UNCOLLECTIBLE:
        recover(connection, stored, theirs, now, actor)
    if status == "paid" and stored.state in UNPAID:
        if theirs.paid_off_stripe:
            by_hand = (
                f"{PERSON}{name} was marked as paid outside Stripe: `tollbook invoice pay {name} --out-of-band"
                " --document …` books the receipt once another person approves it"
            )
            return WAITS if ours else by_hand
        if (missing := left_of(connection, stored.invoice, theirs.amount_paid, untold=False)) > 0:
            notes = correction_store.listed(
                connection, state=CorrectionState.OPEN, invoice_ids=[stored.invoice.invoice_id],
                kind=CorrectionKind.CREDIT_NOTE,
            )  # fmt: skip
            by_hand = (
                f"{PERSON}{name} is paid in Stripe, but {plain(missing)} {stored.invoice.identity.currency} of it by a"
                f" credit note that was made there by hand: take that over first, {TAKE_OVER}"
            )
            return WAITS if notes else by_hand
        invoice_store.move(connection, stored, InvoiceEvent.PAY, now, actor)
        return PAID
    if status in TAKEN_OVER and stored.state in UNPAID and status != stored.state:
        by_hand = (
            f"{PERSON}{name} was made {status} in Stripe by hand; our books have it as {stored.state}:"
            f" `tollbook invoice {TAKEN_OVER[status].format(name)}"
        )
        return WAITS if ours else by_hand
    return "noted"


def _unapply(connection: Connection, invoice_id: uuid.UUID, overpaid: int, reason: str, actor: str) -> None:
    """What was overpaid (all of it, in Stripe's integer) beyond what is known of it becomes unapplied cash."""
    known = correction_store.listed(connection, invoice_ids=[invoice_id], kind=CorrectionKind.OVERPAYMENT)
    more = overpaid - sum(each.content["amount"] for each in known if each.note_id is None)
    if more > 0:
        correction_store.add(
            connection, invoice_id, CorrectionKind.OVERPAYMENT, reason=reason, actor=actor,
            content={"amount": more, "up_to": overpaid},
        )  # fmt: skip


def recover(connection: Connection, stored: StoredInvoice, theirs: StripeInvoice, now: datetime, actor: str) -> None:
    """What of a write-off is paid after all, also in part, is no bad debt; what credit notes had lowered of it by then
    is unapplied cash of theirs."""
    money = stored.invoice.identity.money
    debt = bad_debt(connection, stored.invoice.invoice_id)
    # Stripe takes no credit note on what is written off: there it remains to be paid as before.
    remaining = major(theirs.amount_remaining, money)
    with exactly():
        back = debt.written_off - max(ZERO, remaining - debt.by_notes)
        beyond = debt.by_notes - remaining - total(debt.unapplied.values())
    if back > 0:
        _book_at_once(connection, stored, CorrectionKind.RECOVERY, None, back, now, actor)
    for note_id, lowered in debt.lowered.items():
        with exactly():
            part = min(beyond, lowered - debt.unapplied.get(note_id, ZERO))
            beyond -= max(ZERO, part)
        if part > 0:
            _book_at_once(connection, stored, CorrectionKind.OVERPAYMENT, note_id, part, now, actor)


def _book_at_once(
    connection: Connection, stored: StoredInvoice, kind: CorrectionKind, note_id: uuid.UUID | None, amount: Decimal,
    now: datetime, actor: str,
) -> None:  # fmt: skip
    """A correction that Stripe need not be told of, over an amount in major units."""
    identity = stored.invoice.identity
    made = correction_store.add(
        connection, stored.invoice.invoice_id, kind, note_id=note_id, reason="paid after it was written off",
        actor=actor,
    )  # fmt: skip
    entry_id = book(connection, made, identity, to_stripe(to_minor(amount, identity.money), identity.money), now)
    correction_store.end(connection, made, CorrectionEvent.ANSWER, entry_id=entry_id)


def _will_be_ours(connection: Connection, event: StripeEvent) -> bool:
    """Whether an invoice that we do not know by its Stripe id says that it is one of ours: its reply is on the way."""
    about = json.loads(event.body)["data"]["object"]
    try:
        claimed = uuid.UUID(str((about.get("metadata") or {}).get("invoice_id", "")))
        return invoice_store.load(connection, claimed).stripe_invoice_id is None
    except (ValueError, UnknownInvoice):
        return False


def _customer(engine: Engine, gateway: StripeGateway, events: Sequence[StripeEvent], now: datetime, actor: str) -> str:
    """A customer that is deleted needs a person where something is being billed to it. All else of it is its owner's; a
    balance that we cannot explain is found by whatever is billed next, and by `reconcile run`."""
    customer = events[-1].object_id
    if all(event.type != "customer.deleted" for event in events):
        return "noted"
    with transaction(engine) as connection:
        account = returns_store.account_of_customer(connection, customer)
        billed = customer in customer_store.being_billed(connection)
    if account is None:
        return "not ours"
    if not billed or not customer_deleted(gateway, customer):
        return "noted"
    return (
        f"{PERSON}customer {customer} of {account} was deleted in Stripe: what is billed to it waits for"
        " `tollbook invoice restart`"
    )


def _item(engine: Engine, gateway: StripeGateway, events: Sequence[StripeEvent], now: datetime, actor: str) -> str:
    """Items that somebody adds: those on a draft of ours differ when it is compared, the others are swept into none of
    ours, and `reconcile run` lists them."""
    return "left alone"


def _credit_note(
    engine: Engine, gateway: StripeGateway, events: Sequence[StripeEvent], now: datetime, actor: str
) -> str:
    """Credit notes of ours are booked with their request's answer; others are told."""
    found = gateway.get("/v1/credit_notes/{}", events[-1].object_id)
    claimed = str((found["metadata"] or {}).get(CORRECTION, ""))
    with transaction(engine) as connection:
        try:
            stored = invoice_store.find(connection, str(found["invoice"]))
        except UnknownInvoice:
            return "not ours"
        if stored.state in NOT_ISSUED:
            return "noted"
        known = correction_store.listed(connection, invoice_ids=[stored.invoice.invoice_id])
        notes = [each for each in known if each.kind is CorrectionKind.CREDIT_NOTE]
        ours = [each for each in notes if found["id"] == each.stripe_id or str(each.correction_no) == claimed]
        if not ours:
            # What it is linked to of refunds counts as theirs.
            linked = sum(each.get("amount_refunded") or 0 for each in found["refunds"] or [])
            standing_store.keep_by_hand(
                connection, found["id"], "credit_note", stored.invoice.invoice_id, max(0, found["total"] - linked),
                over=found["status"] == "void",
            )  # fmt: skip
    if not ours and found["status"] == "void":
        return "noted"
    if not ours:
        return (
            f"{PERSON}credit note {found['number']} ({found['id']}) on {stored.number} was made in Stripe by hand; our"
            f" books have none: void it there, or take it over, {TAKE_OVER}"
        )
    if found["status"] == "void":
        if any(each.kind is CorrectionKind.OVERPAYMENT and each.note_id == ours[0].note_id for each in known):
            return "noted"
        return (
            f"{PERSON}credit note {found['memo']} on {stored.number} was voided in Stripe by hand; our books have it:"
            f" `tollbook invoice note-untold {found['memo']}` keeps it here alone, once its invoice is paid there"
        )
    return "noted"


def _refund(engine: Engine, gateway: StripeGateway, events: Sequence[StripeEvent], now: datetime, actor: str) -> str:
    """A refund that nobody asked for here: its money is booked as any, and credit notes have so much less room."""
    found = returns.refund(gateway, events[-1].object_id)
    if found.ours:
        return "noted"
    theirs = None if found.payment_intent is None else returns.invoice_of_payment(gateway, found.payment_intent)
    with transaction(engine) as connection:
        invoice_id = _known_invoice(connection, theirs)
        if invoice_id is None:
            return "not ours"
        standing_store.keep_by_hand(connection, found.refund_id, "refund", invoice_id, found.amount, over=found.failed)
    return "refund that was made in Stripe by hand"


def _dispute(engine: Engine, gateway: StripeGateway, events: Sequence[StripeEvent], now: datetime, actor: str) -> str:
    """What was withdrawn for a dispute that is lost is an expense from then on, unless it is won after all; what moves
    because of it comes as balance transactions. Raises MoneyNotBooked while one of them cannot be booked."""
    dispute_id = events[-1].object_id
    found = returns.dispute(gateway, dispute_id)
    customer = customer_who_paid(engine, gateway, found.charge_id)
    theirs = None if found.payment_intent is None else returns.invoice_of_payment(gateway, found.payment_intent)
    with transaction(engine) as connection:
        account, entity = payer(connection, customer, gateway.legal_entity)
        standing_store.keep_dispute(connection, found, account, _known_invoice(connection, theirs))
        opens_at = returns_store.opening(connection, gateway.legal_entity)
    if opens_at is not None and found.created_at < opens_at:
        return f"dispute {found.status}, of before the opening"
    with transaction(engine) as connection:
        lost: tuple[int, JournalEntry] | None = None
        for turn in itertools.count():
            key = f"stripe:dispute:{dispute_id}:{'regained' if lost else 'lost'}" + (f":{turn}" if turn > 1 else "")
            booked = ledger_store.entry(connection, key)
            if booked is None:
                break
            lost = None if lost else booked
        where = booking(connection, key, legal_entity=entity, at=now, now=now)
        if lost is None and found.status == "lost":
            for each in set(found.moved) - returns_store.booked(connection, found.moved):
                if each in returns_store.unbooked(connection):
                    raise MoneyNotBooked(f"{each} of it cannot be booked: what was lost is not known before that")
                return WAITS
            if withdrawn := returns_store.withdrawn(connection, dispute_id):
                ledger_store.post(connection, [dispute_lost(dispute_id, withdrawn, booking=where)])
        elif lost is not None and found.status == "won":
            ledger_store.post(connection, [dispute_regained(lost[1], lost[0], booking=where)])
    return f"dispute {found.status}"


def _cash(engine: Engine, gateway: StripeGateway, events: Sequence[StripeEvent], now: datetime, actor: str) -> str:
    """All that is new of a customer's cash balance is booked; then 1012 is what Stripe says is there.

    Raises CashDiffers where it is not: the event waits, and is tried again.
    """
    customer = str(json.loads(events[-1].body)["data"]["object"]["customer"])
    with transaction(engine) as connection:
        account, entity = payer(connection, customer, gateway.legal_entity)
    if account is None:
        return "not ours"
    new: list[CashMove] = []
    there: dict[str, int] = {}
    for page in returns.cash_moves(gateway, customer):
        for moved in page:
            there.setdefault(moved.currency, moved.ending)
        with transaction(engine) as connection:
            known = ledger_store.booked(connection, [_cash_key(moved) for moved in page])
        new += [moved for moved in page if _cash_key(moved) not in known]
        if known:
            break
    with transaction(engine) as connection:
        for moved in reversed(new):
            where = booking(connection, _cash_key(moved), legal_entity=entity, at=moved.created_at, now=now)
            entry = cash_moved(moved, account, booking=where)
            ledger_store.post(connection, [entry] if entry else [])
        booked = balance_store.account_balances(
            connection, legal_entity=entity, code=AccountCode.STRIPE_CUSTOMER_CASH.code, subledger=account
        )
    held = {each.currency: each.amount for each in booked}
    for code, ending in there.items():
        if held.get(code, ZERO) != (says := major(ending, currency(code, now.date()))):
            ours = plain(held.get(code, ZERO))
            raise CashDiffers(f"{account} has {plain(says)} {code} of cash in Stripe, and {ours} in 1012")
    return "cash balance"


def _cash_key(moved: CashMove) -> str:
    return f"stripe:{moved.move_id}"


def _known_invoice(connection: Connection, stripe_id: str | None) -> uuid.UUID | None:
    try:
        return None if stripe_id is None else invoice_store.find(connection, stripe_id).invoice.invoice_id
    except UnknownInvoice:
        return None


def _unreadable(
    engine: Engine, gateway: StripeGateway, events: Sequence[StripeEvent], now: datetime, actor: str
) -> str:
    """Ask for it by itself, and handle what it tells of. Raises EventRefused as long as it cannot be read: it waits."""
    event = returns.event(gateway, events[-1].event_id)
    handle = HANDLERS.get(kind_of(event))
    return "kept" if handle is None else handle(engine, gateway, [event], now, actor)


HANDLERS: Final[Mapping[str, Handler]] = {
    "invoice": _invoice, "credit_note": _credit_note, "refund": _refund, "dispute": _dispute,
    "customer_cash_balance_transaction": _cash, "customer": _customer, "invoiceitem": _item,
    UNREADABLE: _unreadable,
}  # fmt: skip
"""By the kind of object; events of all others are kept and nothing more."""
