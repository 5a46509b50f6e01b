"""Taking back all of an invoice, in the caller's transaction: what it billed is to be billed anew (money 7)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from billing.errors import CorrectionRefused
from billing.invoicing import invoice_store, rated_line_store, tax_store
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoices import Invoice
from billing.invoicing.reversing import cancelling_note
from billing.periods import INSTANT
from billing.posting.note_issuing import issue_note


def cancel(
    connection: Connection, stored: StoredInvoice, *, reason: str, now: datetime, actor: str, tell: bool,
    content: Mapping[str, Any] | None = None,
) -> StoredInvoice:  # fmt: skip
    """Issue the credit note over all that is left of an invoice. Raises CorrectionRefused."""
    of = stored.invoice
    for period in sorted({of.identity.period, *of.rated_totals}):
        rated_line_store.lock_period(connection, period)
    account, tax_point = of.identity.billing_account, of.identity.period.end - INSTANT
    note = cancelling_note(
        of,
        notes_against(connection, of),
        revision=invoice_store.notes_of(connection, account, of.identity.period),
        tax=tax_store.in_force(connection, [account], tax_point)[account],
    )
    if note.total_minor > 0:
        raise CorrectionRefused("what is left of it is less than nothing: it cannot be taken back")
    return issue_note(connection, note, now=now, actor=actor, reason=reason, tell=tell, content=content)


def notes_against(connection: Connection, of: Invoice) -> list[Invoice]:
    """The credit notes that an invoice has."""
    listed = invoice_store.listed(connection, billing_account=of.identity.billing_account)
    return [each.invoice for each in listed if each.invoice.credits_invoice_id == of.invoice_id]
