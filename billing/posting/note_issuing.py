"""Issuing a credit note in the caller's transaction: stored, numbered, booked, drawn back (docs/spec/money.md 7, 8)."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from billing.database import raw
from billing.errors import CorrectionRefused, CreditRefused
from billing.invoicing import adjustment_store, correction_store, invoice_store, number_store
from billing.invoicing.correcting import CorrectionKind, credited
from billing.invoicing.credit_room import credit_room
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceEvent
from billing.invoicing.invoices import Invoice
from billing.invoicing.number_store import CREDIT_NOTE_SERIES
from billing.ledger import ledger_store
from billing.money import plain
from billing.periods import BillingPeriod
from billing.posting import credit_drawing
from billing.posting.posting_rules import invoice_issued
from billing.posting.stripe_money import major
from billing.rating.period import Coverable
from streams import audit


def issue_note(
    connection: Connection,
    note: Invoice,
    *,
    now: datetime,
    actor: str,
    coverables: Mapping[BillingPeriod, Mapping[str, Iterable[Coverable]]] | None = None,
    reason: str = "",
    content: Mapping[str, Any] | None = None,
    tell: bool = True,
) -> StoredInvoice:
    """Issue a credit note. One that comes to nothing keeps no number; `coverables` is what credits can cover after it.

    Where Stripe has the invoice it is against, it is to be told (`tell`), with `content`: `tollbook stripe sync` does.

    Raises CreditRefused where it draws what an invoice still to be issued gives back, and CorrectionRefused where
    Stripe could not be told of it: no number is used for it.
    """
    original = invoice_store.load(connection, _original(note))
    tell = tell and credited(note) > 0 and original.stripe_invoice_id is not None
    if tell and credited(note) > (room := credit_room(connection, original)):
        money, name = note.identity.money, original.number or original.invoice.invoice_id
        raise CorrectionRefused(
            f"{plain(major(room, money))} {money.code} of {name} can still be credited, and not"
            f" {plain(major(credited(note), money))}: the rest of it is void, credited or given back"
        )
    for credit in note.credits:
        if credit.left < 0:
            raise CreditRefused(
                f"it draws {plain(credit.amount)} of credit {credit.grant_id}, which the account's next invoice gives"
                " back: issued after that"
            )
    invoice_store.save_draft(connection, note, now, actor)
    if coverables:
        adjustment_store.save_coverables(connection, note.invoice_id, coverables)
    stored = invoice_store.load(connection, note.invoice_id)
    columns: dict[str, object] = {"frozen_at": now}
    event = InvoiceEvent.SETTLE_AS_ZERO
    of = note.identity
    if note.total_minor:
        event = InvoiceEvent.ISSUE
        columns["number"] = number_store.issue_number(connection, of.legal_entity, note.invoice_id, CREDIT_NOTE_SERIES)
        columns["issue_date"] = now.date()
    entry = invoice_issued(note, now=now)
    entry_id = None
    if entry is not None:
        entry_id = columns["entry_id"] = ledger_store.post(connection, [entry])[entry.idempotency_key]
    credit_drawing.draw(connection, note, entry_id, now, actor)
    number = columns.get("number")
    detail = {"number": number, "period": of.period.name, "total_minor": note.total_minor, "reason": reason}
    audit.record(raw(connection), actor, "credit_note.issue", of.billing_account, detail)
    issued = invoice_store.move(connection, stored, event, now, actor, **columns)
    if tell:
        correction_store.add(
            connection, _original(note), CorrectionKind.CREDIT_NOTE, reason=reason or f"credit note {number}",
            actor=actor, note_id=note.invoice_id, content=content,
        )  # fmt: skip
    return issued


def _original(note: Invoice) -> uuid.UUID:
    assert note.credits_invoice_id is not None, "a credit note is against an invoice"
    return note.credits_invoice_id
