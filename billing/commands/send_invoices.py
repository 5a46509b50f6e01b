"""Send a period's invoices to Stripe: exactly one each, whatever happens on the way. Running it again resumes."""

from __future__ import annotations

import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import InterfaceError, OperationalError

from billing.database import SENDERS_MAX, connection, transaction
from billing.errors import (
    NoStripeAccount,
    StripeAccessRefused,
    StripeBusy,
    StripeLater,
    StripeOutcomeUnknown,
    in_words,
)
from billing.invoicing import invoice_store
from billing.invoicing.invoice_rows import StoredInvoice, why_altered
from billing.invoicing.invoice_states import InvoiceEvent, InvoiceState, settled_locally
from billing.invoicing.invoices import InvoiceKind
from billing.invoicing.sending import SendingStep
from billing.periods import BillingPeriod
from billing.stripe.invoice_sender import InvoiceSender
from billing.stripe.rate_limits import SENDERS
from billing.stripe.request_sender import Circumstances
from billing.stripe.sender_lock import account_held
from billing.stripe.stripe_accounts import Stripe, followed

UNREACHABLE_AFTER: Final = SENDERS
"""So many invoices in a row without an answer from Stripe: the rest is left to a later run."""


class Outcome(StrEnum):
    """What became of an invoice."""

    FINALIZED = "finalized"
    ZERO = "zero"
    CARRIED = "carried_below_minimum"
    PARKED = "parked"
    LATER = "later"
    WOULD_BE_SENT = "would_be_sent"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class InvoiceSent:
    """One invoice after sending. `changed`: this run got it there. `reason`: why it is parked or left for later."""

    invoice_id: uuid.UUID
    billing_account: str
    currency: str
    amount_due_minor: int
    outcome: Outcome
    changed: bool
    number: str | None = None
    stripe_invoice_id: str | None = None
    hosted_invoice_url: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class InvoicesSent:
    """Every invoice of a period, or of those that were asked for, by billing account."""

    invoices: tuple[InvoiceSent, ...]

    def having(self, outcome: Outcome) -> tuple[InvoiceSent, ...]:
        """Those with an outcome."""
        return tuple(invoice for invoice in self.invoices if invoice.outcome is outcome)

    @property
    def ok(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.having(Outcome.PARKED) or self.having(Outcome.LATER))


def send_invoices(
    engine: Engine,
    *,
    period: BillingPeriod | None = None,
    invoice_ids: Collection[uuid.UUID] | None = None,
    gateway: Stripe,
    now: datetime,
    actor: str = "tollbook",
    progress: Callable[[int, int], None] | None = None,
    billing_accounts: Collection[str] | None = None,
    dry_run: bool = False,
    checkpoint: Callable[[uuid.UUID, str], None] | None = None,
    pause_s: float = 0.2,
    until: SendingStep = SendingStep.FINALIZED,
) -> InvoicesSent:
    """Send the drafts of a period but those for fees in advance, or those named, several at a time.

    With a period go the adjustment invoices of earlier ones; credit notes stay here.

    Of some billing accounts only, if given. `actor` approves them. What needs a person is parked with a text and does
    not stop the others; what got no answer is left for a later run. A dry run only says what would be done. `until` a
    step before the last one nothing is issued: drafts are frozen, or built in Stripe and compared. What a close has
    begun with, and nobody has approved, goes no further either.

    An invoice goes to the account of its legal entity. Raises StripeAccessRefused when a key is not accepted, or is of
    another account than the one that the entity's books follow: then none is sent.
    """
    with transaction(engine) as opened:
        stored = invoice_store.listed(
            opened, period=period, invoice_ids=invoice_ids, billing_accounts=billing_accounts, as_stored=True
        )
        if period is not None:
            stored = [
                s for s in stored if s.invoice.identity.kind not in (InvoiceKind.ADVANCE, InvoiceKind.CREDIT_NOTE)
            ]
            stored += invoice_store.open_adjustments(opened, before=period)
    if billing_accounts is not None:
        stored = [s for s in stored if s.invoice.identity.billing_account in billing_accounts]
    if dry_run:
        return InvoicesSent(tuple(_foreseen(s) for s in stored))
    open_ = [s for s in stored if s.state in (InvoiceState.DRAFT, InvoiceState.APPROVED)]
    sent = {s.invoice.invoice_id: _seen(s, changed=False) for s in stored if s not in open_}
    given: dict[str, Circumstances | str] = {}
    for entity in sorted({s.invoice.identity.legal_entity for s in open_}):
        try:
            account = followed(engine, gateway, entity)
            passed = checkpoint or (lambda invoice_id, name: None)
            given[entity] = Circumstances(account, now, actor, passed, pause_s, again=True)
        except NoStripeAccount as error:
            given[entity] = str(error)
        except (StripeBusy, StripeOutcomeUnknown) as error:
            given[entity] = f"Stripe does not answer: {error}"
    run = _Run(engine, given, until)
    senders = min(sum(each.limiter.senders for each in gateway.each), SENDERS_MAX)
    executor = ThreadPoolExecutor(max_workers=senders, thread_name_prefix="send")
    try:
        by_account: dict[str, list[StoredInvoice]] = defaultdict(list)
        for s in open_:
            by_account[s.invoice.identity.billing_account].append(s)
        futures = [executor.submit(run.all_of, listed) for listed in by_account.values()]
        done = 0
        for future in as_completed(futures):
            outcomes = future.result()
            sent |= {outcome.invoice_id: outcome for outcome in outcomes}
            done += len(outcomes)
            if progress is not None:
                progress(done, len(open_))
    finally:
        executor.shutdown(cancel_futures=True)
    return InvoicesSent(tuple(sent[s.invoice.invoice_id] for s in stored))


