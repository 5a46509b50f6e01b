"""What people decided where sending could not go on, in the database (docs/decisions/0035-asking-anew.md)."""

from __future__ import annotations

import uuid

from sqlalchemy import Connection, select

from billing import tables


def add(
    connection: Connection, invoice_id: uuid.UUID, *, stripe_invoice: str | None, customer_gone: str | None,
    number: tuple[str, str] | None, reason: str, actor: str,
) -> None:  # fmt: skip
    """Sending of an invoice begins anew: the draft it had in Stripe, and its customer, count no more; nor does its
    `number`, where another invoice in Stripe has it (with that one's id)."""
    number_gone, taken_by = number or (None, None)
    connection.execute(
        tables.sending_restarts.insert().values(
            invoice_id=invoice_id,
            stripe_invoice_id=stripe_invoice,
            customer_gone=customer_gone,
            number_gone=number_gone,
            number_taken_by=taken_by,
            reason=reason,
            actor=actor,
        )
    )


def former_drafts(connection: Connection, invoice_id: uuid.UUID) -> list[str | None]:
    """What an invoice had in Stripe each time before its sending began anew."""
    table = tables.sending_restarts
    return list(connection.execute(select(table.c.stripe_invoice_id).where(table.c.invoice_id == invoice_id)).scalars())
