"""Drawing on grants as invoices are frozen and issued, in the caller's transaction (docs/spec/money.md 6)."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection

from billing.errors import CreditRefused
from billing.invoicing import credit_store
from billing.invoicing.credit_store import Movement, MovementKind
from billing.invoicing.invoices import Invoice
from billing.ledger import ledger_store
from billing.ledger.journal import JournalEntry
from billing.money import ZERO, exactly, plain
from billing.periods import accounting_month
from billing.posting.posting_rules import Booking, credit_reinstated


def reserve(connection: Connection, invoice: Invoice) -> None:
    """Make sure that the grants can give what an invoice draws, whatever else is frozen; it is frozen next.

    Raises CreditRefused where somebody else was faster.
    """
    wanted = {credit.grant_id: credit.amount for credit in invoice.credits if credit.amount > 0}
    if not wanted:
        return
    credit_store.lock(connection, wanted)
    others = credit_store.reserved(connection, wanted.keys(), but=invoice.invoice_id)
    for state in credit_store.states(connection, grant_ids=wanted.keys()):
        grant_id = state.grant.grant_id
        with exactly():
            left = state.drawable - others.get(grant_id, ZERO)
        if left < wanted[grant_id]:
            raise CreditRefused(
                f"the draft draws {plain(wanted[grant_id])} of credit {grant_id}, which has {plain(left)}"
                f" {state.grant.currency} left: draw the invoices up again"
            )


def draw(connection: Connection, invoice: Invoice, entry_id: int | None, now: datetime, actor: str) -> None:
    """Take from the grants what an invoice that is issued now draws; what had expired of that is reinstated.

    What a document gives back is there again, also where the grant has expired: it expires once more.

    Raises CreditRefused where it draws what another document gives back, which is not issued yet.
    """
    grant_ids = [credit.grant_id for credit in invoice.credits]
    credit_store.lock(connection, grant_ids)
    states = {state.grant.grant_id: state for state in credit_store.states(connection, grant_ids=grant_ids)}
    movements: list[Movement] = []
    entries: dict[str, JournalEntry] = {}
    for credit in invoice.credits:
        state, key = states[credit.grant_id], f"credit:{credit.grant_id}:{invoice.invoice_id}"
        if credit.amount == 0:
            continue
        if credit.amount > max(state.drawable, ZERO):
            raise CreditRefused(
                f"it draws {plain(credit.amount)} of credit {credit.grant_id}, which has {plain(state.drawable)} until"
                " another invoice of the account gives back: issued after that"
            )
        with exactly():
            missing = credit.amount - state.remaining
        if missing > 0:
            booking = Booking(f"{key}:reinstated", invoice.identity.legal_entity, accounting_month(now), now)
            if state.is_liability:
                entries[booking.key] = credit_reinstated(state.grant, missing, booking=booking)
            movements.append(Movement(booking.key, credit.grant_id, MovementKind.REINSTATED, missing, now))
        kind = MovementKind.DRAWN if credit.amount > 0 else MovementKind.RESTORED
        movements.append(Movement(key, credit.grant_id, kind, -credit.amount, now, invoice.invoice_id, entry_id))
    booked = ledger_store.post(connection, list(entries.values()))
    credit_store.move(connection, [m.booked_as(booked.get(m.idempotency_key)) for m in movements], actor)
