"""From the database's rows to an invoice with what has become of it, and back."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

from sqlalchemy import ARRAY, UUID, Connection, Row, any_, cast, select

from billing import tables
from billing.bills.late_usage import plain_group
from billing.bills.tax import TaxMode
from billing.errors import InvoiceAltered
from billing.invoicing import invoice_parts
from billing.invoicing.invoice_parts import Parts
from billing.invoicing.invoice_states import InvoiceState
from billing.invoicing.invoices import INVOICED, Invoice, InvoiceIdentity, InvoiceKind, InvoiceLine
from billing.invoicing.rated_line_store import line_columns, rated_line
from billing.invoicing.sending import SendingStep
from billing.periods import BillingPeriod


@dataclass(frozen=True, slots=True)
class StoredInvoice:
    """An invoice with what has become of it. Times are UTC; `frozen_at` set means its content is final.

    `stored_id` and `stored_lines_hash` are as the row has them: they follow from identity and lines, unless somebody
    changed those.
    """

    invoice: Invoice
    state: InvoiceState
    sending_step: SendingStep
    drafted_at: datetime
    frozen_at: datetime | None
    parked_because: str | None
    number: str | None
    issue_date: date | None
    due_date: date | None
    stripe_customer_id: str | None
    stripe_invoice_id: str | None
    hosted_invoice_url: str | None
    invoice_pdf_url: str | None
    stored_id: uuid.UUID
    stored_lines_hash: str

    @property
    def altered(self) -> bool:
        """Whether this is not what was drawn up."""
        return (self.stored_id, self.stored_lines_hash) != (self.invoice.invoice_id, self.invoice.lines_hash)


def line_row(invoice_id: uuid.UUID, line: InvoiceLine) -> dict[str, object]:
    return line_columns(line.rated) | {
        "invoice_id": invoice_id,
        "line_key": line.line_key,
        "original_start": line.original_period and line.original_period.start,
        "original_end": line.original_period and line.original_period.end,
        "amount_exact": line.rated.amount,
        "amount_minor": line.amount_minor,
        "tax_group": line.tax_group,
    }


def unaltered(found: list[StoredInvoice]) -> list[StoredInvoice]:
    """Nothing goes on from an invoice that is not what was drawn up. Raises InvoiceAltered."""
    altered = [stored for stored in found if stored.altered]
    if altered:
        raise InvoiceAltered(why_altered(altered))
    return found


def altered_by_account(found: Iterable[StoredInvoice]) -> dict[str, str]:
    """Billing accounts with an invoice that is not what was drawn up: nothing goes on with these, with all others it
    does. In words."""
    altered: dict[str, list[StoredInvoice]] = defaultdict(list)
    for stored in found:
        if stored.altered:
            altered[stored.invoice.identity.billing_account].append(stored)
    return {name: why_altered(listed) for name, listed in altered.items()}


def why_altered(altered: Sequence[StoredInvoice]) -> str:
    """Which invoices are not what was drawn up, and who lists them."""
    first = altered[0].invoice.identity
    return (
        f"{len(altered)} stored invoices are not what was drawn up, the first is {altered[0].stored_id} of"
        f" {first.billing_account}: `tollbook reconcile run {first.period.name}` lists them"
    )


def with_lines(connection: Connection, rows: Collection[Row[Any]]) -> list[StoredInvoice]:
    table = tables.invoice_lines
    lines: dict[uuid.UUID, list[InvoiceLine]] = {row.invoice_id: [] for row in rows}
    payers = {row.invoice_id: (row.billing_account, row.currency) for row in rows}
    query = (
        select(table)
        .where(table.c.invoice_id == any_(cast(list(lines), ARRAY(UUID))))
        .order_by(table.c.line_key.collate("C"))
    )
    for row in connection.execute(query):
        account, code = payers[row.invoice_id]
        rated = rated_line(row, billing_account=account, currency=code, amount=row.amount_exact, reason=INVOICED)
        rated = replace(rated, tax_group=plain_group(row.tax_group))
        original = BillingPeriod(row.original_start, row.original_end) if row.original_start else None
        line = InvoiceLine(row.line_key, rated, row.amount_minor, original, row.tax_group)
        lines[row.invoice_id].append(line)
    parts = invoice_parts.of_invoices(connection, list(lines))
    return [stored_invoice(row, tuple(lines[row.invoice_id]), parts[row.invoice_id]) for row in rows]


def stored_invoice(row: Row[Any], lines: tuple[InvoiceLine, ...], parts: Parts) -> StoredInvoice:
    identity = InvoiceIdentity(
        row.legal_entity,
        row.billing_account,
        InvoiceKind(row.kind),
        BillingPeriod(row.service_start, row.service_end),
        row.currency,
        row.revision,
    )
    invoice = Invoice(
        identity,
        lines,
        row.exact_total,
        row.rounding,
        row.net_minor,
        row.tax_minor,
        row.total_minor,
        row.amount_due_minor,
        TaxMode(row.tax_mode),
        tuple(parts.taxes),
        tuple(parts.credits),
        tuple(parts.carried),
        row.credits_invoice_id,
    )
    return StoredInvoice(
        invoice=invoice,
        state=InvoiceState(row.state),
        sending_step=SendingStep(row.sending_step),
        drafted_at=row.drafted_at,
        frozen_at=row.frozen_at,
        parked_because=row.parked_because,
        number=row.number,
        issue_date=row.issue_date,
        due_date=row.due_date,
        stripe_customer_id=row.stripe_customer_id,
        stripe_invoice_id=row.stripe_invoice_id,
        hosted_invoice_url=row.hosted_invoice_url,
        invoice_pdf_url=row.invoice_pdf_url,
        stored_id=row.invoice_id,
        stored_lines_hash=row.lines_hash,
    )