class _Run:
    """Sends invoices from several threads, and stops trying when Stripe does not answer at all.

    `given`: by legal entity what its invoices are sent with, or why they are left to a later run.
    """

    def __init__(self, engine: Engine, given: Mapping[str, Circumstances | str], until: SendingStep) -> None:
        self._engine = engine
        self._until = until
        self._given = given
        self._unanswered = 0
        self._guard = threading.Lock()

    def all_of(self, listed: Sequence[StoredInvoice]) -> list[InvoiceSent]:
        """Send an account's invoices, one after the other."""
        return [self.one(stored) for stored in listed]

    def one(self, stored: StoredInvoice) -> InvoiceSent:
        """Send one invoice; one that is not what was drawn up waits for a person."""
        if stored.altered:
            return _left(stored, why_altered([stored]), Outcome.PARKED)
        if self._unanswered >= UNREACHABLE_AFTER:
            return _left(stored, "Stripe does not answer: run it again later")
        account, given = stored.invoice.identity.billing_account, self._given[stored.invoice.identity.legal_entity]
        if isinstance(given, str):
            return _left(stored, given)
        with connection(self._engine) as opened, account_held(opened, account) as held:
            if not held:
                return _left(stored, "another sender is at it")
            try:
                sender = InvoiceSender(opened, stored.invoice.invoice_id, given, until=self._until)
                sent = sender.run()
                self._answered(True)
                if sender.held_by is not None:
                    return _left(sent, f"compared; the close of {sender.held_by} issues it once it is approved")
                return _seen(sent, changed=True)
            except (StripeAccessRefused, InterfaceError, OperationalError):
                raise
            except (StripeBusy, StripeOutcomeUnknown) as error:
                self._answered(isinstance(error, StripeLater))
                return _left(stored, str(error))
            except Exception as error:  # also a reply of a shape that nobody thought of: it stops no other invoice
                with opened.begin():
                    invoice_store.park(opened, stored.invoice.invoice_id, in_words(error))
                return _left(stored, in_words(error), Outcome.PARKED)

    def _answered(self, yes: bool) -> None:
        with self._guard:
            self._unanswered = 0 if yes else self._unanswered + 1


def _seen(stored: StoredInvoice, *, changed: bool) -> InvoiceSent:
    outcomes = {
        InvoiceState.FINALIZED: Outcome.FINALIZED,
        InvoiceState.ZERO: Outcome.ZERO,
        InvoiceState.CARRIED_BELOW_MINIMUM: Outcome.CARRIED,
    }
    identity = stored.invoice.identity
    return InvoiceSent(
        invoice_id=stored.invoice.invoice_id,
        billing_account=identity.billing_account,
        currency=identity.currency,
        amount_due_minor=stored.invoice.amount_due_minor,
        outcome=outcomes.get(stored.state, Outcome.OTHER),
        changed=changed,
        number=stored.number,
        stripe_invoice_id=stored.stripe_invoice_id,
        hosted_invoice_url=stored.hosted_invoice_url,
    )


def _left(stored: StoredInvoice, reason: str, outcome: Outcome = Outcome.LATER) -> InvoiceSent:
    return replace(_seen(stored, changed=False), outcome=outcome, reason=reason)


def _foreseen(stored: StoredInvoice) -> InvoiceSent:
    if stored.state not in (InvoiceState.DRAFT, InvoiceState.APPROVED):
        return _seen(stored, changed=False)
    foreseen = {
        None: Outcome.WOULD_BE_SENT,
        InvoiceEvent.SETTLE_AS_ZERO: Outcome.ZERO,
        InvoiceEvent.CARRY: Outcome.CARRIED,
    }
    return replace(_seen(stored, changed=True), outcome=foreseen[settled_locally(stored.invoice)])
