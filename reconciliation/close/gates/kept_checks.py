"""What is kept beside the books, which nothing follows from until somebody asks for it: is it still what it was?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from uuid import UUID

from sqlalchemy import ARRAY, Connection, any_, cast, select
from sqlalchemy import UUID as UuidColumn

from billing import tables
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.sending import Operation, lines_requests
from billing.usage import usage_digest_store
from reconciliation.agreement import Check, compare
from reconciliation.comparison import Value
from reconciliation.stripe_agreement import STATUS


def kept_checks(connection: Connection, invoices: Iterable[StoredInvoice]) -> Iterator[Check]:
    """Of some invoices: the requests by which Stripe has them, their payers' customers, the digests of their usage."""
    listed = list(invoices)
    sent = [s for s in listed if s.state in STATUS and s.stripe_invoice_id]
    yield _requests(connection, sent)
    yield _customers(connection, sent)
    yield _digests(connection, listed)


def _requests(connection: Connection, sent: Iterable[StoredInvoice]) -> Check:
    """Each invoice in Stripe was created, given its lines and finalized by requests that are still there."""
    wanted: dict[str, Value] = {}
    ids = []
    for s in sent:
        ids.append(s.stored_id)
        chunks = len(lines_requests(s.invoice, stripe_invoice=s.stripe_invoice_id or ""))
        steps = [(Operation.CREATE_DRAFT, 0), *((Operation.ADD_LINES, n) for n in range(chunks))]
        for step, chunk in (*steps, (Operation.FINALIZE, 0)):
            wanted[f"{s.stored_id}/{step.value}/{chunk}"] = "asked"
    table = tables.stripe_requests
    query = select(table.c.invoice_id, table.c.step, table.c.chunk).where(table.c.invoice_id == _any(ids))
    asked = {f"{invoice_id}/{step}/{chunk}" for invoice_id, step, chunk in connection.execute(query)}
    there: dict[str, Value] = {key: "asked" for key in wanted if key in asked}
    return compare("requests to Stripe are kept", "invoices in Stripe", "requests", wanted, there)


def _customers(connection: Connection, sent: Iterable[StoredInvoice]) -> Check:
    """Each account is the customer that its invoices were sent to."""
    told: dict[str, Value] = {
        f"{s.invoice.identity.billing_account}/customer": s.stripe_customer_id or "" for s in sent
    }
    table = tables.stripe_customers
    found = connection.execute(select(table.c.billing_account, table.c.stripe_customer_id))
    known = {(row[0], row[1]) for row in found}
    last = dict(sorted(known))
    there: dict[str, Value] = {
        key: customer if (account, customer) in known else last[account]
        for key, customer in told.items()
        if (account := key.removesuffix("/customer")) in last
    }
    return compare("customers are kept", "invoices in Stripe", "customers", told, there)


def _digests(connection: Connection, listed: Iterable[StoredInvoice]) -> Check:
    """What an invoice says of the events that it bills is the digest over what is kept of each tenant's."""
    ids = [s.stored_id for s in listed]
    table = tables.usage_digests
    query = select(table.c.invoice_id, table.c.digest).where(table.c.invoice_id == _any(ids))
    said: dict[str, Value] = {f"{i}/usage digest": bytes(digest).hex() for i, digest in connection.execute(query)}
    counted = usage_digest_store.of_invoices(connection, ids)
    there: dict[str, Value] = {f"{i}/usage digest": each.digest for i, each in counted.items()}
    return compare("usage digests are those of the counts", "digests", "counts by tenant", said, there)


def _any(ids: list[UUID]) -> object:
    return any_(cast(ids, ARRAY(UuidColumn)))
