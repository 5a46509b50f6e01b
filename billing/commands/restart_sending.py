"""Let the sending of an invoice begin anew where what it had in Stripe is gone: a person's decision, in the audit log.

What is there in Stripe stays as it is: whoever wants another draft, or another customer, deletes or voids there first.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, Engine

from billing.commands.correct_invoice import begin_void
from billing.database import connection as connected
from billing.database import raw
from billing.errors import CorrectionRefused
from billing.invoicing import correction_store, invoice_store, number_store
from billing.invoicing.correcting import CorrectionEvent, CorrectionKind
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceEvent, InvoiceState
from billing.invoicing.sending import SendingStep
from billing.plans import account_store
from billing.posting.correction_amounts import book
from billing.stripe import customer_store, restart_store, returns, stripe_request_store
from billing.stripe.hindrances import CREDIT_IT, customer_deleted, draft_of
from billing.stripe.invoice_sender import final_columns, issue
from billing.stripe.sender_lock import account_held
from billing.stripe.stripe_accounts import Stripe, followed
from billing.stripe.stripe_gateway import StripeGateway, StripeInvoice
from streams import audit


def restart_sending(
    engine: Engine, reference: str, *, gateway: Stripe, reason: str, now: datetime, actor: str,
    customer: str | None = None, number_taken: str | None = None, dry_run: bool = False,
) -> str:  # fmt: skip
    """Begin anew with an invoice that is not finalized: what was done, in words. `invoice send` goes on from there.

    What somebody finalized there under another number is no document of ours: it is void there by then, or wholly
    credited, and what was paid of it becomes unapplied cash. Ours keeps its number, if it has one. Where its customer
    is deleted it goes to another one: `customer`, which somebody made in Stripe, or one that is made with the next
    sending. A number that is on a void invoice in Stripe, made of our draft, is used up: then ours becomes what that
    one is, and what it bills is billed anew. Where another invoice there has our number (`number_taken`: its id), ours
    gets the next one; the number that it had stays used.

    Raises CorrectionRefused where nothing is gone, or what is there must go first, and UnknownInvoice.
    """
    with connected(engine) as opened:
        with opened.begin():
            stored = invoice_store.find(opened, reference)
        account = stored.invoice.identity.billing_account
        with account_held(opened, account) as held:
            if not held:
                raise CorrectionRefused(f"another sender is at an invoice of {account}: try again when it is done")
            with opened.begin():
                stored = invoice_store.find(opened, reference)
                former = restart_store.former_drafts(opened, stored.invoice.invoice_id)
                _check(opened, reference, stored)
            of = followed(engine, gateway, stored.invoice.identity.legal_entity, dry_run=dry_run)
            gone = _customer_gone(of, stored)
            there = _there(of, stored, former, gone)
            used_up = _used_up(of, stored, there, gone)
            paid = sum(found.amount_paid for found in there)
            if used_up is not None:
                with opened.begin() as transaction:
                    _take_over(opened, stored, used_up, reason, now, actor)
                    if dry_run:
                        transaction.rollback()
                return f"{stored.number} is void, as in Stripe, with the next `tollbook stripe sync`: draw it up anew"
            if customer is not None:
                _check_customer(opened, of, account, customer, gone)
            if number_taken is not None:
                _check_number(of, stored, number_taken)
            with opened.begin() as transaction:
                _keep_what_was_paid(opened, stored, paid, reason, now, actor)
                number = _restart(opened, stored, gone, customer, number_taken, reason, actor)
                if dry_run:
                    transaction.rollback()
    to = f", billed to customer {customer or 'that is made then'} in place of {gone}" if gone else ""
    as_number = f", as {number}" if number_taken is not None else ""
    return f"{reference} begins anew with the next `tollbook invoice send`{to}{as_number}"


def _check(connection: Connection, reference: str, stored: StoredInvoice) -> None:
    if stored.state not in (InvoiceState.DRAFT, InvoiceState.APPROVED):
        raise CorrectionRefused(f"{reference} is {stored.state}: only what is not finalized yet begins anew")
    if stored.stripe_customer_id is None:
        raise CorrectionRefused(f"nothing of {reference} is in Stripe yet: `tollbook invoice send` goes on with it")
    if stripe_request_store.under_way(connection, stored.invoice.invoice_id):
        raise CorrectionRefused(f"a request for {reference} may be under way: try again in two minutes")


def _customer_gone(gateway: StripeGateway, stored: StoredInvoice) -> str | None:
    customer = stored.stripe_customer_id or ""
    return customer if customer_deleted(gateway, customer) else None


def _there(
    gateway: StripeGateway, stored: StoredInvoice, former: list[str | None], gone: str | None
) -> list[StripeInvoice]:
    """What is in Stripe that was made for an invoice, and has not been left behind before."""
    draft = stored.stripe_invoice_id
    if draft is not None:
        return [found for found in [draft_of(gateway, draft)] if found is not None]
    if gone is not None:
        return []
    mine = str(stored.invoice.invoice_id)
    listed = gateway.invoices(customer=stored.stripe_customer_id)
    return [i for i in listed if i.seen.metadata.get("invoice_id") == mine and i.invoice_id not in former]


def _used_up(
    gateway: StripeGateway, stored: StoredInvoice, there: list[StripeInvoice], gone: str | None
) -> StripeInvoice | None:
    """Nothing of the invoice may be in Stripe any more but what is void there, or wholly credited: of void ones that
    which has used our number up.

    Raises CorrectionRefused.
    """
    for found in there:
        if found.seen.status == "draft":
            then = "" if gone else " (or mend it there, and `tollbook invoice send` goes on with it)"
            raise CorrectionRefused(f"its draft {found.invoice_id} is in Stripe: delete it there first{then}")
        if found.seen.status == "paid":
            if stored.number is not None and found.seen.number == stored.number:
                raise CorrectionRefused(f"{found.invoice_id} is paid in Stripe, with our number: it stays this invoice")
            if not returns.wholly_credited(gateway, found.invoice_id, found.seen.total):
                raise CorrectionRefused(f"{found.invoice_id} is paid in Stripe: {CREDIT_IT} first")
            continue
        if found.seen.status != "void":
            raise CorrectionRefused(f"{found.invoice_id} is {found.seen.status} in Stripe: void it there first")
        if stored.number is not None and found.seen.number == stored.number:
            return found
    if gone is None and stored.stripe_invoice_id is None and stored.parked_because is None:
        raise CorrectionRefused("nothing stands in its way: `tollbook invoice send` goes on with it")
    return None


def _keep_what_was_paid(
    connection: Connection, stored: StoredInvoice, paid: int, reason: str, now: datetime, actor: str
) -> None:
    """Paid (Stripe's integer) of what is no document of ours: unapplied cash of the account.

    docs/decisions/0042-made-in-stripe-by-hand.md
    """
    if not paid:
        return
    of = stored.invoice
    made = correction_store.add(
        connection, of.invoice_id, CorrectionKind.OVERPAYMENT, reason=reason, actor=actor,
        content={"amount": 0, "up_to": stored.stripe_invoice_id},
    )  # fmt: skip
    entry_id = book(connection, made, of.identity, paid, now)
    correction_store.end(connection, made, CorrectionEvent.ANSWER, entry_id=entry_id)


def _take_over(
    connection: Connection, stored: StoredInvoice, theirs: StripeInvoice, reason: str, now: datetime, actor: str
) -> None:
    account = stored.invoice.identity.billing_account
    for key, _ in stripe_request_store.unanswered(connection, [stored.invoice.invoice_id]):
        stripe_request_store.record_reply(connection, key, theirs.invoice_id)
    terms = account_store.accounts(connection, [account])[account].payment_terms_days
    columns = final_columns(theirs, now.date(), terms)
    issue(connection, stored, InvoiceEvent.FINALIZE, columns, now=now, actor=actor)
    begin_void(connection, str(stored.invoice.invoice_id), reason=reason, now=now, actor=actor)


def _check_customer(
    connection: Connection, gateway: StripeGateway, account: str, customer: str, gone: str | None
) -> None:
    if gone is None:
        raise CorrectionRefused(f"the customer of {account} is there in Stripe: it stays the one that is billed")
    with connection.begin():
        of = customer_store.customers(connection).get(customer)
    if of is not None:
        raise CorrectionRefused(f"{customer} is or was the customer of {of}: name one that is nobody's")
    if customer_deleted(gateway, customer):
        raise CorrectionRefused(f"{customer} is not in Stripe, or deleted there")


def _check_number(gateway: StripeGateway, stored: StoredInvoice, number_taken: str) -> None:
    theirs = draft_of(gateway, number_taken)
    if stored.number is None or theirs is None or theirs.seen.number != stored.number:
        raise CorrectionRefused(f"{number_taken} is not in Stripe, or its number is not {stored.number or 'ours'}")
    if theirs.seen.metadata.get("invoice_id") == str(stored.invoice.invoice_id):
        raise CorrectionRefused(f"{number_taken} was made of this invoice's draft: without --number-taken")
    if theirs.seen.status == "draft":
        raise CorrectionRefused(f"{number_taken} is a draft: give it another number there, and send ours again")


def _restart(
    connection: Connection, stored: StoredInvoice, gone: str | None, customer: str | None, number_taken: str | None,
    reason: str, actor: str,
) -> str | None:  # fmt: skip
    """Let it begin anew; the number that it has from then on, if it has one."""
    identity, invoice_id = stored.invoice.identity, stored.invoice.invoice_id
    lost = (stored.number, number_taken) if stored.number and number_taken else None
    restart_store.add(
        connection, invoice_id, stripe_invoice=stored.stripe_invoice_id, customer_gone=gone, number=lost, reason=reason,
        actor=actor,
    )  # fmt: skip
    if customer is not None:
        customer_store.add(connection, identity.billing_account, customer)
    number = number_store.issue_number(connection, identity.legal_entity, invoice_id) if lost else stored.number
    invoice_store.set_columns(
        connection, stored, sending_step=SendingStep.FROZEN.value, stripe_customer_id=None, stripe_invoice_id=None,
        parked_because=None, number=number,
    )  # fmt: skip
    detail = {"reason": reason, "draft": stored.stripe_invoice_id, "customer_gone": gone, "customer": customer}
    taken = {"number_gone": stored.number, "number_taken_by": number_taken, "number": number} if lost else {}
    audit.record(raw(connection), actor, "invoice.restart", str(invoice_id), detail | taken)
    return number
