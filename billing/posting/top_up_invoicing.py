"""Invoices over prepaid credit: of a top-up that is paid, or before the payment where the contract lets a credit count
from its invoice; and what takes such a one back (docs/spec/money.md 1, 6, 8; docs/decisions/0034)."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection, select

from billing import tables
from billing.bills.credit_notes import Remaining, credit_note
from billing.bills.credits import Grant
from billing.bills.documents import Payer
from billing.bills.tax import NO_TAX
from billing.database import raw
from billing.invoicing import credit_store, invoice_store, invoices, number_store
from billing.invoicing.credit_store import Movement, MovementKind
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceEvent
from billing.invoicing.invoices import Invoice, InvoiceIdentity, InvoiceKind, draw_up
from billing.invoicing.sending import due_date
from billing.ledger import ledger_store
from billing.money import ZERO, exactly
from billing.periods import BillingPeriod
from billing.plans.account_store import BillingAccount
from billing.posting import top_up_store
from billing.posting.booking import booking
from billing.posting.note_issuing import issue_note
from billing.posting.posting_rules import Booking, invoice_issued
from billing.rating import LineIdentity, LineKind, RatedLine
from streams import audit

NO_SUBSCRIPTION: Final = uuid.UUID(int=0)


def top_up_invoice(account: BillingAccount, grant: Grant, at: datetime, revision: int, *, is_paid: bool) -> Invoice:
    """The invoice over prepaid credit: of the day (UTC) on which it was paid, nothing due; or due from that day on.

    Its line is named like the credit. Without tax: that comes with what the credit pays for.
    """
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    period = BillingPeriod(day, day + timedelta(days=1))
    identity = InvoiceIdentity(
        account.legal_entity, account.billing_account, InvoiceKind.TOP_UP, period, grant.currency, revision
    )
    line = _line(account, grant, period, Decimal(1), grant.amount)
    made = draw_up(identity, [line], plan_versions={}, rounding=account.rounding)
    return replace(made, amount_due_minor=0) if is_paid else made


def _line(account: BillingAccount, grant: Grant, period: BillingPeriod, quantity: Decimal, price: Decimal) -> RatedLine:
    with exactly():
        amount = quantity * price
    return RatedLine(
        identity=LineIdentity(
            account.billing_account, grant.grant_id, 0, "", 0, LineKind.TOP_UP, "", NO_SUBSCRIPTION
        ),
        metric="",
        where=("", "", "", ""),
        billing_account=account.billing_account,
        currency=grant.currency,
        service_start=period.start,
        service_end=period.end,
        unit_price=price,
        quantity=quantity,
        amount=amount,
        reason="top-up",
    )  # fmt: skip


def issue(
    connection: Connection, account: BillingAccount, grant: Grant, at: datetime, *, where: Booking, now: datetime,
    actor: str, is_paid: bool,
) -> StoredInvoice:  # fmt: skip
    """Issue it, under the lock of the account's top-ups: Dr 1100 / Cr 2100, `where` it is booked."""
    top_up_store.lock(connection, account.billing_account)
    first = top_up_invoice(account, grant, at, 0, is_paid=is_paid)
    same_day = invoice_store.listed(
        connection, period=first.identity.period, billing_account=account.billing_account, kind=InvoiceKind.TOP_UP
    )
    invoice = top_up_invoice(account, grant, at, len(same_day), is_paid=is_paid)
    invoice_store.save_draft(connection, invoice, now, actor)
    stored = invoice_store.load(connection, invoice.invoice_id)
    entry = invoice_issued(invoice, now=where.effective_at)
    assert entry is not None, "a credit is more than nothing"
    entry = replace(entry, original_period=where.original_period)
    number = number_store.issue_number(connection, account.legal_entity, invoice.invoice_id)
    columns: dict[str, object] = {
        "frozen_at": now,
        "number": number,
        "issue_date": now.date(),
        "due_date": None if is_paid else due_date(now.date(), account.payment_terms_days),
        "entry_id": ledger_store.post(connection, [entry])[entry.idempotency_key],
    }
    detail = {"number": number, "credit": grant.grant_id, "total_minor": invoice.total_minor}
    audit.record(raw(connection), actor, "credit.top_up.invoice", account.billing_account, detail)
    return invoice_store.move(connection, stored, InvoiceEvent.ISSUE, now, actor, **columns)


def invoice_before_payment(
    connection: Connection, account: BillingAccount, grant: Grant, *, now: datetime, actor: str
) -> StoredInvoice:
    """Invoice a credit that counts from its invoice: due, owed and usable from `now` on. It must not be owed yet."""
    key = f"credit:{grant.grant_id}:invoiced"
    where = booking(connection, key, legal_entity=account.legal_entity, at=now, now=now)
    stored = issue(connection, account, grant, now, where=where, now=now, actor=actor, is_paid=False)
    booked = ledger_store.entry(connection, f"invoice:{stored.invoice.invoice_id}")
    assert booked is not None, "it is issued"
    movement = Movement(key, grant.grant_id, MovementKind.INVOICED, ZERO, now, entry_id=booked[0])
    credit_store.move(connection, [movement], actor)
    return stored


def take_back(
    connection: Connection, account: BillingAccount, grant: Grant, amount: Decimal, *, reason: str, now: datetime,
    actor: str,
) -> int | None:  # fmt: skip
    """Issue the credit note over what is left of a credit that was invoiced and is not paid: Dr 2100 / Cr 1100. Returns
    its entry."""
    of = invoice_of(connection, grant.grant_id).invoice
    period = of.identity.period
    line = _line(account, grant, period, Decimal(-1), amount)
    remaining = Remaining(
        {each.line_key: (each.rated.amount, each.amount_minor) for each in of.lines},
        {each.tax_group: (each.amount_minor, 0) for each in of.lines},
    )
    payer = Payer(of.identity.money, rounding=account.rounding)
    document, _ = credit_note(period, {each.line_key: line for each in of.lines}, {}, remaining, payer)
    identity = InvoiceIdentity(
        account.legal_entity, account.billing_account, InvoiceKind.CREDIT_NOTE, period, grant.currency,
        invoice_store.notes_of(connection, account.billing_account, period),
    )  # fmt: skip
    note = invoices.credit_note(identity, of.invoice_id, document, tax=NO_TAX)
    issue_note(connection, note, now=now, actor=actor, reason=reason)
    booked = ledger_store.entry(connection, f"invoice:{note.invoice_id}")
    return None if booked is None else booked[0]


def invoice_of(connection: Connection, grant_id: str) -> StoredInvoice:
    """The invoice over a credit, which it has."""
    lines = tables.invoice_lines
    with_it = select(lines.c.invoice_id).where(lines.c.kind == LineKind.TOP_UP.value, lines.c.charge_key == grant_id)
    of = tables.invoices.c
    (stored,) = invoice_store.selected(connection, of.invoice_id.in_(with_it), of.kind == InvoiceKind.TOP_UP.value)
    return stored
