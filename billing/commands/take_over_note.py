"""A credit note that somebody made in Stripe by hand becomes one of ours: a person's decision, in the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, Engine

from billing.commands.correct_invoice import MADE_IN_STRIPE, begin_note
from billing.database import connection as connected
from billing.database import raw
from billing.errors import CorrectionRefused
from billing.invoicing import correction_store, invoice_store
from billing.invoicing.correcting import CORRECTION, CorrectionEvent, CorrectionKind, CorrectionState, credited
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceEvent
from billing.money import plain
from billing.posting.correction_amounts import book
from billing.posting.stripe_money import major
from billing.stripe import standing_store
from billing.stripe.event_handlers import settle
from billing.stripe.sender_lock import only_sender
from billing.stripe.stripe_accounts import Stripe, followed
from billing.stripe.stripe_gateway import Json, StripeInvoice
from streams import audit


def take_over_note(
    engine: Engine, reference: str, made: str, amounts: Mapping[str, Decimal] | None, *, gateway: Stripe,
    reason: str, now: datetime, actor: str, dry_run: bool = False,
) -> StoredInvoice:  # fmt: skip
    """Issue our credit note for one that is in Stripe already (`made`: its id), over amounts as for `credit_invoice`.

    Stripe is not told again. It must come to what that one says, and nothing of it may have gone back to the payer or
    to the customer's balance: that is booked, or found, by itself. An invoice that it leaves nothing to pay of is paid.
    Raises CorrectionRefused, UnknownInvoice.
    """
    with connected(engine) as opened:
        with opened.begin():
            stored = invoice_store.find(opened, reference)
        account = followed(engine, gateway, stored.invoice.identity.legal_entity, dry_run=dry_run)
        found = account.get("/v1/credit_notes/{}", made)
        with only_sender(opened, stored.invoice.identity.billing_account):
            theirs, _ = account.invoice(stored.stripe_invoice_id or "")
            with opened.begin() as transaction:
                _check(opened, reference, stored, found)
                note = _take_over(opened, stored, found, amounts, reason, now, actor)
                _settle(opened, reference, theirs, now, actor)
                if dry_run:
                    transaction.rollback()
            return note


def _check(connection: Connection, reference: str, stored: StoredInvoice, found: Json) -> None:
    name, known = found["number"], correction_store.listed(connection, kind=CorrectionKind.CREDIT_NOTE)
    if found["invoice"] != stored.stripe_invoice_id:
        raise CorrectionRefused(f"{name} is a credit note on {found['invoice']} in Stripe, not on {reference}")
    if CORRECTION in (found["metadata"] or {}) or any(each.stripe_id == found["id"] for each in known):
        raise CorrectionRefused(f"{name} is one of ours already")
    if found["status"] != "issued":
        raise CorrectionRefused(f"{name} is {found['status']} in Stripe: there is nothing to take over")
    if found["post_payment_amount"] != (found["out_of_band_amount"] or 0):
        raise CorrectionRefused(
            f"{name} gave back what was paid: its refund is booked as such (4920); a customer's balance is put right in"
            " Stripe"
        )


def _take_over(
    connection: Connection, stored: StoredInvoice, found: Json, amounts: Mapping[str, Decimal] | None, reason: str,
    now: datetime, actor: str,
) -> StoredInvoice:  # fmt: skip
    identity, of = stored.invoice.identity, stored.invoice.invoice_id
    # It is none that was made by hand any more, and takes no room beside ours.
    standing_store.keep_by_hand(connection, found["id"], "credit_note", of, found["total"], over=True)
    content = {MADE_IN_STRIPE: found["id"]}
    note = begin_note(connection, str(of), amounts, reason=reason, now=now, actor=actor, content=content)
    if credited(note.invoice) != found["total"]:
        ours, theirs = (plain(major(each, identity.money)) for each in (credited(note.invoice), found["total"]))
        raise CorrectionRefused(
            f"that comes to {ours} {identity.currency} with its tax, {found['number']} in Stripe to {theirs}: say the"
            " amount before tax that comes to it"
        )
    listed = correction_store.listed(connection, state=CorrectionState.OPEN, invoice_ids=[of])
    correction = next(each for each in listed if each.note_id == note.invoice.invoice_id)
    entry_id = book(connection, correction, identity, found["post_payment_amount"], now)
    issued = invoice_store.move(
        connection, note, InvoiceEvent.TELL, now, actor, stripe_invoice_id=found["id"],
        stripe_customer_id=stored.stripe_customer_id,
    )  # fmt: skip
    correction_store.end(connection, correction, CorrectionEvent.ANSWER, stripe_id=found["id"], entry_id=entry_id)
    detail = {"note": note.number, "reason": reason, **content}
    audit.record(raw(connection), actor, "invoice.credit_note", str(of), detail)
    return issued


def _settle(connection: Connection, reference: str, theirs: StripeInvoice, now: datetime, actor: str) -> None:
    """What Stripe says of the invoice, which waited for this: nothing will tell it again."""
    settle(connection, invoice_store.find(connection, reference), theirs, now, actor)
