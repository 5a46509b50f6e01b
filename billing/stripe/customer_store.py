"""The Stripe customers of billing accounts, in the database: one after another, where one was deleted."""

from __future__ import annotations

from sqlalchemy import Connection, exists, func, select

from billing import tables
from billing.invoicing.invoice_states import InvoiceState


def customer_of(connection: Connection, billing_account: str) -> str | None:
    """The Stripe customer of a billing account, if it has one: the last, unless it is known to be deleted."""
    table, restarts = tables.stripe_customers, tables.sending_restarts
    gone = exists().where(restarts.c.customer_gone == table.c.stripe_customer_id)
    query = select(table.c.stripe_customer_id, gone).where(table.c.billing_account == billing_account)
    row = connection.execute(query.order_by(table.c.customer_no.desc()).limit(1)).first()
    return None if row is None or row[1] else str(row[0])


def count(connection: Connection, billing_account: str) -> int:
    """How many customers a billing account has had in Stripe."""
    table = tables.stripe_customers
    return connection.execute(select(func.count()).where(table.c.billing_account == billing_account)).scalar_one()


def customers(connection: Connection) -> dict[str, str]:
    """The Stripe customers that billing accounts have had, also those that are deleted, with whose they are."""
    table = tables.stripe_customers
    rows = connection.execute(select(table.c.stripe_customer_id, table.c.billing_account))
    return {row[0]: row[1] for row in rows}


def being_billed(connection: Connection) -> set[str]:
    """The Stripe customers of invoices that are not finalized yet."""
    table = tables.invoices
    query = select(table.c.stripe_customer_id).where(
        table.c.state.in_([InvoiceState.DRAFT.value, InvoiceState.APPROVED.value]),
        table.c.stripe_customer_id.is_not(None),
    )
    return set(connection.execute(query).scalars())


def current(connection: Connection) -> dict[str, str]:
    """The Stripe customers that billing accounts have now, with whose they are."""
    gone = set(connection.execute(select(tables.sending_restarts.c.customer_gone)).scalars())
    return {customer: account for customer, account in customers(connection).items() if customer not in gone}


def add(connection: Connection, billing_account: str, stripe_customer_id: str) -> None:
    """Keep the Stripe customer of a billing account."""
    before = count(connection, billing_account)
    connection.execute(
        tables.stripe_customers.insert().values(
            billing_account=billing_account, stripe_customer_id=stripe_customer_id, customer_no=before + 1
        )
    )
