"""Booking what is earned of fees in advance, month by month: one entry per invoice and month, ever."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import Connection

from billing.invoicing import invoice_store
from billing.invoicing.invoices import Invoice
from billing.ledger import ledger_store
from billing.periods import BillingPeriod
from billing.plans.schedules import MONTHLY
from billing.posting.booking import booking
from billing.posting.posting_rules import fees_earned


def recognise_fees(
    connection: Connection, month: BillingPeriod, *, now: datetime, legal_entity: str | None = None
) -> int:
    """Book what is earned by the end of a month of all fees in advance that are invoiced; how many entries that made.

    Months before it are booked with it where that was not done: an invoice may come after them. What belongs to a month
    whose book is closed goes into the one of `now`. Doing it again books nothing.
    An invoice that was altered earns nothing until it is what was drawn up again: a gate names it (R4).
    """
    earning = [s.invoice for s in invoice_store.earning_fees(connection, month, legal_entity) if not s.altered]
    wanted = {key_of(invoice, each): (invoice, each) for invoice in earning for each in months_of(invoice, month)}
    entries = []
    for key in sorted(wanted.keys() - ledger_store.booked(connection, wanted.keys())):
        invoice, each = wanted[key]
        last = each.end - timedelta(microseconds=1)
        where = booking(connection, key, legal_entity=invoice.identity.legal_entity, at=last, now=now)
        entry = fees_earned(invoice, each, booking=where)
        if entry is not None:
            entries.append(entry)
    return len(ledger_store.post(connection, entries))


def months_of(invoice: Invoice, until: BillingPeriod) -> Iterable[BillingPeriod]:
    """The accounting periods that an invoice's fees are earned in, up to one."""
    service = invoice.identity.period
    return MONTHLY.periods(service.start, min(service.end, until.end))


def key_of(invoice: Invoice, month: BillingPeriod) -> str:
    """The idempotency key of what is earned of an invoice in a month."""
    return f"fees_earned:{invoice.invoice_id}:{month.name}"
