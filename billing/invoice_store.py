"""Invoices in the database: one row per identity, its lines, its states, its number."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import ARRAY, UUID, Connection, Row, String, and_, any_, case, cast, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from billing import invoice_parts, tables
from billing.credits import TaxTreatment
from billing.errors import IllegalTransition, InvoiceAltered, InvoiceFrozen, UnknownInvoice
from billing.invoice_parts import Parts
from billing.invoices import (
    INVOICED,
    ISSUED,
    Invoice,
    InvoiceEvent,
    InvoiceIdentity,
    InvoiceKind,
    InvoiceLine,
    InvoiceState,
    after,
)
from billing.late_usage import plain_group
from billing.periods import BillingPeriod
from billing.rated_line_store import line_columns, rated_line
from billing.rating import LineKind
from billing.sending import SendingStep
from billing.tax import TaxMode

INVOICE_SERIES: Final = "invoice"
CREDIT_NOTE_SERIES: Final = "credit_note"
_PREFIX: Final = {INVOICE_SERIES: "", CREDIT_NOTE_SERIES: "CN-"}


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
        connection.execute(tables.invoice_lines.insert(), [_line_row(invoice_id, line) for line in invoice.lines])
    invoice_parts.save(connection, invoice, replace=found is not None)
    return True


def load(connection: Connection, invoice_id: uuid.UUID) -> StoredInvoice:
    """One invoice. Raises UnknownInvoice."""
    row = connection.execute(select(tables.invoices).where(tables.invoices.c.invoice_id == invoice_id)).first()
    if row is None:
        raise UnknownInvoice(f"there is no invoice {invoice_id}")
    return _unaltered(_with_lines(connection, [row]))[0]


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
    return _unaltered(_with_lines(connection, rows))[0]


def headers(
    connection: Connection, invoice_ids: Collection[uuid.UUID | None]
) -> dict[uuid.UUID | None, tuple[str | None, date | None]]:
    """Number and issue date of invoices."""
    table = tables.invoices
    wanted = cast([each for each in invoice_ids if each is not None], ARRAY(UUID))
    query = select(table.c.invoice_id, table.c.number, table.c.issue_date).where(table.c.invoice_id == any_(wanted))
    return {row[0]: (row[1], row[2]) for row in connection.execute(query)}


def listed(
    connection: Connection,
    *,
    period: BillingPeriod | None = None,
    within: BillingPeriod | None = None,
    billing_account: str | None = None,
    states: Collection[InvoiceState] | None = None,
    kind: InvoiceKind | None = None,
    invoice_ids: Collection[uuid.UUID] | None = None,
    ending_after: datetime | None = None,
    of_month: BillingPeriod | None = None,
) -> list[StoredInvoice]:
    """Invoices with their lines, by period and billing account. Raises InvoiceAltered.

    `period` takes exactly that service period, `within` every one that lies in it, `of_month` what a month bills:
    periods that end in it, and fees in advance that begin in it.
    """
    return _unaltered(
        as_stored(
            connection,
            period=period,
            within=within,
            billing_account=billing_account,
            states=states,
            kind=kind,
            invoice_ids=invoice_ids,
            ending_after=ending_after,
            of_month=of_month,
        )
    )


def as_stored(
    connection: Connection,
    *,
    period: BillingPeriod | None = None,
    within: BillingPeriod | None = None,
    adjusts: BillingPeriod | None = None,
    billing_account: str | None = None,
    states: Collection[InvoiceState] | None = None,
    kind: InvoiceKind | None = None,
    invoice_ids: Collection[uuid.UUID] | None = None,
    ending_after: datetime | None = None,
    of_month: BillingPeriod | None = None,
) -> list[StoredInvoice]:
    """The same, altered or not: for whoever says so of each. `adjusts` takes those with lines of an earlier period."""
    table, lines = tables.invoices, tables.invoice_lines
    query = select(table).order_by(table.c.service_start, table.c.billing_account, table.c.kind, table.c.revision)
    if period is not None:
        query = query.where(table.c.service_start == period.start, table.c.service_end == period.end)
    if within is not None:
        query = query.where(table.c.service_start >= within.start, table.c.service_end <= within.end)
    if adjusts is not None:
        of = select(lines.c.invoice_id).where(
            lines.c.original_start == adjusts.start, lines.c.original_end == adjusts.end
        )
        query = query.where(table.c.invoice_id.in_(of))
    if billing_account is not None:
        query = query.where(table.c.billing_account == billing_account)
    if states is not None:
        query = query.where(table.c.state.in_([state.value for state in states]))
    if kind is not None:
        query = query.where(table.c.kind == kind.value)
    if invoice_ids is not None:
        query = query.where(table.c.invoice_id == any_(cast(list(invoice_ids), ARRAY(UUID))))
    if ending_after is not None:
        query = query.where(table.c.service_end > ending_after)
    if of_month is not None:
        in_advance = table.c.kind == InvoiceKind.ADVANCE.value
        begins = and_(table.c.service_start >= of_month.start, table.c.service_start < of_month.end)
        ends = and_(table.c.service_end > of_month.start, table.c.service_end <= of_month.end)
        query = query.where(case((in_advance, begins), else_=ends))
    return _with_lines(connection, connection.execute(query).all())


def earning_fees(connection: Connection, month: BillingPeriod, legal_entity: str | None = None) -> list[Invoice]:
    """Issued invoices for fees in advance of which something is earned in a month, or that came in it or after it."""
    table = tables.invoices
    query = select(table).where(
        table.c.kind == InvoiceKind.ADVANCE.value,
        table.c.state.in_([state.value for state in ISSUED]),
        table.c.service_start < month.end,
        or_(table.c.service_end > month.start, table.c.frozen_at >= month.start),
    )
    if legal_entity is not None:
        query = query.where(table.c.legal_entity == legal_entity)
    return [stored.invoice for stored in _unaltered(_with_lines(connection, connection.execute(query).all()))]


def totals(
    connection: Connection, states: Collection[InvoiceState]
) -> list[tuple[str, str, datetime, int, Decimal, int, int]]:
    """All invoices in some states, by billing account, currency and service end.

    What is receivable in minor units (the total less what credits pay), the rounding, tax, and tax within prices.
    """
    table, credits = tables.invoices, tables.invoice_credits
    paid = (
        select(credits.c.invoice_id, func.sum(credits.c.amount_minor).label("minor"))
        .where(credits.c.tax_treatment == TaxTreatment.PAYMENT.value)
        .group_by(credits.c.invoice_id)
        .subquery()
    )
    key = (table.c.billing_account, table.c.currency, table.c.service_end)
    within = case((table.c.tax_mode == TaxMode.INCLUSIVE.value, table.c.tax_minor), else_=0)
    sums = (
        func.sum(table.c.total_minor - func.coalesce(paid.c.minor, 0)),
        func.sum(table.c.rounding),
        func.sum(table.c.tax_minor),
        func.sum(within),
    )
    query = (
        select(*key, *sums)
        .join(paid, paid.c.invoice_id == table.c.invoice_id, isouter=True)
        .where(table.c.state.in_([state.value for state in states]))
        .group_by(*key)
    )
    return [(*row[:3], int(row[3]), row[4], int(row[5]), int(row[6])) for row in connection.execute(query)]


def invoiced_by_tenant(connection: Connection, states: Collection[InvoiceState]) -> dict[tuple[str, str], Decimal]:
    """The rated lines of all invoices in some states, but fees in advance: (tenant, currency) → exact amount."""
    lines, table = tables.invoice_lines, tables.invoices
    query = (
        select(lines.c.tenant_id, table.c.currency, func.sum(lines.c.amount_exact))
        .join(table, table.c.invoice_id == lines.c.invoice_id)
        .where(
            table.c.state.in_([state.value for state in states]),
            table.c.kind != InvoiceKind.ADVANCE.value,
            lines.c.kind != LineKind.CREDIT.value,
        )
        .group_by(lines.c.tenant_id, table.c.currency)
    )
    return {(row[0], row[1]): row[2] for row in connection.execute(query)}


def invoiced_in_advance(connection: Connection, states: Collection[InvoiceState]) -> dict[str, Decimal]:
    """The fees of all invoices for fees in advance in some states: currency → exact amount."""
    table = tables.invoices
    query = (
        select(table.c.currency, func.sum(table.c.exact_total))
        .where(table.c.state.in_([state.value for state in states]), table.c.kind == InvoiceKind.ADVANCE.value)
        .group_by(table.c.currency)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def services(
    connection: Connection, kind: InvoiceKind, states: Collection[InvoiceState]
) -> dict[uuid.UUID, BillingPeriod]:
    """The service periods of all invoices of a kind in some states, by id."""
    table = tables.invoices
    query = select(table.c.invoice_id, table.c.service_start, table.c.service_end)
    query = query.where(table.c.kind == kind.value, table.c.state.in_([state.value for state in states]))
    return {row[0]: BillingPeriod(row[1], row[2]) for row in connection.execute(query)}


def stripe_invoice_ids(connection: Connection) -> set[str]:
    """Stripe's ids of all our invoices."""
    column = tables.invoices.c.stripe_invoice_id
    return set(connection.execute(select(column).where(column.is_not(None))).scalars())


