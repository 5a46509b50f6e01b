"""Invoices in the database: one row per identity, its lines, its states, its number."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from datetime import date, datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    UUID,
    ColumnElement,
    Connection,
    String,
    and_,
    any_,
    case,
    cast,
    exists,
    func,
    or_,
    select,
    update,
)

from billing import tables
from billing.errors import IllegalTransition, InvoiceFrozen, UnknownInvoice
from billing.invoicing import invoice_parts
from billing.invoicing.invoice_parts import Parts
from billing.invoicing.invoice_rows import StoredInvoice, line_row, stored_invoice, unaltered, with_lines
from billing.invoicing.invoice_states import ISSUED, InvoiceEvent, InvoiceState, after
from billing.invoicing.invoices import Invoice, InvoiceKind
from billing.periods import BillingPeriod


def lock_kind(connection: Connection, kind: InvoiceKind) -> None:
    """Let drafts of a kind that has no rating of its own go one after another, until the transaction ends."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"draft/{kind.value}", 0))))


def save_draft(connection: Connection, invoice: Invoice, now: datetime, actor: str) -> bool:
    """Store a draft, or bring a stored one to this content; False if it is there already with the same lines.

    Raises InvoiceFrozen if the stored one is frozen with other lines.
    """
    table = tables.invoices
    invoice_id = invoice.invoice_id
    found = connection.execute(
        select(table.c.lines_hash, table.c.frozen_at).where(table.c.invoice_id == invoice_id).with_for_update()
    ).first()
    amounts = {
        "exact_total": invoice.exact_total,
        "rounding": invoice.rounding,
        "net_minor": invoice.net_minor,
        "tax_minor": invoice.tax_minor,
        "total_minor": invoice.total_minor,
        "amount_due_minor": invoice.amount_due_minor,
        "tax_mode": invoice.tax_mode.value,
        "lines_hash": invoice.lines_hash,
        "drafted_at": now,
    }
    if found is None:
        identity = invoice.identity
        connection.execute(
            table.insert().values(
                invoice_id=invoice_id,
                legal_entity=identity.legal_entity,
                billing_account=identity.billing_account,
                kind=identity.kind.value,
                service_start=identity.period.start,
                service_end=identity.period.end,
                currency=identity.currency,
                revision=identity.revision,
                credits_invoice_id=invoice.credits_invoice_id,
                state=InvoiceState.DRAFT.value,
                **amounts,
            )
        )
        _add_transition(connection, invoice_id, None, InvoiceState.DRAFT, now, actor)
    elif found.lines_hash == invoice.lines_hash:
        return False
    elif found.frozen_at is not None:
        raise InvoiceFrozen(f"invoice {invoice_id} is frozen: what came later belongs to another document")
    else:
        connection.execute(update(table).where(table.c.invoice_id == invoice_id).values(**amounts))
        connection.execute(tables.invoice_lines.delete().where(tables.invoice_lines.c.invoice_id == invoice_id))
    if invoice.lines:
        connection.execute(tables.invoice_lines.insert(), [line_row(invoice_id, line) for line in invoice.lines])
    invoice_parts.save(connection, invoice, replace=found is not None)
    return True


def load(connection: Connection, invoice_id: uuid.UUID) -> StoredInvoice:
    """One invoice. Raises UnknownInvoice."""
    row = connection.execute(select(tables.invoices).where(tables.invoices.c.invoice_id == invoice_id)).first()
    if row is None:
        raise UnknownInvoice(f"there is no invoice {invoice_id}")
    return unaltered(with_lines(connection, [row]))[0]


def find(connection: Connection, reference: str) -> StoredInvoice:
    """The invoice with this id, number or Stripe id. Raises UnknownInvoice."""
    table = tables.invoices
    try:
        matches = table.c.invoice_id == uuid.UUID(reference)
    except ValueError:
        matches = (table.c.number == reference) | (table.c.stripe_invoice_id == reference)
    rows = connection.execute(select(table).where(matches)).all()
    if len(rows) != 1:
        raise UnknownInvoice(f"{len(rows) or 'no'} invoices are called {reference!r}: `tollbook invoice list` has them")
    return unaltered(with_lines(connection, rows))[0]


def headers(
    connection: Connection, invoice_ids: Collection[uuid.UUID | None]
) -> dict[uuid.UUID | None, tuple[str | None, date | None]]:
    """Number and issue date of invoices."""
    table = tables.invoices
    wanted = cast([each for each in invoice_ids if each is not None], ARRAY(UUID))
    query = select(table.c.invoice_id, table.c.number, table.c.issue_date).where(table.c.invoice_id == any_(wanted))
    return {row[0]: (row[1], row[2]) for row in connection.execute(query)}


