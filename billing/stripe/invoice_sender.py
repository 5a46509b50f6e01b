"""Sending one invoice to Stripe: step by step, each stored before the next, so that any crash can be resumed.

Nothing external happens inside a transaction. Only the holder of the billing account's lock runs this.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection

from billing.errors import StripeRefused
from billing.invoicing import invoice_store, number_store, party_store, rated_line_store
from billing.invoicing.close_holds import close_that_holds
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceEvent, InvoiceState, settled_locally
from billing.invoicing.parties import Party
from billing.invoicing.sending import (
    Operation,
    Request,
    SendingStep,
    customer_changes,
    customer_data,
    customer_metadata,
    customer_request,
    customer_update_request,
    draft_differences,
    draft_request,
    due_date,
    finalize_request,
    following,
    invoice_metadata,
    lines_requests,
    number_request,
    position,
)
from billing.invoicing.stripe_lines import unsendable
from billing.ledger import ledger_store
from billing.plans import account_store
from billing.posting import credit_drawing
from billing.posting.posting_rules import invoice_issued
from billing.stripe import customer_store, restart_store, stripe_request_store
from billing.stripe.draft_checks import check_current
from billing.stripe.hindrances import hindrance
from billing.stripe.request_sender import EPOCH_LIMIT, Circumstances, Differs, Parked, RequestSender
from billing.stripe.stripe_gateway import Json, StripeInvoice

CLOCKS_DIFFER: Final = timedelta(hours=1)
"""Stripe's clock and the database's are no further apart."""
ISSUED_THERE: Final = ("open", "paid")
LOOKS: Final = 3
"""A draft that differs is read so often before it is believed: Stripe's lists of lines may lag a moment."""


