"""Which invoices are frozen, and up to when they say what holds."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from datetime import datetime
from typing import Final

from sqlalchemy import ARRAY, ColumnElement, Connection, String, any_, case, cast, func, not_, or_, select, text

from billing import tables
from billing.invoicing.invoice_store import in_advance
from billing.invoicing.invoices import InvoiceKind
from billing.periods import INSTANT, BillingPeriod


def frozen_accounts(connection: Connection, period: BillingPeriod) -> set[str]:
    """Billing accounts whose usage invoice of the period is frozen, or whose close has ended without one: later usage
    belongs to another document."""
    closed = closed_without_invoice(connection, [period])
    return set(frozen_usage_invoices(connection, period)) | {account for account, _ in closed}


_CLOSED_WITHOUT: Final = text(
    """
    with stands as (
        select distinct on (since, until, t.billing_account)
            since, until, t.legal_entity, t.billing_account as account, t.to_state, t.at
        from unnest(cast(:starts as timestamptz[]), cast(:ends as timestamptz[])) as p (since, until)
        join ledger.close_transitions as t
            on t.month = to_char((until - interval '1 microsecond') at time zone 'UTC', 'YYYY-MM')
        where t.billing_account <> ''
          and (cast(:accounts as text[]) is null or t.billing_account = any(cast(:accounts as text[])))
        order by since, until, t.billing_account, t.step desc
    )
    select account, since, until, at from stands
    where to_state = 'closed' and not exists (
        select from ledger.invoices as i
        where (i.legal_entity, i.billing_account, i.service_start, i.service_end)
            = (stands.legal_entity, account, since, until) and i.kind = 'usage')
    """
)
"""The legal entity, which an account has one of, makes it a look in an index: however few rows the planner expects of
`stands`, all invoices are not gone through for each."""


def closed_without_invoice(
    connection: Connection, periods: Collection[BillingPeriod], accounts: Collection[str] | None = None
) -> dict[tuple[str, BillingPeriod], datetime]:
    """Billing accounts (or those named of them) of which nothing was billed of a period when its close ended; when."""
    given = {
        "starts": [period.start for period in periods],
        "ends": [period.end for period in periods],
        "accounts": None if accounts is None else list(accounts),
    }
    return {(row[0], BillingPeriod(row[1], row[2])): row[3] for row in connection.execute(_CLOSED_WITHOUT, given)}


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


def hold_terms(connection: Connection, *, shared: bool = True) -> None:
    """Nobody changes what bills follow from (subscriptions, prices, tax rules) until the transaction ends.

    Whoever freezes an invoice holds it shared, after the locks of periods and tenants.
    """
    lock = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
    connection.execute(select(lock(func.hashtextextended("billing/terms", 0))))


def frozen_until(connection: Connection, accounts: Collection[str]) -> datetime | None:
    """Up to when frozen invoices of some billing accounts say what holds: the latest end of one over usage.

    One for fees in advance says so up to when its time begins; after that a change is a document of its own (13.10).
    One for a top-up says nothing of the kind.
    It is asked by whoever changes what bills follow from: nothing more is frozen until the transaction ends.
    """
    hold_terms(connection, shared=False)
    table = tables.invoices
    until = case((in_advance(), table.c.service_start), else_=table.c.service_end)
    return connection.execute(
        select(func.max(until)).where(
            table.c.billing_account == any_(cast(list(accounts), ARRAY(String))),
            not_(for_prepaid_credit()),
            table.c.frozen_at.is_not(None),
        )
    ).scalar()


def last_tax_point(connection: Connection, account: str) -> datetime | None:
    """The latest moment as of which a frozen invoice of a billing account is taxed.

    Fees in advance: when their time begins; else the last instant of the service. A credit note has its invoice's, a
    top-up is not taxed.
    Asked, as `frozen_until`, by whoever changes what bills follow from.
    """
    hold_terms(connection, shared=False)
    table = tables.invoices
    point = case(
        (table.c.kind == InvoiceKind.ADVANCE.value, table.c.service_start), else_=table.c.service_end - INSTANT
    )
    return connection.execute(
        select(func.max(point)).where(
            table.c.billing_account == account,
            table.c.kind.not_in([InvoiceKind.CREDIT_NOTE.value, InvoiceKind.TOP_UP.value]),
            table.c.frozen_at.is_not(None),
        )
    ).scalar()


def usage_billed_until(connection: Connection, account: str) -> datetime | None:
    """The latest end of a billing account's frozen invoice but those for fees in advance and top-ups."""
    table = tables.invoices
    query = select(func.max(table.c.service_end)).where(
        table.c.billing_account == account,
        not_(in_advance()),
        not_(for_prepaid_credit()),
        table.c.frozen_at.is_not(None),
    )
    return connection.execute(query).scalar()


def for_prepaid_credit() -> ColumnElement[bool]:
    """Invoices for prepaid credit, and credit notes against such: they say nothing of usage and its prices."""
    table = tables.invoices
    sold = select(table.c.invoice_id).where(table.c.kind == InvoiceKind.TOP_UP.value)
    return or_(table.c.kind == InvoiceKind.TOP_UP.value, func.coalesce(table.c.credits_invoice_id.in_(sold), False))


def billed_in_advance(connection: Connection, tenants: Collection[str], at: datetime) -> bool:
    """Whether a frozen invoice bills fees of some tenants that begin at a moment."""
    table, lines = tables.invoices, tables.invoice_lines
    query = (
        select(lines.c.invoice_id)
        .join(table, table.c.invoice_id == lines.c.invoice_id)
        .where(
            lines.c.tenant_id == any_(cast(list(tenants), ARRAY(String))),
            in_advance(),
            table.c.service_start == at,
            table.c.frozen_at.is_not(None),
        )
    )
    return connection.execute(query.limit(1)).first() is not None