def selected(connection: Connection, *conditions: ColumnElement[bool]) -> list[StoredInvoice]:
    """The invoices that meet conditions, with their lines, by period, account, kind and revision, altered or not."""
    table = tables.invoices
    query = select(table).where(*conditions)
    query = query.order_by(table.c.service_start, table.c.billing_account, table.c.kind, table.c.revision)
    return with_lines(connection, connection.execute(query).all())


def listed(
    connection: Connection,
    *,
    period: BillingPeriod | None = None,
    within: BillingPeriod | None = None,
    adjusts: BillingPeriod | None = None,
    billing_account: str | None = None,
    billing_accounts: Collection[str] | None = None,
    states: Collection[InvoiceState] | None = None,
    kind: InvoiceKind | None = None,
    invoice_ids: Collection[uuid.UUID] | None = None,
    ending_after: datetime | None = None,
    of_month: BillingPeriod | None = None,
    as_stored: bool = False,
) -> list[StoredInvoice]:
    """Invoices with their lines, by period and billing account. Raises InvoiceAltered, but not `as_stored`.

    `period` takes exactly that service period, `within` every one that lies in it, `adjusts` those with lines of that
    earlier period, `of_month` what a month bills: periods that end in it, and fees in advance that begin in it.
    """
    table, lines = tables.invoices, tables.invoice_lines
    where: list[ColumnElement[bool]] = []
    if period is not None:
        where += [table.c.service_start == period.start, table.c.service_end == period.end]
    if within is not None:
        where += [table.c.service_start >= within.start, table.c.service_end <= within.end]
    if adjusts is not None:
        of = select(lines.c.invoice_id).where(
            lines.c.original_start == adjusts.start, lines.c.original_end == adjusts.end
        )
        where.append(table.c.invoice_id.in_(of))
    if billing_account is not None:
        where.append(table.c.billing_account == billing_account)
    if billing_accounts is not None:
        where.append(table.c.billing_account == any_(cast(list(billing_accounts), ARRAY(String))))
    if states is not None:
        where.append(table.c.state.in_([state.value for state in states]))
    if kind is not None:
        where.append(table.c.kind == kind.value)
    if invoice_ids is not None:
        where.append(table.c.invoice_id == any_(cast(list(invoice_ids), ARRAY(UUID))))
    if ending_after is not None:
        where.append(table.c.service_end > ending_after)
    if of_month is not None:
        begins = and_(table.c.service_start >= of_month.start, table.c.service_start < of_month.end)
        ends = and_(table.c.service_end > of_month.start, table.c.service_end <= of_month.end)
        where.append(case((in_advance(), begins), else_=ends))
    found = selected(connection, *where)
    return found if as_stored else unaltered(found)


def in_advance() -> ColumnElement[bool]:
    """Whether the invoice of a row is for fees in advance: it bills some, or takes some back."""
    table, credited = tables.invoices, tables.invoices.alias()
    takes_back = exists().where(
        credited.c.invoice_id == table.c.credits_invoice_id, credited.c.kind == InvoiceKind.ADVANCE.value
    )
    return or_(table.c.kind == InvoiceKind.ADVANCE.value, takes_back)


def adjustment_drafts(connection: Connection, accounts: Collection[str]) -> list[StoredInvoice]:
    """Adjustment invoices of some billing accounts that are not frozen, altered or not."""
    table = tables.invoices
    return selected(
        connection,
        table.c.billing_account == any_(cast(list(accounts), ARRAY(String))),
        table.c.kind == InvoiceKind.ADJUSTMENT.value,
        table.c.frozen_at.is_(None),
    )


def open_adjustments(connection: Connection, *, before: BillingPeriod) -> list[StoredInvoice]:
    """Adjustment invoices of earlier periods that are not issued, altered or not."""
    table = tables.invoices
    return selected(
        connection,
        table.c.kind == InvoiceKind.ADJUSTMENT.value,
        table.c.state.in_([InvoiceState.DRAFT.value, InvoiceState.APPROVED.value]),
        table.c.service_end <= before.end,
        (table.c.service_start != before.start) | (table.c.service_end != before.end),
    )


