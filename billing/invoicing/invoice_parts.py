"""What an invoice holds besides its lines, in the database: taxes, credits, what is carried in."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from sqlalchemy import ARRAY, UUID, Connection, String, any_, cast, or_, select

from billing import tables
from billing.bills.credits import GrantKind, TaxTreatment
from billing.bills.tax import TaxRow
from billing.invoicing.invoice_states import InvoiceState
from billing.invoicing.invoices import CarriedIn, CreditUsed, Invoice

_PARTS: Final = (tables.invoice_taxes, tables.invoice_credits, tables.invoice_carried)


@dataclass(slots=True)
class Parts:
    """The parts of one invoice, in order of their keys."""

    taxes: list[TaxRow] = field(default_factory=list)
    credits: list[CreditUsed] = field(default_factory=list)
    carried: list[CarriedIn] = field(default_factory=list)


def save(connection: Connection, invoice: Invoice, *, replace: bool) -> None:
    """Store a draft's parts; `replace` where there are some of it already."""
    invoice_id = invoice.invoice_id
    if replace:
        for table in _PARTS:
            connection.execute(table.delete().where(table.c.invoice_id == invoice_id))
    of = {"invoice_id": invoice_id}
    rows: tuple[list[dict[str, object]], ...] = (
        [
            of | {"tax_group": r.group, "rate": r.rate, "base_minor": r.base_minor, "tax_minor": r.tax_minor}
            for r in invoice.taxes
        ],
        [
            of
            | {
                "grant_id": c.grant_id,
                "kind": c.kind.value,
                "tax_treatment": c.treatment.value,
                "amount": c.amount,
                "amount_minor": c.amount_minor,
                "left_after": c.left,
            }
            for c in invoice.credits
        ],
        [of | {"carried_invoice_id": c.invoice_id, "amount_minor": c.amount_minor} for c in invoice.carried],
    )
    for table, listed in zip(_PARTS, rows, strict=True):
        if listed:
            connection.execute(table.insert(), listed)


def of_invoices(connection: Connection, invoice_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Parts]:
    """The parts of invoices; one that has none has empty ones."""
    found: dict[uuid.UUID, Parts] = defaultdict(Parts)
    wanted = any_(cast(list(invoice_ids), ARRAY(UUID)))
    taxes, credits, carried = _PARTS
    for row in connection.execute(select(taxes).where(taxes.c.invoice_id == wanted).order_by(taxes.c.tax_group)):
        found[row.invoice_id].taxes.append(TaxRow(row.tax_group, row.rate, row.base_minor, row.tax_minor))
    query = select(credits).where(credits.c.invoice_id == wanted).order_by(credits.c.grant_id.collate("C"))
    for row in connection.execute(query):
        kind, treatment = GrantKind(row.kind), TaxTreatment(row.tax_treatment)
        used = CreditUsed(row.grant_id, kind, treatment, row.amount, row.amount_minor, row.left_after)
        found[row.invoice_id].credits.append(used)
    earlier = tables.invoices
    query = (
        select(carried.c.invoice_id, carried.c.carried_invoice_id, earlier.c.number, carried.c.amount_minor)
        .join(earlier, earlier.c.invoice_id == carried.c.carried_invoice_id)
        .where(carried.c.invoice_id == wanted)
        .order_by(earlier.c.number.collate("C"))
    )
    for row in connection.execute(query):
        found[row.invoice_id].carried.append(CarriedIn(row.carried_invoice_id, row.number, row.amount_minor))
    return found


def carried_to_next(
    connection: Connection, accounts: Collection[str], invoices: Collection[uuid.UUID]
) -> dict[str, list[CarriedIn]]:
    """By billing account the invoices below the minimum that no invoice but one of `invoices` carries yet."""
    table, taken = tables.invoices, tables.invoice_carried
    free = or_(taken.c.invoice_id.is_(None), taken.c.invoice_id == any_(cast(list(invoices), ARRAY(UUID))))
    query = (
        select(table.c.billing_account, table.c.invoice_id, table.c.number, table.c.amount_due_minor)
        .join(taken, taken.c.carried_invoice_id == table.c.invoice_id, isouter=True)
        .where(
            table.c.billing_account == any_(cast(list(accounts), ARRAY(String))),
            table.c.state == InvoiceState.CARRIED_BELOW_MINIMUM.value,
            free,
        )
        .order_by(table.c.number.collate("C"))
    )
    found: dict[str, list[CarriedIn]] = defaultdict(list)
    for row in connection.execute(query):
        found[row.billing_account].append(CarriedIn(row.invoice_id, row.number, row.amount_due_minor))
    return found


def credits_drawn(connection: Connection, states: Collection[InvoiceState]) -> dict[tuple[str, str], Decimal]:
    """What all invoices in some states draw of credits: (invoice id, credit) → exact amount."""
    credits, table = tables.invoice_credits, tables.invoices
    query = (
        select(credits.c.invoice_id, credits.c.grant_id, credits.c.amount)
        .join(table, table.c.invoice_id == credits.c.invoice_id)
        .where(table.c.state.in_([state.value for state in states]))
    )
    return {(str(row[0]), row[1]): row[2] for row in connection.execute(query)}
