"""What a correction has booked, in the database."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection

from billing.invoicing.correcting import Correction
from billing.invoicing.invoices import InvoiceIdentity
from billing.ledger import ledger_store
from billing.money import ZERO, total
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


def booked(connection: Connection, correction: Correction) -> Decimal:
    """What a correction has booked, in major units, whichever way."""
    found = ledger_store.entry(connection, f"correction:{correction.correction_no}")
    if found is None:
        return ZERO
    return abs(total(leg.amount for leg in found[1].postings if leg.account is AGAINST[correction.kind]))