class InvoiceSender:
    """Takes one invoice from wherever it stands to finalized, or to the state it keeps locally.

    `held_by`: the month whose close has the draft and is not approved. Then it goes no further than to be compared.
    """

    def __init__(
        self,
        connection: Connection,
        invoice_id: uuid.UUID,
        given: Circumstances,
        *,
        until: SendingStep = SendingStep.FINALIZED,
    ) -> None:
        self._connection = connection
        self._invoice_id = invoice_id
        self._given = given
        self.held_by: str | None = None
        with connection.begin():
            self._stored = invoice_store.load(connection, invoice_id)
            if until is SendingStep.FINALIZED and self._stored.state is InvoiceState.DRAFT:
                self.held_by = close_that_holds(connection, self._stored.invoice.identity)
            account = self._stored.invoice.identity.billing_account
            self._account = account_store.accounts(connection, [account])[account]
            self._payer = party_store.present(connection, (None, account), self._account.name)
            self._former = restart_store.former_drafts(connection, invoice_id)
        # Each time it begins anew it uses keys of its own.
        self._first = len(self._former) * EPOCH_LIMIT
        self._until = SendingStep.COMPARED if self.held_by else until
        self._requests = RequestSender(connection, invoice_id, account, given)

    def run(self) -> StoredInvoice:
        """Do every step that is still to be done, up to the last one wanted; what is never sent is issued with it.

        Raises Parked, StripeError and other BillingErrors.
        """
        steps = {
            SendingStep.FROZEN: self._freeze,
            SendingStep.CUSTOMER_KNOWN: self._find_customer,
            SendingStep.DRAFT_CREATED: self._create_draft,
            SendingStep.LINES_ADDED: self._add_lines,
            SendingStep.COMPARED: self._compare,
            SendingStep.RELEASED: self._release,
            SendingStep.NUMBERED: self._set_number,
            SendingStep.FINALIZED: self._finalize,
        }
        while self._stored.state in (InvoiceState.DRAFT, InvoiceState.APPROVED):
            locally = settled_locally(self._stored.invoice)
            if self._reached(locally):
                break
            if locally is not None and self._stored.sending_step is SendingStep.FROZEN:
                with self._connection.begin():
                    self._stored = self._issue_locally(self._stored, locally, {})
                break
            step = following(self._stored.sending_step)
            try:
                self._stored = steps[step](self._stored)
            except (StripeRefused, Differs) as why:
                raise Parked(hindrance(self._given.gateway, self._stored, why)) from why
            self._given.checkpoint(self._invoice_id, f"stored {max(step, self._stored.sending_step, key=position)}")
        return self._stored

    def _reached(self, locally: InvoiceEvent | None) -> bool:
        """Whether what was wanted is done: of what is never sent only the last step issues it."""
        if self._until is SendingStep.FINALIZED:
            return False
        wanted = SendingStep.FROZEN if locally else self._until
        return position(self._stored.sending_step) >= position(wanted)

    def _set(self, stored: StoredInvoice, step: SendingStep, **columns: object) -> StoredInvoice:
        return invoice_store.set_columns(
            self._connection, stored, sending_step=step.value, parked_because=None, **columns
        )

    def _freeze(self, stored: StoredInvoice) -> StoredInvoice:
        """Fix the content; settle what is never sent (docs/spec/money.md 10)."""
        with self._connection.begin():
            for period in sorted({stored.invoice.identity.period, *stored.invoice.rated_totals}):
                rated_line_store.lock_period(self._connection, period, shared=True)
            check_current(self._connection, stored.invoice)
            credit_drawing.reserve(self._connection, stored.invoice)
            locally = settled_locally(stored.invoice)
            if locally is None:
                if (reason := unsendable(stored.invoice)) is not None:
                    raise Parked(reason)
                customer = customer_store.customer_of(self._connection, self._account.billing_account)
                if customer is not None:
                    return self._with_customer(stored, customer, frozen_at=self._given.now)
                return self._set(stored, SendingStep.FROZEN, frozen_at=self._given.now)
            if self._until is not SendingStep.FINALIZED:
                return self._set(stored, SendingStep.FROZEN, frozen_at=self._given.now)
            return self._issue_locally(stored, locally, {"frozen_at": self._given.now})

    def _issue_locally(self, stored: StoredInvoice, event: InvoiceEvent, columns: dict[str, object]) -> StoredInvoice:
        columns["parked_because"] = None
        if event is InvoiceEvent.CARRY:
            # A carried amount keeps its own document (13.16), so it is numbered; a zero statement is not (10).
            columns["number"] = self._number(stored)
            columns["issue_date"] = self._given.now.date()
        return self._issue(stored, event, columns)

    def _issue(self, stored: StoredInvoice, event: InvoiceEvent, columns: dict[str, object]) -> StoredInvoice:
        return issue(self._connection, stored, event, columns, now=self._given.now, actor=self._given.actor)

    def _find_customer(self, stored: StoredInvoice) -> StoredInvoice:
        account = self._account
        with self._connection.begin():
            known = customer_store.customer_of(self._connection, account.billing_account)
            before = customer_store.count(self._connection, account.billing_account)
            if known is not None:
                return self._with_customer(stored, known)
            data = customer_data(self._payer_with_email())
            since = stripe_request_store.first_frozen(
                self._connection, account.billing_account, Operation.CREATE_CUSTOMER
            )

        def look() -> str | None:
            # Not by Stripe's search, which lags behind: a customer that it does not show yet would be made twice.
            wanted = customer_metadata(account.legal_entity, account.billing_account)
            listed = self._given.gateway.customers(since and since - CLOCKS_DIFFER)
            found = [each["id"] for each in listed if wanted.items() <= (each["metadata"] or {}).items()]
            if len(found) > 1:
                raise Parked(f"Stripe has customers that all say they are this account: {', '.join(found)}")
            return str(found[0]) if found else None

        key, customer = self._requests.ask(
            lambda epoch: customer_request(account.legal_entity, account.billing_account, data, epoch),
            self._given.gateway.create_customer,
            look,
            before * EPOCH_LIMIT,
        )
        with self._connection.begin():
            stripe_request_store.record_reply(self._connection, key, customer)
            customer_store.add(self._connection, account.billing_account, customer)
            return self._with_customer(stored, customer)

    def _payer_with_email(self) -> Party:
        """Who gets the account's invoices. Raises Parked without an e-mail address: Stripe makes no draft then."""
        account = self._account.billing_account
        if not self._payer.email:
            raise Parked(
                f"billing account {account} has no e-mail address, and Stripe makes no invoice without one:"
                f" `tollbook account add {account} --email …`, then send it again"
            )
        return self._payer

    def _with_customer(self, stored: StoredInvoice, customer: str, **columns: object) -> StoredInvoice:
        self._requests.freeze_ahead([self._draft_request(stored, customer, self._first)])
        return self._set(stored, SendingStep.CUSTOMER_KNOWN, stripe_customer_id=customer, **columns)

    def _draft_request(self, stored: StoredInvoice, customer: str, epoch: int) -> Request:
        terms = self._account.payment_terms_days
        return draft_request(stored.invoice, customer=customer, payment_terms_days=terms, epoch=epoch)

    def _create_draft(self, stored: StoredInvoice) -> StoredInvoice:
        customer = _known(stored.stripe_customer_id)

        def look() -> StripeInvoice | None:
            wanted = invoice_metadata(stored.invoice)
            listed = self._given.gateway.invoices(customer=customer)
            found = [
                i
                for i in listed
                if i.seen.metadata.get("invoice_id") == wanted["invoice_id"] and i.invoice_id not in self._former
            ]
            if len(found) > 1 or any(i.seen.metadata != wanted for i in found):
                names = ", ".join(i.invoice_id for i in found)
                raise Parked(f"Stripe has invoices that say they are this one and are not: {names}")
            return found[0] if found else None

        key, draft = self._requests.ask(
            lambda epoch: self._draft_request(stored, customer, epoch),
            self._given.gateway.change_invoice,
            look,
            self._first,
        )
        with self._connection.begin():
            stripe_request_store.record_reply(self._connection, key, draft.invoice_id)
            self._requests.freeze_ahead(self._lines_requests(stored, draft.invoice_id, self._first)[:1])
            return self._set(stored, SendingStep.DRAFT_CREATED, stripe_invoice_id=draft.invoice_id)

    def _add_lines(self, stored: StoredInvoice) -> StoredInvoice:
        """Each request's answer is stored before the next is sent; the last one's with the step.

        Where the last reply shows the whole draft, it is compared at once: that spares asking for it.
        """
        target = _known(stored.stripe_invoice_id)
        answered: str | None = None
        reply: StripeInvoice | None = None
        for chunk, request in enumerate(self._lines_requests(stored, target, self._first)):
            if answered is not None:
                with self._connection.begin():
                    stripe_request_store.record_reply(self._connection, answered, target)
                    self._requests.freeze_ahead([request])
            answered, reply = self._add_chunk(stored, target, chunk)
        equal = reply is not None and _whole(reply) and not self._differences(stored, reply, "draft")
        with self._connection.begin():
            if answered is not None:
                stripe_request_store.record_reply(self._connection, answered, target)
            return self._set(stored, SendingStep.COMPARED if equal else SendingStep.LINES_ADDED)

    def _add_chunk(
        self, stored: StoredInvoice, target: str, chunk: int
    ) -> tuple[str, StripeInvoice] | tuple[None, None]:
        """The key of the request that added some lines, with its reply; nothing where that was known."""

        def make(epoch: int) -> Request:
            return self._lines_requests(stored, target, epoch)[chunk]

        def look() -> StripeInvoice | None:
            wanted = {line["metadata"]["line_key"] for line in make(0).decoded["lines"]}
            found, lines = self._given.gateway.invoice(target)
            there = wanted & {line.line_key for line in lines}
            if there and there != wanted:
                raise Parked(f"Stripe has {len(there)} of the {len(wanted)} lines of one request")
            return found if there else None

        if self._requests.answered(make, self._first):
            return None, None
        return self._requests.ask(make, self._given.gateway.change_invoice, look, self._first)

    @staticmethod
    def _lines_requests(stored: StoredInvoice, target: str, epoch: int) -> list[Request]:
        return lines_requests(stored.invoice, stripe_invoice=target, epoch=epoch)

    def _compare(self, stored: StoredInvoice) -> StoredInvoice:
        """Read the draft back and compare it to the cent and the line (docs/spec/money.md 10)."""
        different: list[str] = []
        for look in range(LOOKS):
            if look:
                self._requests.pause(look)
            found, lines = self._given.gateway.invoice(_known(stored.stripe_invoice_id))
            different = self._differences(stored, replace(found, lines=tuple(lines)), "draft")
            if not different:
                with self._connection.begin():
                    return self._set(stored, SendingStep.COMPARED)
        raise Differs(f"Stripe's draft {stored.stripe_invoice_id} differs: {'; '.join(different)}")

    def _differences(
        self, stored: StoredInvoice, found: StripeInvoice, status: str, number: str | None = None
    ) -> list[str]:
        """What Stripe says otherwise than we; of the lines only where the reply has them all."""
        return draft_differences(
            stored.invoice,
            customer=_known(stored.stripe_customer_id),
            found=found.seen,
            lines=found.lines,
            status=status,
            number=number,
        )

    def _release(self, stored: StoredInvoice) -> StoredInvoice:
        """Number and approval in one transaction: from here on the document exists (docs/spec/money.md 8).

        Begun anew after that, it keeps both.
        """
        with self._connection.begin():
            target, number = _known(stored.stripe_invoice_id), stored.number or self._number(stored)
            self._requests.freeze_ahead([self._number_request(stored, target, number, self._first)])
            if stored.state is InvoiceState.APPROVED:
                return self._set(stored, SendingStep.RELEASED)
            return invoice_store.move(
                self._connection,
                stored,
                InvoiceEvent.APPROVE,
                self._given.now,
                self._given.actor,
                number=number,
                sending_step=SendingStep.RELEASED.value,
                parked_because=None,
            )

    def _tell_changes(self, customer: str) -> None:
        """Stripe's customer has the account's name and addresses of now: an invoice takes them when it is finalized."""
        account = self._account
        while True:
            with self._connection.begin():
                told = stripe_request_store.customers_told(self._connection, account.billing_account).get(customer)
                changed = {} if told is None else customer_changes(customer_data(self._payer), told.data)
            if told is None or not changed:
                return

            def make(epoch: int, changed: Mapping[str, Any] = changed, times: int = told.times) -> Request:
                of = (account.legal_entity, account.billing_account, customer)
                return customer_update_request(*of, changed, times, epoch)

            def look(changed: Mapping[str, Any] = changed) -> Json | None:
                there = self._given.gateway.get("/v1/customers/{}", customer)
                return None if customer_changes(changed, there) else there

            key, _ = self._requests.ask(make, self._given.gateway.change, look)
            with self._connection.begin():
                stripe_request_store.record_reply(self._connection, key, customer)

    def _number_request(self, stored: StoredInvoice, target: str, number: str, epoch: int) -> Request:
        return number_request(stored.invoice, stripe_invoice=target, number=number, payer=self._payer, epoch=epoch)

    def _set_number(self, stored: StoredInvoice) -> StoredInvoice:
        self._tell_changes(_known(stored.stripe_customer_id))
        target, number = _known(stored.stripe_invoice_id), _known(stored.number)

        def look() -> StripeInvoice | None:
            found, _ = self._given.gateway.invoice(target)
            return found if found.seen.number == number else None

        key, numbered = self._requests.ask(
            lambda epoch: self._number_request(stored, target, number, epoch),
            self._given.gateway.change_invoice,
            look,
            self._first,
        )
        if numbered.replayed:
            found, lines = self._given.gateway.invoice(target)
            numbered = replace(found, lines=tuple(lines))
        # It was equal before it was approved; somebody may have edited it since. After finalizing it is too late.
        # Finalized there meanwhile with our number on it, it is taken as it is: finalizing then finds it.
        status = numbered.seen.status if numbered.seen.status in ISSUED_THERE else "draft"
        if different := self._differences(stored, numbered, status, number):
            raise Differs(f"Stripe's draft {target} was changed after it was approved: {'; '.join(different)}")
        with self._connection.begin():
            stripe_request_store.record_reply(self._connection, key, numbered.invoice_id)
            self._requests.freeze_ahead([finalize_request(stored.invoice, stripe_invoice=target, epoch=self._first)])
            return self._set(stored, SendingStep.NUMBERED)

    def _finalize(self, stored: StoredInvoice) -> StoredInvoice:
        target = _known(stored.stripe_invoice_id)

        def look() -> StripeInvoice | None:
            found, _ = self._given.gateway.invoice(target)
            return found if found.seen.status != "draft" else None

        key, final = self._requests.ask(
            lambda epoch: finalize_request(stored.invoice, stripe_invoice=target, epoch=epoch),
            self._given.gateway.change_invoice,
            look,
            self._first,
        )
        if final.lines is None:
            final = replace(final, lines=tuple(self._given.gateway.invoice(target)[1]))
        # Adopted late, it may have been paid already.
        status = final.seen.status if final.seen.status == "paid" else "open"
        different = self._differences(stored, final, status, stored.number)
        if different:
            anew = f"void it there, then `tollbook invoice restart {stored.number}`"
            raise Parked(f"Stripe finalized {target}, and it differs: {'; '.join(different)}: {anew}")
        columns = final_columns(final, self._given.now.date(), self._account.payment_terms_days)
        with self._connection.begin():
            stripe_request_store.record_reply(self._connection, key, final.invoice_id)
            return self._issue(stored, InvoiceEvent.FINALIZE, columns)

    def _number(self, stored: StoredInvoice) -> str:
        return number_store.issue_number(
            self._connection, stored.invoice.identity.legal_entity, stored.invoice.invoice_id
        )


