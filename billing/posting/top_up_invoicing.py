"""The invoice of a top-up, issued in the transaction that books its payment (docs/spec/money.md 1, 6, 8)."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection

from billing.bills.credits import Grant
from billing.database import raw
from billing.invoicing import invoice_store, number_store
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceEvent
from billing.invoicing.invoices import Invoice, InvoiceIdentity, InvoiceKind, draw_up
from billing.ledger import ledger_store
from billing.periods import BillingPeriod
from billing.plans.account_store import BillingAccount
from billing.posting.posting_rules import Booking, invoice_issued
from billing.rating import LineIdentity, LineKind, RatedLine
from streams import audit

NO_SUBSCRIPTION: Final = uuid.UUID(int=0)


def top_up_invoice(account: BillingAccount, grant: Grant, paid_at: datetime, revision: int) -> Invoice:
    """The invoice over a top-up: of the day (UTC) on which it was paid, nothing due, its line named like the credit.

    Without tax: that comes with what the credit pays for.
    """
    day = paid_at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    period = BillingPeriod(day, day + timedelta(days=1))
    line = RatedLine(
        identity=LineIdentity(
            account.billing_account, grant.grant_id, 0, "", 0, LineKind.TOP_UP, "", NO_SUBSCRIPTION
        ),
        metric="",
        where=("", "", "", ""),
        billing_account=account.billing_account,
        currency=grant.currency,
        service_start=period.start,
        service_end=period.end,
        unit_price=grant.amount,
        quantity=Decimal(1),
        amount=grant.amount,
        reason="top-up",
    )  # fmt: skip
    identity = InvoiceIdentity(
        account.legal_entity, account.billing_account, InvoiceKind.TOP_UP, period, grant.currency, revision
    )
    return replace(draw_up(identity, [line], plan_versions={}, rounding=account.rounding), amount_due_minor=0)


def issue(
    connection: Connection, account: BillingAccount, grant: Grant, paid_at: datetime, *, where: Booking,
    now: datetime, actor: str,
) -> StoredInvoice:  # fmt: skip
    """Issue it, under the lock of the account's top-ups: Dr 1100 / Cr 2100, `where` the payment is booked."""
    first = top_up_invoice(account, grant, paid_at, 0)
    same_day = invoice_store.listed(
        connection, period=first.identity.period, billing_account=account.billing_account, kind=InvoiceKind.TOP_UP
    )
    invoice = top_up_invoice(account, grant, paid_at, len(same_day))
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
        "entry_id": ledger_store.post(connection, [entry])[entry.idempotency_key],
    }
    detail = {"number": number, "credit": grant.grant_id, "total_minor": invoice.total_minor}
    audit.record(raw(connection), actor, "credit.top_up.invoice", account.billing_account, detail)
    return invoice_store.move(connection, stored, InvoiceEvent.ISSUE, now, actor, **columns)
