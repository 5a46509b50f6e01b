"""A credit note that Stripe never takes stays in our books alone: a person's decision, in the audit log."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Engine

from billing.database import connection as connected
from billing.database import raw
from billing.errors import CorrectionRefused
from billing.invoicing import correction_store, invoice_store
from billing.invoicing.correcting import CorrectionEvent, CorrectionKind, CorrectionState, credited
from billing.invoicing.invoice_rows import StoredInvoice
from billing.money import plain
from billing.posting.correction_amounts import book
from billing.posting.stripe_money import major
from billing.stripe.sender_lock import account_held
from billing.stripe.stripe_gateway import StripeGateway
from streams import audit


def keep_note_untold(
    engine: Engine, reference: str, *, gateway: StripeGateway, reason: str, now: datetime, actor: str,
    dry_run: bool = False,
) -> StoredInvoice:  # fmt: skip
    """End the telling of a credit note that Stripe refuses: what it takes off is unapplied cash of the account.

    Only where nothing of its invoice remains to be paid in Stripe: else a payer would pay what is credited here. Raises
    CorrectionRefused, UnknownInvoice.
    """
    with connected(engine) as opened:
        with opened.begin():
            note = invoice_store.find(opened, reference)
        with account_held(opened, note.invoice.identity.billing_account) as held:
            if not held:
                raise CorrectionRefused("another sender is at it: try again when it is done")
            with opened.begin():
                corrections = correction_store.listed(opened, state=CorrectionState.OPEN)
                correction = next(
                    (c for c in corrections if c.note_id == note.invoice.invoice_id and c.told_because), None
                )
                if correction is None or correction.kind is not CorrectionKind.CREDIT_NOTE:
                    raise CorrectionRefused(f"{reference} is no credit note that Stripe has refused")
                of = invoice_store.load(opened, correction.invoice_id)
            theirs, _ = gateway.invoice(of.stripe_invoice_id or "")
            if theirs.seen.status != "paid":
                left = plain(major(theirs.amount_remaining, of.invoice.identity.money))
                raise CorrectionRefused(
                    f"{of.number} is {theirs.seen.status} in Stripe, and {left} {of.invoice.identity.currency} of it"
                    " remain to be paid there: mend what makes Stripe refuse the note, and `tollbook stripe sync"
                    " --again` tells it"
                )
            with opened.begin() as transaction:
                entry_id = book(opened, correction, of.invoice.identity, credited(note.invoice), now)
                correction_store.end(
                    opened, correction, CorrectionEvent.ANSWER, entry_id=entry_id, because=f"not told: {reason}"
                )
                kept = invoice_store.set_columns(opened, note, parked_because=None)
                detail = {"note": note.number, "reason": reason, "refused": correction.told_because}
                audit.record(raw(opened), actor, "invoice.note_untold", str(note.invoice.invoice_id), detail)
                if dry_run:
                    transaction.rollback()
            return kept
