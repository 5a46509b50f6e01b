"""What a correction has booked, in the database."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection

from billing.invoicing import correction_store, invoice_store
from billing.invoicing.correcting import Correction, CorrectionKind, CorrectionState, credited
from billing.invoicing.invoices import Invoice, InvoiceIdentity
from billing.ledger import ledger_store
from billing.money import ZERO, exactly, to_stripe, total
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


def left_of(connection: Connection, invoice: Invoice, amount_paid: int, *, untold: bool) -> Decimal:
    """What of an invoice neither its payments (`amount_paid`, Stripe's integer) nor our credit notes took off, in major
    units; with those that Stripe never took (`untold`), or without. Of one that is paid in Stripe that much is credited
    there by hand."""
    money, invoice_id = invoice.identity.money, invoice.invoice_id
    with exactly():
        left = major(to_stripe(invoice.amount_due_minor, money) - amount_paid, money)
        for each in correction_store.listed(
            connection, state=CorrectionState.DONE, invoice_ids=[invoice_id], kind=CorrectionKind.CREDIT_NOTE
        ):
            if each.note_id is not None and (untold or each.stripe_id is not None):
                note = invoice_store.load(connection, each.note_id).invoice
                left -= major(credited(note), money) - booked(connection, each)
    return left


@dataclass(frozen=True, slots=True)
class BadDebt:
    """What of an invoice is written off by now; by how much each credit note `lowered` that, and what of it was paid
    after all and is `unapplied` cash. In major units, by the credit note's invoice id.
    """

    written_off: Decimal
    lowered: Mapping[uuid.UUID, Decimal]
    unapplied: Mapping[uuid.UUID, Decimal]

    @property
    def by_notes(self) -> Decimal:
        """By how much credit notes lowered it."""
        return total(self.lowered.values())


def bad_debt(connection: Connection, invoice_id: uuid.UUID) -> BadDebt:
    """What of an invoice is bad debt, by the corrections that are done."""
    written_off = ZERO
    lowered: dict[uuid.UUID, Decimal] = defaultdict(lambda: ZERO)
    unapplied: dict[uuid.UUID, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for each in correction_store.listed(connection, state=CorrectionState.DONE, invoice_ids=[invoice_id]):
            if each.kind is CorrectionKind.WRITE_OFF:
                written_off += booked(connection, each)
            elif each.kind is CorrectionKind.RECOVERY:
                amount = booked(connection, each)
                written_off -= amount
                if each.note_id is not None:
                    lowered[each.note_id] += amount
            elif each.kind is CorrectionKind.OVERPAYMENT and each.note_id is not None:
                unapplied[each.note_id] += booked(connection, each)
    return BadDebt(written_off, dict(lowered), dict(unapplied))


def booked(connection: Connection, correction: Correction) -> Decimal:
    """What a correction has booked, in major units, whichever way."""
    found = ledger_store.entry(connection, f"correction:{correction.correction_no}")
    if found is None:
        return ZERO
    return abs(total(leg.amount for leg in found[1].postings if leg.account is AGAINST[correction.kind]))