def frozen_accounts(connection: Connection, period: BillingPeriod) -> set[str]:
    """Billing accounts whose usage invoice of the period is frozen: later usage belongs to another document."""
    return set(frozen_usage_invoices(connection, period))


def frozen_usage_invoices(connection: Connection, period: BillingPeriod) -> dict[str, uuid.UUID]:
    """The usage invoices of a period that are frozen, by billing account."""
    table = tables.invoices
    query = select(table.c.billing_account, table.c.invoice_id).where(
        table.c.service_start == period.start,
        table.c.service_end == period.end,
        table.c.kind == InvoiceKind.USAGE.value,
        table.c.frozen_at.is_not(None),
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def adjustment_drafts(connection: Connection, accounts: Collection[str]) -> list[Invoice]:
    """Adjustment invoices of some billing accounts that are not frozen."""
    table = tables.invoices
    query = select(table).where(
        table.c.billing_account == any_(cast(list(accounts), ARRAY(String))),
        table.c.kind == InvoiceKind.ADJUSTMENT.value,
        table.c.frozen_at.is_(None),
    )
    return [s.invoice for s in _unaltered(_with_lines(connection, connection.execute(query).all()))]


def open_adjustments(connection: Connection, *, before: BillingPeriod) -> list[StoredInvoice]:
    """Adjustment invoices of earlier periods that are not issued."""
    table = tables.invoices
    query = select(table).where(
        table.c.kind == InvoiceKind.ADJUSTMENT.value,
        table.c.state.in_([InvoiceState.DRAFT.value, InvoiceState.APPROVED.value]),
        table.c.service_end <= before.end,
        (table.c.service_start != before.start) | (table.c.service_end != before.end),
    )
    return _unaltered(_with_lines(connection, connection.execute(query).all()))


def frozen_until(connection: Connection, accounts: Collection[str]) -> datetime | None:
    """Up to when frozen invoices of some billing accounts say what holds: the latest end of one over usage.

    One for fees in advance says so up to when its time begins; after that a change is a document of its own (13.10).
    """
    table = tables.invoices
    until = case((table.c.kind == InvoiceKind.ADVANCE.value, table.c.service_start), else_=table.c.service_end)
    return connection.execute(
        select(func.max(until)).where(
            table.c.billing_account == any_(cast(list(accounts), ARRAY(String))), table.c.frozen_at.is_not(None)
        )
    ).scalar()


def usage_billed_until(connection: Connection, account: str) -> datetime | None:
    """The latest end of a billing account's frozen invoice but those for fees in advance."""
    table = tables.invoices
    query = select(func.max(table.c.service_end)).where(
        table.c.billing_account == account,
        table.c.kind != InvoiceKind.ADVANCE.value,
        table.c.frozen_at.is_not(None),
    )
    return connection.execute(query).scalar()


def billed_in_advance(connection: Connection, tenants: Collection[str], at: datetime) -> bool:
    """Whether a frozen invoice bills fees of some tenants that begin at a moment."""
    table, lines = tables.invoices, tables.invoice_lines
    query = (
        select(lines.c.invoice_id)
        .join(table, table.c.invoice_id == lines.c.invoice_id)
        .where(
            lines.c.tenant_id == any_(cast(list(tenants), ARRAY(String))),
            table.c.kind == InvoiceKind.ADVANCE.value,
            table.c.service_start == at,
            table.c.frozen_at.is_not(None),
        )
    )
    return connection.execute(query.limit(1)).first() is not None


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
    return _stored(row, invoice.lines, parts)


def park(connection: Connection, invoice_id: uuid.UUID, reason: str) -> None:
    """Say why an invoice waits for a person."""
    table = tables.invoices
    connection.execute(update(table).where(table.c.invoice_id == invoice_id).values(parked_because=reason))


def issue_number(
    connection: Connection, legal_entity: str, invoice_id: uuid.UUID, series_name: str = INVOICE_SERIES
) -> str:
    """The next number of the legal entity's invoices, or of another series. The counter stays locked until the
    transaction ends: no gaps."""
    series = tables.number_series
    prefix = f"{legal_entity.upper()}-{_PREFIX[series_name]}"
    connection.execute(
        insert(series)
        .values(legal_entity=legal_entity, series=series_name, prefix=prefix, last_number=0)
        .on_conflict_do_nothing()
    )
    row = connection.execute(
        update(series)
        .where(series.c.legal_entity == legal_entity, series.c.series == series_name)
        .values(last_number=series.c.last_number + 1)
        .returning(series.c.prefix, series.c.last_number)
    ).one()
    written = f"{row.prefix}{row.last_number:06d}"
    connection.execute(
        tables.issued_numbers.insert().values(
            legal_entity=legal_entity,
            series=series_name,
            number=row.last_number,
            written=written,
            invoice_id=invoice_id,
        )
    )
    return written


def numbers(connection: Connection) -> dict[str, tuple[int, int, int]]:
    """`entity/series` → (last number, how many were issued, the highest of these)."""
    series, issued = tables.number_series, tables.issued_numbers
    key = (series.c.legal_entity, series.c.series)
    query = (
        select(*key, series.c.last_number, func.count(issued.c.number), func.coalesce(func.max(issued.c.number), 0))
        .join(
            issued,
            (issued.c.legal_entity == series.c.legal_entity) & (issued.c.series == series.c.series),
            isouter=True,
        )
        .group_by(*key, series.c.last_number)
    )
    return {f"{row[0]}/{row[1]}": (row[2], row[3], row[4]) for row in connection.execute(query)}


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


def _line_row(invoice_id: uuid.UUID, line: InvoiceLine) -> dict[str, object]:
    return line_columns(line.rated) | {
        "invoice_id": invoice_id,
        "line_key": line.line_key,
        "original_start": line.original_period and line.original_period.start,
        "original_end": line.original_period and line.original_period.end,
        "amount_exact": line.rated.amount,
        "amount_minor": line.amount_minor,
        "tax_group": line.tax_group,
    }


def _unaltered(found: list[StoredInvoice]) -> list[StoredInvoice]:
    """Nothing goes on from an invoice that is not what was drawn up."""
    altered = [stored for stored in found if stored.altered]
    if altered:
        first = altered[0].invoice.identity
        raise InvoiceAltered(
            f"{len(altered)} stored invoices are not what was drawn up, the first is {altered[0].stored_id} of"
            f" {first.billing_account}: `tollbook reconcile run {first.period.name}` lists them"
        )
    return found


def _with_lines(connection: Connection, rows: Collection[Row[Any]]) -> list[StoredInvoice]:
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
    return [_stored(row, tuple(lines[row.invoice_id]), parts[row.invoice_id]) for row in rows]


def _stored(row: Row[Any], lines: tuple[InvoiceLine, ...], parts: Parts) -> StoredInvoice:
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
