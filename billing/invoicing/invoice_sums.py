"""Sums over all invoices in some states, as the books and reconciliation compare them."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, case, func, not_, select

from billing import tables
from billing.bills.credits import TaxTreatment
from billing.bills.tax import TaxMode
from billing.invoicing.invoice_states import InvoiceState
from billing.invoicing.invoice_store import in_advance
from billing.periods import BillingPeriod
from billing.rating import LineKind


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
    """The rated lines of all invoices in some states, but fees in advance: (tenant, currency) → exact amount.

    Credits and top-ups are none.
    """
    lines, table = tables.invoice_lines, tables.invoices
    query = (
        select(lines.c.tenant_id, table.c.currency, func.sum(lines.c.amount_exact))
        .join(table, table.c.invoice_id == lines.c.invoice_id)
        .where(
            table.c.state.in_([state.value for state in states]),
            not_(in_advance()),
            lines.c.kind.not_in([LineKind.CREDIT.value, LineKind.TOP_UP.value]),
        )
        .group_by(lines.c.tenant_id, table.c.currency)
    )
    return {(row[0], row[1]): row[2] for row in connection.execute(query)}


def invoiced_in_advance(connection: Connection, states: Collection[InvoiceState]) -> dict[str, Decimal]:
    """The fees of all invoices for fees in advance in some states, before credits: currency → exact amount."""
    lines, table = tables.invoice_lines, tables.invoices
    query = (
        select(table.c.currency, func.sum(lines.c.amount_exact))
        .join(table, table.c.invoice_id == lines.c.invoice_id)
        .where(
            table.c.state.in_([state.value for state in states]), in_advance(), lines.c.kind != LineKind.CREDIT.value
        )
        .group_by(table.c.currency)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def fee_services(connection: Connection, states: Collection[InvoiceState]) -> dict[uuid.UUID, BillingPeriod]:
    """The service periods of all documents over fees in advance in some states, by id."""
    table = tables.invoices
    query = select(table.c.invoice_id, table.c.service_start, table.c.service_end)
    query = query.where(in_advance(), table.c.state.in_([state.value for state in states]))
    return {row[0]: BillingPeriod(row[1], row[2]) for row in connection.execute(query)}


def stripe_invoice_ids(connection: Connection) -> set[str]:
    """Stripe's ids of all our invoices, and of what was there before their sending began anew: void or credited."""
    columns = (tables.invoices.c.stripe_invoice_id, tables.sending_restarts.c.stripe_invoice_id)
    return {found for each in columns for found in connection.execute(select(each).where(each.is_not(None))).scalars()}
