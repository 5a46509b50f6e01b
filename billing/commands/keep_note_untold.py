"""A credit note that Stripe never takes stays in our books alone: a person's decision, in the audit log."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, Engine

from billing.database import connection as connected
from billing.database import raw
from billing.errors import CorrectionRefused
from billing.invoicing import correction_store, invoice_store
from billing.invoicing.correcting import Correction, CorrectionEvent, CorrectionKind, CorrectionState, credited
from billing.invoicing.invoice_rows import StoredInvoice
from billing.money import exactly, plain, to_minor, to_stripe
from billing.posting.correction_amounts import book, booked
from billing.posting.stripe_money import major
from billing.stripe import standing_store
from billing.stripe.sender_lock import only_sender
from billing.stripe.stripe_accounts import Stripe, followed
from billing.stripe.stripe_gateway import StripeGateway
from streams import audit


def keep_note_untold(
    engine: Engine, reference: str, *, gateway: Stripe, reason: str, now: datetime, actor: str,
    dry_run: bool = False,
) -> StoredInvoice:  # fmt: skip
    """Let a credit note that Stripe refuses, or that somebody has voided there, stay in our books alone.

    Only where nothing of its invoice remains to be paid in Stripe: else a payer would pay what is credited here. Of an
    invoice that is paid there what the note takes off is unapplied cash of the account; of a void one nothing is.
    Raises CorrectionRefused, UnknownInvoice.
    """
    with connected(engine) as opened:
        with opened.begin():
            note = invoice_store.find(opened, reference)
        account = followed(engine, gateway, note.invoice.identity.legal_entity, dry_run=dry_run)
        with only_sender(opened, note.invoice.identity.billing_account):
            with opened.begin():
                correction = _telling(opened, note)
                if correction is None or not _never_taken(account, correction):
                    raise CorrectionRefused(
                        f"{reference} is no credit note that Stripe has refused, or that is void there"
                    )
                of = invoice_store.load(opened, correction.invoice_id)
            theirs, _ = account.invoice(of.stripe_invoice_id or "")
            if theirs.seen.status not in ("paid", "void"):
                left = plain(major(theirs.amount_remaining, of.invoice.identity.money))
                way_on = "mend what makes Stripe refuse the note, and `tollbook stripe sync --again` tells it"
                if theirs.seen.status == "uncollectible":
                    way_on = (
                        f"`tollbook invoice write-off {of.number} --document …` takes that over, and the note with it"
                    )
                raise CorrectionRefused(
                    f"{of.number} is {theirs.seen.status} in Stripe, and {left} {of.invoice.identity.currency} of it"
                    f" remain to be paid there: {way_on}"
                )
            with opened.begin() as transaction:
                unapplied = credited(note.invoice) if theirs.seen.status == "paid" else 0
                _end(opened, of, correction, unapplied, reason, now, actor)
                kept = invoice_store.set_columns(opened, note, parked_because=None)
                detail = {"note": note.number, "reason": reason, "refused": correction.told_because}
                audit.record(raw(opened), actor, "invoice.note_untold", str(note.invoice.invoice_id), detail)
                if dry_run:
                    transaction.rollback()
            return kept


def _telling(connection: Connection, note: StoredInvoice) -> Correction | None:
    """By which correction Stripe was to be told of a credit note; None where that is over, or there is none."""
    of = note.invoice.credits_invoice_id
    known = [] if of is None else correction_store.listed(connection, invoice_ids=[of])
    about = [each for each in known if each.note_id == note.invoice.invoice_id]
    if any(each.kind is CorrectionKind.OVERPAYMENT for each in about):
        return None
    return next((each for each in about if each.kind is CorrectionKind.CREDIT_NOTE), None)


def _never_taken(gateway: StripeGateway, correction: Correction) -> bool:
    if correction.state is CorrectionState.OPEN:
        return correction.told_because is not None
    if correction.stripe_id is None:
        return False
    return str(gateway.get("/v1/credit_notes/{}", correction.stripe_id)["status"]) == "void"


def _end(
    connection: Connection, of: StoredInvoice, correction: Correction, unapplied: int, reason: str, now: datetime,
    actor: str,
) -> None:  # fmt: skip
    if correction.stripe_id is not None:
        # It was told, and booked as far as it was paid by then. Nobody need look at it any more.
        standing_store.keep_by_hand(
            connection, correction.stripe_id, "credit_note", of.invoice.invoice_id, 0, over=True
        )
        left = major(unapplied, of.invoice.identity.money)
        with exactly():
            left -= booked(connection, correction)
        unapplied = max(0, to_stripe(to_minor(left, of.invoice.identity.money), of.invoice.identity.money))
        correction = correction_store.add(
            connection, of.invoice.invoice_id, CorrectionKind.OVERPAYMENT, note_id=correction.note_id, reason=reason,
            actor=actor,
        )  # fmt: skip
    entry_id = book(connection, correction, of.invoice.identity, unapplied, now)
    correction_store.end(
        connection, correction, CorrectionEvent.ANSWER, entry_id=entry_id, because=f"not told: {reason}"
    )
