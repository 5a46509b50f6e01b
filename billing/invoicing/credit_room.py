"""How much of an issued invoice can still be credited, in the database: what Stripe would refuse is not issued."""

from __future__ import annotations

import json
import uuid
from collections import defaultdict

from sqlalchemy import Connection, exists, func, select

from billing import tables
from billing.invoicing import correction_store, invoice_store
from billing.invoicing.correcting import CORRECTION, CorrectionKind, CorrectionState
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceState
from billing.invoicing.sending import Operation
from billing.money import to_stripe


def credit_room(connection: Connection, stored: StoredInvoice) -> int:
    """What credit notes can still take off what is owed for an invoice, in Stripe's integer.

    Its amount, less its credit notes, less what went back to the payer without one
    (https://docs.stripe.com/api/credit_notes/create), also in Stripe by hand as far as events have told of it. Nothing
    of one that is void, or about to be.
    """
    of = stored.invoice
    ends = correction_store.open_end(connection, of.invoice_id)
    if stored.state is InvoiceState.VOID or (ends is not None and ends.kind is CorrectionKind.VOID):
        return 0
    listed = invoice_store.listed(connection, billing_account=of.identity.billing_account)
    notes = [each.invoice for each in listed if each.invoice.credits_invoice_id == of.invoice_id]
    left = of.receivable_minor + sum(note.receivable_minor for note in notes)
    gone = _refunded(connection, of.invoice_id) + _by_hand(connection, of.invoice_id)
    return max(0, to_stripe(left, of.identity.money) - gone)


def _refunded(connection: Connection, invoice_id: uuid.UUID) -> int:
    """What went back, or is on its way, for no credit note; less what the payer's bank did not take."""
    requests, moved = tables.stripe_requests, tables.stripe_balance_transactions
    failed = exists().where(moved.c.source_id == requests.c.reply_id, moved.c.reporting_category == "refund_failure")
    made: dict[str, int] = defaultdict(int)
    for parameters in connection.execute(
        select(requests.c.parameters).where(
            requests.c.invoice_id == invoice_id,
            requests.c.step == Operation.REFUND.value,
            requests.c.reply_id.is_not(None),
            ~failed,
        )
    ).scalars():
        asked = json.loads(parameters)
        made[asked["metadata"][CORRECTION]] += asked["amount"]
    total = 0
    for each in correction_store.listed(connection, invoice_ids=[invoice_id], kind=CorrectionKind.REFUND):
        if each.content["note"] is None:
            planned = sum(part for _, part in each.content["parts"])
            total += planned if each.state is CorrectionState.OPEN else made[str(each.correction_no)]
    return total


def _by_hand(connection: Connection, invoice_id: uuid.UUID) -> int:
    table = tables.stripe_by_hand
    query = select(func.coalesce(func.sum(table.c.amount), 0)).where(table.c.invoice_id == invoice_id, ~table.c.over)
    return int(connection.execute(query).scalar_one())
