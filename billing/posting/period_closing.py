"""Closing the book of a legal entity for a month: once, when nothing of it is open (docs/spec/money.md 1 and 11)."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects.postgresql import insert

from billing import tables
from billing.errors import PeriodNotEnded, ProposalRefused, RateMissing
from billing.invoicing.invoice_states import InvoiceState
from billing.periods import parse_period
from billing.posting import exchange_rate_store
from billing.posting.breakage_recognition import recognise_breakage
from billing.posting.fee_recognition import recognise_fees
from billing.posting.remeasurement import remeasure
from billing.usage import unbillable_store

OPEN = (InvoiceState.DRAFT.value, InvoiceState.APPROVED.value)


def close_book(
    connection: Connection, legal_entity: str, month: str, now: datetime, *, parked: Collection[str] = ()
) -> None:
    """Close a month's book; one that is closed stays so. It takes no further entry.

    What is earned in it of fees in advance is booked first, and what rates did to balances in other currencies. The
    invoices of billing accounts that are `parked` are not waited for.

    Raises PeriodNotEnded, and ProposalRefused while an earlier book, or an invoice of the month, is open, or usage that
    is too old to bill waits for its approval, or no exchange rate holds at the month's end that is needed.
    """
    period, book, invoices = parse_period(month), tables.accounting_periods, tables.invoices
    if period.months != 1:
        raise ProposalRefused(f"{month}: the book of one month is closed at a time")
    if now < period.end:
        raise PeriodNotEnded(f"{month} ends {period.end:%Y-%m-%d %H:%M} UTC: its book is closed after that")
    exchange_rate_store.lock(connection)  # whoever sets a rate sees a month's book open, or closed
    of_entity = book.c.legal_entity == legal_entity
    earlier = connection.execute(
        select(func.min(book.c.month)).where(of_entity, book.c.month < month, book.c.state == "open")
    ).scalar()
    if earlier is not None:
        raise ProposalRefused(f"the book of {earlier} is open: books are closed in order")
    waiting = connection.execute(
        select(func.count()).where(
            invoices.c.legal_entity == legal_entity,
            invoices.c.service_end <= period.end,
            invoices.c.service_end > period.start,
            invoices.c.state.in_(OPEN),
            invoices.c.billing_account.not_in(parked),
        )
    ).scalar_one()
    if waiting:
        raise ProposalRefused(f"{waiting} invoices of {month} are not issued: `tollbook close status {month}`")
    too_old = unbillable_store.of_period(connection, period)
    if any(each.approved_by is None for listed in too_old.values() for each in listed):
        raise ProposalRefused(
            f"usage of {month} is too old to bill and nobody approved it: `tollbook close unbillable {month}`"
        )
    recognise_fees(connection, period, now=now, legal_entity=legal_entity)
    recognise_breakage(connection, period, now=now, legal_entity=legal_entity)
    try:
        remeasure(connection, legal_entity, period, now)
    except RateMissing as error:
        raise ProposalRefused(f"the book of {month} cannot be remeasured: {error}") from None
    connection.execute(insert(book).values(legal_entity=legal_entity, month=month).on_conflict_do_nothing())
    connection.execute(
        update(book).where(of_entity, book.c.month == month, book.c.state == "open").values(state="closed")
    )
