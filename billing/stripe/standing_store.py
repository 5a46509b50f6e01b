"""How invoices and disputes stood in Stripe when they were looked at last, and what was taken back there by hand."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import UUID, Connection, any_, cast, func, select
from sqlalchemy.dialects.postgresql import ARRAY, insert

from billing import tables
from billing.errors import UnknownDispute
from billing.invoicing.dunning import Standing
from billing.stripe.returns import Dispute


@dataclass(frozen=True, slots=True)
class KnownDispute:
    """A dispute with whose it is, as far as we know them."""

    dispute: Dispute
    billing_account: str | None
    invoice_id: uuid.UUID | None


def keep_standing(connection: Connection, invoice_id: uuid.UUID, standing: Standing) -> None:
    """Keep how an invoice stands; the latest failure that was heard of stays."""
    table = tables.stripe_standings
    values = {
        "status": standing.status, "amount_paid": standing.amount_paid, "amount_remaining": standing.amount_remaining,
        "attempts": standing.attempts, "next_attempt_at": standing.next_attempt_at,
    }  # fmt: skip
    made = insert(table).values(invoice_id=invoice_id, failed_at=standing.failed_at, **values)
    later = func.greatest(table.c.failed_at, made.excluded.failed_at)
    changed = {**values, "failed_at": later, "seen_at": func.clock_timestamp()}
    connection.execute(made.on_conflict_do_update(index_elements=[table.c.invoice_id], set_=changed))


def standings(connection: Connection, invoice_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Standing]:
    """How invoices stand, as far as they were looked at."""
    table = tables.stripe_standings
    query = select(table).where(table.c.invoice_id == any_(cast(list(invoice_ids), ARRAY(UUID))))
    return {
        row.invoice_id: Standing(
            row.status, row.amount_paid, row.amount_remaining, row.attempts, row.next_attempt_at, row.failed_at
        )
        for row in connection.execute(query)
    }


def keep_by_hand(
    connection: Connection, object_id: str, kind: str, invoice_id: uuid.UUID, amount: int, *, over: bool
) -> None:
    """Keep how much of an invoice (Stripe's integer) a refund or a credit note takes back that somebody made in Stripe
    by hand; one that has failed or is void is `over`."""
    table = tables.stripe_by_hand
    made = insert(table).values(object_id=object_id, kind=kind, invoice_id=invoice_id, amount=amount, over=over)
    changed = {"amount": made.excluded.amount, "over": made.excluded.over, "seen_at": func.clock_timestamp()}
    connection.execute(made.on_conflict_do_update(index_elements=[table.c.object_id], set_=changed))


def keep_dispute(
    connection: Connection, found: Dispute, billing_account: str | None, invoice_id: uuid.UUID | None
) -> None:
    """Keep a dispute as it stands."""
    table = tables.stripe_disputes
    values = {
        "charge_id": found.charge_id, "billing_account": billing_account, "invoice_id": invoice_id,
        "status": found.status, "reason": found.reason, "amount": found.amount, "currency": found.currency,
        "created_at": found.created_at, "evidence_due_at": found.evidence_due_at, "submissions": found.submissions,
    }  # fmt: skip
    made = insert(table).values(dispute_id=found.dispute_id, **values)
    changed = {**values, "seen_at": func.clock_timestamp()}
    connection.execute(made.on_conflict_do_update(index_elements=[table.c.dispute_id], set_=changed))


def disputes(connection: Connection, *, dispute_id: str | None = None) -> list[KnownDispute]:
    """Disputes that we have heard of, the newest first. Raises UnknownDispute where one is named."""
    table = tables.stripe_disputes
    query = select(table).order_by(table.c.created_at.desc(), table.c.dispute_id)
    if dispute_id is not None:
        query = query.where(table.c.dispute_id == dispute_id)
    found = [
        KnownDispute(
            Dispute(r.dispute_id, r.status, r.amount, r.currency, r.charge_id, r.reason, r.created_at,
                    r.evidence_due_at, r.submissions),
            r.billing_account,
            r.invoice_id,
        )
        for r in connection.execute(query)
    ]  # fmt: skip
    if dispute_id is not None and not found:
        raise UnknownDispute(f"there is no dispute {dispute_id!r}: `tollbook dispute list` has those that came in")
    return found
