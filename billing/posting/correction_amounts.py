"""What a correction has booked, in the database."""

from __future__ import annotations

import uuid
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection

from billing.invoicing import correction_store
from billing.invoicing.correcting import Correction, CorrectionKind, CorrectionState
from billing.invoicing.invoices import InvoiceIdentity
from billing.ledger import ledger_store
from billing.money import ZERO, exactly, total
from billing.posting.booking import booking
from billing.posting.correction_rules import AGAINST, corrected
from billing.posting.stripe_money import major


def book(
    connection: Connection, correction: Correction, identity: InvoiceIdentity, amount: int, now: datetime
) -> int | None:
    """Book a correction over an amount in Stripe's integer, in the caller's transaction: the entry, if there is one."""
    key = f"correction:{correction.correction_no}"
    where = booking(connection, key, legal_entity=identity.legal_entity, at=now, now=now)
    in_major = major(amount, identity.money)
    entry = corrected(correction, in_major, identity.currency, identity.billing_account, booking=where)
    return None if entry is None else ledger_store.post(connection, [entry])[key]


def bad_debt(connection: Connection, invoice_id: uuid.UUID) -> tuple[Decimal, Decimal]:
    """What of an invoice is written off by now, and by how much credit notes lowered that; in major units."""
    written_off = by_notes = ZERO
    with exactly():
        for each in correction_store.listed(connection, state=CorrectionState.DONE, invoice_ids=[invoice_id]):
            if each.kind is CorrectionKind.WRITE_OFF:
                written_off += booked(connection, each)
            elif each.kind is CorrectionKind.RECOVERY:
                amount = booked(connection, each)
                written_off -= amount
                by_notes += amount if each.note_id else ZERO
    return written_off, by_notes


def booked(connection: Connection, correction: Correction) -> Decimal:
    """What a correction has booked, in major units, whichever way."""
    found = ledger_store.entry(connection, f"correction:{correction.correction_no}")
    if found is None:
        return ZERO
    return abs(total(leg.amount for leg in found[1].postings if leg.account is AGAINST[correction.kind]))