def came_after(connection: Connection, month: BillingPeriod) -> list[StoredInvoice]:
    """Documents of what earlier months bill, frozen since a month began or not frozen yet: adjustment invoices, credit
    notes, fees that were asked for late. Altered or not.

    Invoices for usage are left out: each is issued by the close of its own month.
    """
    table = tables.invoices
    return selected(
        connection,
        table.c.kind != InvoiceKind.USAGE.value,
        case((in_advance(), table.c.service_start < month.start), else_=table.c.service_end <= month.start),
        or_(table.c.frozen_at.is_(None), table.c.frozen_at >= month.start),
    )


def earning_fees(connection: Connection, month: BillingPeriod, legal_entity: str | None = None) -> list[StoredInvoice]:
    """Issued invoices for fees in advance, and credit notes against such, of which something is earned in a month, or
    that came in it or after it. Altered or not."""
    table = tables.invoices
    where = [
        in_advance(),
        table.c.state.in_([state.value for state in ISSUED]),
        table.c.service_start < month.end,
        or_(table.c.service_end > month.start, table.c.frozen_at >= month.start),
    ]
    if legal_entity is not None:
        where.append(table.c.legal_entity == legal_entity)
    return selected(connection, *where)


def fees_until(connection: Connection, until: datetime, accounts: Collection[str] | None) -> list[StoredInvoice]:
    """Invoices for fees in advance, and credit notes against such, whose time begins by a moment, altered or not."""
    table = tables.invoices
    where = [in_advance(), table.c.service_start <= until]
    if accounts is not None:
        where.append(table.c.billing_account == any_(cast(list(accounts), ARRAY(String))))
    return selected(connection, *where)


def fees_of(connection: Connection, billing_account: str, period: BillingPeriod) -> list[StoredInvoice]:
    """An account's invoices for fees in advance of one service time, and credit notes against such, altered or not."""
    table = tables.invoices
    where = (
        in_advance(),
        table.c.billing_account == billing_account,
        table.c.service_start == period.start,
        table.c.service_end == period.end,
    )
    return selected(connection, *where)


def notes_of(connection: Connection, billing_account: str, period: BillingPeriod) -> int:
    """How many credit notes an account has of a period."""
    table = tables.invoices
    query = select(func.count()).where(
        table.c.billing_account == billing_account,
        table.c.service_start == period.start,
        table.c.service_end == period.end,
        table.c.kind == InvoiceKind.CREDIT_NOTE.value,
    )
    return connection.execute(query).scalar_one()


def move(
    connection: Connection, stored: StoredInvoice, event: InvoiceEvent, now: datetime, actor: str, **columns: Any
) -> StoredInvoice:
    """Let something happen to an invoice: its state follows from the event. `columns` are set with it."""
    state = after(stored.state, event)
    moved = set_columns(connection, stored, state=state.value, **columns)
    _add_transition(connection, stored.invoice.invoice_id, stored.state, state, now, actor)
    return moved


def set_columns(connection: Connection, stored: StoredInvoice, **columns: Any) -> StoredInvoice:
    """Set columns of an invoice that is as we know it; the invoice as it is then.

    The database refuses what a frozen one must keep. Raises IllegalTransition if someone else moved it meanwhile.
    """
    table = tables.invoices
    row = connection.execute(
        update(table)
        .where(
            table.c.invoice_id == stored.invoice.invoice_id,
            table.c.state == stored.state.value,
            table.c.sending_step == stored.sending_step.value,
            table.c.lines_hash == stored.invoice.lines_hash,
        )
        .values(**columns)
        .returning(*table.c)
    ).first()
    if row is None:
        raise IllegalTransition(f"invoice {stored.invoice.invoice_id} was changed by someone else: run it again")
    invoice = stored.invoice
    parts = Parts(list(invoice.taxes), list(invoice.credits), list(invoice.carried))
    return stored_invoice(row, invoice.lines, parts)


def park(connection: Connection, invoice_id: uuid.UUID, reason: str) -> None:
    """Say why an invoice waits for a person."""
    table = tables.invoices
    connection.execute(update(table).where(table.c.invoice_id == invoice_id).values(parked_because=reason))


def _add_transition(
    connection: Connection,
    invoice_id: uuid.UUID,
    before: InvoiceState | None,
    to: InvoiceState,
    at: datetime,
    actor: str,
) -> None:
    connection.execute(
        tables.invoice_transitions.insert().values(
            invoice_id=invoice_id, from_state=before, to_state=to.value, at=at, actor=actor
        )
    )
