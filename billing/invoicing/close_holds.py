"""Drafts that a close has begun with: it issues them itself, once it is approved (docs/close.md)."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from billing.invoicing.invoices import InvoiceIdentity


def close_that_holds(connection: Connection, draft: InvoiceIdentity) -> str | None:
    """The month whose close must be approved before a draft is issued; None: no close has begun with it.

    The database refuses to issue it meanwhile.
    """
    found: str | None = connection.execute(
        select(func.ledger.close_that_holds(draft.billing_account, draft.kind.value, draft.period.end))
    ).scalar_one()
    return found