def issue(
    connection: Connection, stored: StoredInvoice, event: InvoiceEvent, columns: dict[str, object], *, now: datetime,
    actor: str,
) -> StoredInvoice:  # fmt: skip
    """The invoice becomes due: its journal entry and its new state, in the caller's transaction."""
    entry = invoice_issued(stored.invoice, now=now)
    entry_id = None
    if entry is not None:
        entry_id = ledger_store.post(connection, [entry])[entry.idempotency_key]
        columns["entry_id"] = entry_id
    credit_drawing.draw(connection, stored.invoice, entry_id, now, actor)
    return invoice_store.move(connection, stored, event, now, actor, **columns)


def final_columns(final: StripeInvoice, issued: date, payment_terms_days: int) -> dict[str, object]:
    """What is kept of an invoice that Stripe has finalized."""
    return {
        "sending_step": SendingStep.FINALIZED.value,
        "parked_because": None,
        "issue_date": issued,
        "due_date": due_date(issued, payment_terms_days),
        "hosted_invoice_url": final.hosted_invoice_url,
        "invoice_pdf_url": final.invoice_pdf_url,
    }


def _whole(reply: StripeInvoice) -> bool:
    """Whether a reply shows all of a draft as it is now."""
    return reply.lines is not None and not reply.replayed


def _known(value: str | None) -> str:
    assert value is not None, "set by an earlier step"
    return value
