"""Telling Stripe of one correction of an invoice, and booking what it did: resumed wherever it was broken off.

The books follow the answer, in the transaction that ends the correction. Only the holder of the billing account's lock
runs this, and nothing external happens inside a transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection

from billing.database import raw
from billing.errors import StripeRefused
from billing.invoicing import correction_store, invoice_store
from billing.invoicing.correcting import (
    CORRECTION,
    Correction,
    CorrectionEvent,
    CorrectionKind,
    CorrectionState,
    balance_request,
    credited,
    evidence_request,
    note_request,
    refund_request,
    simple_request,
)
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceEvent, InvoiceState
from billing.invoicing.sending import Request
from billing.money import plain, to_minor, to_stripe
from billing.plans import account_store
from billing.posting.cancelling import cancel
from billing.posting.correction_amounts import bad_debt, book, left_of
from billing.posting.stripe_money import major
from billing.stripe import stripe_request_store
from billing.stripe.event_handlers import recover
from billing.stripe.hindrances import TAKE_OVER
from billing.stripe.request_sender import Circumstances, Parked, RequestSender
from billing.stripe.returns import NOT_GIVEN
from billing.stripe.stripe_gateway import StripeGateway, StripeInvoice
from streams import audit

Json = Mapping[str, Any]
STATUS: Final[Mapping[CorrectionKind, str]] = {
    CorrectionKind.VOID: "void",
    CorrectionKind.WRITE_OFF: "uncollectible",
    CorrectionKind.PAID_ELSEWHERE: "paid",
}
MOVES: Final[Mapping[CorrectionKind, InvoiceEvent]] = {
    CorrectionKind.VOID: InvoiceEvent.VOID,
    CorrectionKind.WRITE_OFF: InvoiceEvent.GIVE_UP,
    CorrectionKind.PAID_ELSEWHERE: InvoiceEvent.PAY,
}


class CorrectionSender:
    """Takes one correction from wherever it stands to its end."""

    def __init__(self, connection: Connection, correction_no: int, given: Circumstances) -> None:
        self._connection = connection
        self._given = given
        with connection.begin():
            self._correction = correction_store.one(connection, correction_no)
            self._stored = invoice_store.load(connection, self._correction.invoice_id)
            account = self._stored.invoice.identity.billing_account
            self._account = account_store.accounts(connection, [account])[account]
        self._requests = RequestSender(connection, self._correction.invoice_id, account, given)

    def run(self) -> None:
        """Do what is still to be done. Raises Parked, StripeError and other BillingErrors."""
        if self._correction.state is not CorrectionState.OPEN:
            return
        match self._correction.kind:
            case CorrectionKind.CREDIT_NOTE:
                self._credit()
            case CorrectionKind.REFUND:
                self._refund()
            case CorrectionKind.OVERPAYMENT:
                self._unapply()
            case CorrectionKind.EVIDENCE:
                self._submit()
            case _:
                self._finish()
        self._given.checkpoint(self._correction.invoice_id, f"stored {self._correction.kind}")

    @property
    def _gateway(self) -> StripeGateway:
        return self._given.gateway

    @property
    def _target(self) -> str:
        assert self._stored.stripe_invoice_id is not None, "only invoices in Stripe are corrected there"
        return self._stored.stripe_invoice_id

    def _finish(self) -> None:
        """Void, write off, mark as paid elsewhere: Stripe first, then the books by what it answered.

        What somebody has voided there is void here, too: its usage is billed anew, or what is left of it is bad debt.
        What was written off is none any more once it is paid.
        """
        correction, identity = self._correction, self._stored.invoice.identity

        def look() -> StripeInvoice | None:
            found, _ = self._gateway.invoice(self._target)
            paid_by_card = correction.kind is CorrectionKind.PAID_ELSEWHERE and not found.paid_off_stripe
            void_there = correction.kind is CorrectionKind.WRITE_OFF and found.seen.status == "void"
            return found if (found.seen.status == STATUS[correction.kind] and not paid_by_card) or void_there else None

        def change(request: Request) -> StripeInvoice:
            made = self._gateway.change_invoice(request)
            # A stored reply is of before: somebody may have paid since.
            return self._gateway.invoice(self._target)[0] if made.replayed else made

        key, theirs = self._requests.ask(
            lambda epoch: simple_request(correction, identity, stripe_invoice=self._target, epoch=epoch),
            change,
            look,
        )
        if correction.kind is CorrectionKind.PAID_ELSEWHERE:
            with self._connection.begin():
                missing = left_of(self._connection, self._stored.invoice, theirs.amount_paid, untold=False)
            if missing > 0:
                raise Parked(
                    f"{plain(missing)} {identity.currency} of it are credited by a note that was made in Stripe by"
                    f" hand: take that over first, {TAKE_OVER}"
                )
        amounts = {
            CorrectionKind.VOID: theirs.amount_paid,
            CorrectionKind.PAID_ELSEWHERE: theirs.paid_off_stripe,
            CorrectionKind.WRITE_OFF: theirs.amount_remaining,
        }
        event, now = MOVES[correction.kind], self._given.now
        void_there = correction.kind is CorrectionKind.WRITE_OFF and theirs.seen.status == "void"
        if theirs.seen.status != (wanted := STATUS[correction.kind]) and not void_there:
            with self._connection.begin():
                stripe_request_store.record_reply(self._connection, key, theirs.invoice_id)
            raise StripeRefused(f"{self._stored.number} was made {wanted}, and is {theirs.seen.status} by now")
        with self._connection.begin():
            stripe_request_store.record_reply(self._connection, key, theirs.invoice_id)
            if self._stored.state is InvoiceState.UNCOLLECTIBLE:
                if correction.kind is CorrectionKind.PAID_ELSEWHERE:
                    recover(self._connection, self._stored, theirs, now, correction.made_by)
                else:
                    amounts[correction.kind] = 0  # nothing is owed of it any more
            elif correction.kind is CorrectionKind.VOID:
                cancel(self._connection, self._stored, reason=correction.reason, now=now,
                       actor=correction.made_by, tell=False)  # fmt: skip
            elif void_there:
                event = InvoiceEvent.VOID
                left = left_of(self._connection, self._stored.invoice, theirs.amount_paid, untold=True)
                amounts[correction.kind] = to_stripe(to_minor(left, identity.money), identity.money)
            entry_id = self._book(amounts[correction.kind])
            invoice_store.move(self._connection, self._stored, event, now, correction.made_by, parked_because=None)
            self._end(theirs.invoice_id, entry_id)

    def _credit(self) -> None:
        """A credit note of ours: what was paid of it already is linked to refunds, or credited out of band."""
        correction = self._correction
        assert correction.note_id is not None, "a credit note is one"
        with self._connection.begin():
            note = invoice_store.load(self._connection, correction.note_id)
        if self._stored.state is InvoiceState.UNCOLLECTIBLE:
            return self._credit_bad_debt(note)
        number = note.number or ""
        refunds, _ = self._given_back(number)
        theirs, _ = self._gateway.invoice(self._target)

        def make(epoch: int) -> Request:
            return note_request(
                correction, note.invoice, number, stripe_invoice=self._target, remaining=theirs.amount_remaining,
                refunds=refunds, epoch=epoch,
            )  # fmt: skip

        def look() -> Json | None:
            return self._ours(self._gateway.pages("/v1/credit_notes", invoice=self._target))

        key, made = self._requests.ask(make, self._gateway.change, look)
        wanted = (credited(note.invoice), self._target, "issued")
        if (made["total"], made["invoice"], made["status"]) != wanted:
            raise Parked(f"Stripe's credit note {made['id']} over {made['total']} is not {number} over {wanted[0]}")
        with self._connection.begin():
            stripe_request_store.record_reply(self._connection, key, made["id"])
            entry_id = self._book(made["post_payment_amount"])
            invoice_store.move(
                self._connection, note, InvoiceEvent.TELL, self._given.now, self._given.actor,
                stripe_invoice_id=made["id"], stripe_customer_id=self._stored.stripe_customer_id, parked_because=None,
            )  # fmt: skip
            self._end(made["id"], entry_id)

    def _credit_bad_debt(self, note: StoredInvoice) -> None:
        """What is written off is none any more as far as it is credited, and the rest was paid: unapplied cash.

        Stripe takes no credit note on an uncollectible invoice, and is not told.
        """
        correction, identity = self._correction, self._stored.invoice.identity
        with self._connection.begin():
            written_off = bad_debt(self._connection, correction.invoice_id).written_off
            amount = credited(note.invoice)
            lowered = min(amount, to_stripe(to_minor(written_off, identity.money), identity.money))
            if lowered:
                made = correction_store.add(
                    self._connection, correction.invoice_id, CorrectionKind.RECOVERY, note_id=correction.note_id,
                    reason=correction.reason, actor=correction.made_by,
                )  # fmt: skip
                entry_id = book(self._connection, made, identity, lowered, self._given.now)
                correction_store.end(self._connection, made, CorrectionEvent.ANSWER, entry_id=entry_id)
            because = "not told: Stripe takes no credit note on an uncollectible invoice"
            invoice_store.set_columns(self._connection, note, parked_because=None)
            self._end(None, self._book(amount - lowered), because=because)

    def _refund(self) -> None:
        """Give back the planned parts of payments, each once. Raises StripeRefused where no part is."""
        found, refused = self._given_back(self._correction.content["note"])
        if not found:
            raise StripeRefused("; ".join(refused))
        because = "; ".join(refused) or None
        with self._connection.begin():
            if because:
                tell_refused(self._connection, self._correction, because)
            self._end(found[-1][0], because=because)

    def _given_back(self, note: str | None) -> tuple[list[tuple[str, int]], list[str]]:
        """The planned parts of payments, given back: refunds with their amounts, and what was refused of it.

        What Stripe refuses to give back for a credit note is unapplied cash, as all of it would be.
        """
        found, refused = [], []
        for chunk, (intent, amount) in enumerate(self._correction.content.get("parts", [])):
            try:
                found.append((self._give_back(intent, amount, chunk, note), amount))
            except StripeRefused as error:
                money = self._stored.invoice.identity.money
                refused.append(f"{plain(major(amount, money))} {money.code} of {intent} is not given back: {error}")
        return found, refused

    def _give_back(self, intent: str, amount: int, chunk: int, note: str | None) -> str:
        def make(epoch: int) -> Request:
            return refund_request(
                self._correction, self._stored.invoice.identity, payment_intent=intent, amount=amount, chunk=chunk,
                note=note, epoch=epoch,
            )  # fmt: skip

        def look() -> Json | None:
            return self._ours(self._gateway.pages("/v1/refunds", payment_intent=intent), part=str(chunk))

        key, made = self._requests.ask(make, self._gateway.change, look)
        with self._connection.begin():
            stripe_request_store.record_reply(self._connection, key, made["id"])
        if made["status"] in NOT_GIVEN:
            raise StripeRefused(f"Stripe's refund {made['id']} is {made['status']}: {made.get('failure_reason')}")
        return str(made["id"])

    def _unapply(self) -> None:
        """An overpayment leaves the customer's balance in Stripe, and is unapplied cash here."""
        amount, customer = self._correction.content["amount"], self._stored.stripe_customer_id or ""

        def make(epoch: int) -> Request:
            return balance_request(
                self._correction, self._stored.invoice.identity, customer=customer, amount=amount,
                number=self._stored.number or "", epoch=epoch,
            )  # fmt: skip

        def look() -> Json | None:
            return self._ours(self._gateway.pages("/v1/customers/{}/balance_transactions", customer))

        key, moved = self._requests.ask(make, self._gateway.change, look)
        with self._connection.begin():
            stripe_request_store.record_reply(self._connection, key, moved["id"])
            self._end(moved["id"], self._book(amount))

    def _submit(self) -> None:
        identity, dispute = self._stored.invoice.identity, str(self._correction.content["dispute"])

        def look() -> Json | None:
            return self._ours([self._gateway.get("/v1/disputes/{}", dispute)])

        key, made = self._requests.ask(
            lambda epoch: evidence_request(self._correction, identity, epoch), self._gateway.change, look
        )
        with self._connection.begin():
            stripe_request_store.record_reply(self._connection, key, made["id"])
            self._end(made["id"])

    def _ours(self, listed: Any, **also: str) -> Json | None:
        """What in a list says that it is this correction."""
        wanted = {CORRECTION: str(self._correction.correction_no), **also}
        for found in listed:
            said = found["metadata"] or {}
            if all(said.get(name) == value for name, value in wanted.items()):
                return dict(found)
        return None

    def _book(self, amount: int) -> int | None:
        return book(self._connection, self._correction, self._stored.invoice.identity, amount, self._given.now)

    def _end(self, stripe_id: str | None, entry_id: int | None = None, because: str | None = None) -> None:
        correction_store.end(
            self._connection, self._correction, CorrectionEvent.ANSWER, stripe_id=stripe_id, entry_id=entry_id,
            because=because,
        )  # fmt: skip


def tell_refused(connection: Connection, correction: Correction, because: str) -> None:
    """Tell the audit log what Stripe refused of a correction that is over."""
    detail = {"correction": correction.correction_no, "reason": because}
    action = f"invoice.{correction.kind}.refused"
    audit.record(raw(connection), correction.made_by, action, str(correction.invoice_id), detail)
