"""What people do to invoices after they were finalized: void, credit. Decided here; Stripe is told after.

Each is one transaction with its line in the audit log; `send_corrections` then tells Stripe and books the answer. What
was paid is given back by commands/refund_invoice.py. What needs two people (write-off, paid elsewhere) is proposed:
commands/decide_proposal.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, Engine

from billing.bills.credits import Grant, GrantKind, TaxTreatment
from billing.bills.documents import Payer
from billing.commands.draft_invoices import draft_invoices
from billing.database import raw, retrying, transaction
from billing.errors import CorrectionRefused
from billing.invoicing import correction_store, credit_store, invoice_store, rated_line_store, tax_store
from billing.invoicing.billed_documents import billed_period
from billing.invoicing.correcting import Correction, CorrectionKind, credited, parts
from billing.invoicing.credit_store import GivenCredit
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceState
from billing.invoicing.invoices import AccountCredits, Invoice, InvoiceKind
from billing.invoicing.reversing import goodwill_note, note_grant_id
from billing.money import Currency, plain, total
from billing.periods import INSTANT
from billing.plans import account_store
from billing.posting.cancelling import cancel, notes_against
from billing.posting.note_issuing import issue_note
from billing.posting.stripe_money import major
from billing.stripe import returns, returns_store, standing_store
from billing.stripe.returns import Payment
from billing.stripe.stripe_accounts import Stripe, followed
from streams import audit

MADE_IN_STRIPE: Final = "made_in_stripe"
"""In the content of a credit note's correction: the id of one that somebody made in Stripe by hand."""
CREDITABLE: Final = (InvoiceState.FINALIZED, InvoiceState.PAID)


@retrying
def void_invoice(
    engine: Engine, reference: str, *, reason: str, now: datetime, actor: str, gateway: Stripe | None = None,
    dry_run: bool = False,
) -> Correction:  # fmt: skip
    """Void an invoice that nobody has got yet and nothing was paid of: all it billed is to be billed anew.

    Its number stays used. Raises CorrectionRefused where it was delivered, paid in part, or credited: then a credit
    note takes it back. One that somebody has voided in Stripe is taken over whatever became of it; what is written off
    of it stays so. Whether it was delivered is known as far as events came in, and `gateway` is asked for more.
    """
    if gateway is not None:
        _ask_whether_delivered(engine, reference, gateway)
    with transaction(engine, dry_run=dry_run) as connection:
        return begin_void(connection, reference, reason=reason, now=now, actor=actor)


def _ask_whether_delivered(engine: Engine, reference: str, stripe: Stripe) -> None:
    """Keep what Stripe's events tell of its delivery since it was finalized there."""
    stored = find_invoice(engine, reference)
    if stored.state is not InvoiceState.FINALIZED or stored.stripe_invoice_id is None:
        return
    gateway = followed(engine, stripe, stored.invoice.identity.legal_entity)
    theirs, _ = gateway.invoice(stored.stripe_invoice_id)
    since = datetime.fromtimestamp(theirs.finalized_s or theirs.created_s, UTC)
    for event in returns.deliveries(gateway, theirs.invoice_id, since):
        with transaction(engine) as connection:
            returns_store.keep_event(connection, event, received_as="poll", legal_entity=gateway.legal_entity)


def begin_void(connection: Connection, reference: str, *, reason: str, now: datetime, actor: str) -> Correction:
    """As `void_invoice`, in the caller's transaction."""
    known = invoice_store.find(connection, reference)
    standing = standing_store.standings(connection, [known.invoice.invoice_id]).get(known.invoice.invoice_id)
    is_void = standing is not None and standing.status == "void"
    states = (InvoiceState.FINALIZED, *((InvoiceState.UNCOLLECTIBLE,) if is_void else ()))
    stored = correctable(connection, reference, states)
    name, of = stored.number or reference, stored.invoice
    if is_void:
        return _begin(connection, stored, name, reason, now, actor)
    if returns_store.heard_of(connection, stored.stripe_invoice_id or "", returns.SENT):
        raise CorrectionRefused(f"{name} was delivered: `tollbook invoice credit-note {name} --reissue` instead")
    if (standing is not None and standing.amount_paid) or notes_against(connection, of):
        raise CorrectionRefused(f"{name} is paid or credited in part: `tollbook invoice credit-note {name}` instead")
    return _begin(connection, stored, name, reason, now, actor)


def _begin(
    connection: Connection, stored: StoredInvoice, name: str, reason: str, now: datetime, actor: str
) -> Correction:
    if stored.state is not InvoiceState.UNCOLLECTIBLE:
        tried = connection.begin_nested()
        cancel(connection, stored, reason=reason, now=now, actor=actor, tell=False)
        tried.rollback()
    made = correction_store.add(connection, stored.invoice.invoice_id, CorrectionKind.VOID, reason=reason, actor=actor)
    audit_correction(connection, actor, made, name)
    return made


@retrying
def credit_invoice(
    engine: Engine,
    reference: str,
    amounts: Mapping[str, Decimal] | None,
    *,
    reason: str,
    now: datetime,
    actor: str,
    refund_from: Stripe | None = None,
    dry_run: bool = False,
) -> StoredInvoice:
    """Issue a credit note against an invoice: over amounts by tax group, in major units before tax that comes on top;
    or (None) over all that is left of it, which is then billed anew.

    What was paid already is kept as unapplied cash, or goes back to the payer from `refund_from`. The same amounts for
    the same reason are one credit note. Raises CorrectionRefused.
    """
    check_amounts(*(amounts or {}).values())
    content: dict[str, Any] = {}
    if refund_from is not None:
        content["parts"] = _planned(engine, reference, amounts, reason, now, refund_from)
    with transaction(engine, dry_run=dry_run) as connection:
        note = begin_note(connection, reference, amounts, reason=reason, now=now, actor=actor, content=content)
        detail = {"note": note.number, "reason": reason, **content}
        audit.record(raw(connection), actor, "invoice.credit_note", reference, detail)
        return note


def begin_note(
    connection: Connection,
    reference: str,
    amounts: Mapping[str, Decimal] | None,
    *,
    reason: str,
    now: datetime,
    actor: str,
    content: Mapping[str, Any],
) -> StoredInvoice:
    """As `credit_invoice`, in the caller's transaction, without its line in the audit log.

    One that Stripe has already (`content`) is issued also while what ends the invoice is under way, which may wait for
    it, and after it was written off: Stripe takes none after that, so that the note had lowered what was.
    """
    is_there = MADE_IN_STRIPE in content
    states = (*CREDITABLE, InvoiceState.UNCOLLECTIBLE) if is_there else CREDITABLE
    stored = correctable(connection, reference, states, ending=is_there)
    if amounts is None:
        return cancel(connection, stored, reason=reason, now=now, actor=actor, tell=True, content=content)
    of = stored.invoice
    rated_line_store.lock_period(connection, of.identity.period)
    account = of.identity.billing_account
    said = repr([sorted((group, plain(amount)) for group, amount in amounts.items()), reason])
    grant = Grant(
        grant_id=note_grant_id(of.invoice_id, hashlib.sha256(said.encode()).hexdigest()[:10]),
        kind=GrantKind.GOODWILL,
        amount=total(amounts.values()),
        currency=of.identity.currency,
        effective=now,
        granted_at=now,
        tax_treatment=TaxTreatment.PRICE_REDUCTION,
    )
    if credit_store.states(connection, grant_ids=[grant.grant_id]):
        raise CorrectionRefused(
            "a credit note over this amount for this reason is there: say another reason for another"
        )
    known = credit_store.states(connection, accounts=[account])
    documents = [
        s.invoice for s in invoice_store.listed(connection, billing_account=account) if s.frozen_at is not None
    ]
    billed = billed_period(documents, of.identity.period, {s.grant.grant_id: s.grant for s in known})
    if of.identity.kind is not InvoiceKind.USAGE or billed is None:
        raise CorrectionRefused(f"an invoice of kind {of.identity.kind} is not credited by an amount")
    missing = amounts.keys() - billed.remaining.groups.keys()
    if missing:
        raise CorrectionRefused(f"no line is of tax group {', '.join(sorted(missing))}")
    tax = tax_store.in_force(connection, [account], of.identity.period.end - INSTANT)[account]
    rounding = account_store.accounts(connection, [account])[account].rounding
    credit_store.add(connection, GivenCredit(grant, account, reason, None), actor)
    credits = AccountCredits(
        [grant, *(s.grant for s in known)],
        {grant.grant_id: grant.amount, **{s.grant.grant_id: s.drawable for s in known}},
    )
    note = goodwill_note(
        billed, grant, dict(amounts), revision=invoice_store.notes_of(connection, account, of.identity.period),
        payer=Payer(of.identity.money, tax, rounding), credits=credits,
    )  # fmt: skip
    return issue_note(connection, note, now=now, actor=actor, reason=reason, content=content)


def _planned(
    engine: Engine,
    reference: str,
    amounts: Mapping[str, Decimal] | None,
    reason: str,
    now: datetime,
    stripe: Stripe,
) -> list[tuple[str, int]]:
    """From which payments a credit note's part that was paid goes back; as of what Stripe has now."""
    with transaction(engine, dry_run=True) as connection:
        note = begin_note(connection, reference, amounts, reason=reason, now=now, actor="plan", content={}).invoice
        stripe_id = correctable(connection, reference, CREDITABLE).stripe_invoice_id or ""
    gateway = followed(engine, stripe, note.identity.legal_entity, dry_run=True)
    theirs, _ = gateway.invoice(stripe_id)
    beyond = max(0, credited(note) - theirs.amount_remaining)
    return from_payments(returns.payments(gateway, stripe_id) if beyond else [], beyond, note.identity.money)


def from_payments(payments: Sequence[Payment], amount: int, money: Currency) -> list[tuple[str, int]]:
    """From which payments an amount (Stripe's integer) goes back. Raises CorrectionRefused where they do not do."""
    left = [(payment.intent, payment.left) for payment in payments]
    found = parts(amount, left)
    if found is None:
        have = plain(major(sum(part for _, part in left), money))
        raise CorrectionRefused(f"{have} {money.code} of its payments can be given back, not more")
    return found


def reissue(engine: Engine, stored: StoredInvoice, *, now: datetime, actor: str) -> list[Invoice]:
    """Draw up at once what was taken back of an invoice, as adjustment invoices of its periods."""
    drafted = draft_invoices(
        engine, period=stored.invoice.identity.period, now=now, actor=actor,
        billing_accounts=[stored.invoice.identity.billing_account], at_once=True,
    )  # fmt: skip
    if drafted.blocked:
        raise CorrectionRefused("; ".join(reason for _, reason in drafted.blocked))
    return list(drafted.changed)


def find_invoice(engine: Engine, reference: str) -> StoredInvoice:
    """An invoice as it is now. Raises UnknownInvoice."""
    with transaction(engine) as connection:
        return invoice_store.find(connection, reference)


def check_amounts(*amounts: Decimal) -> None:
    """Raises CorrectionRefused for an amount that is nothing, or less."""
    for amount in amounts:
        if amount <= 0:
            raise CorrectionRefused(f"{plain(amount)} is no amount: say more than 0")


def correctable(
    connection: Connection, reference: str, states: tuple[InvoiceState, ...], *, ending: bool = False
) -> StoredInvoice:
    """An invoice that Stripe has, in one of these states, and nothing is under way that ends it, unless it may be
    `ending`.

    Raises CorrectionRefused, UnknownInvoice.
    """
    stored = invoice_store.find(connection, reference)
    if stored.state not in states or stored.stripe_invoice_id is None:
        raise CorrectionRefused(f"{reference} is {stored.state}: it must be {' or '.join(states)}, and in Stripe")
    other = correction_store.open_end(connection, stored.invoice.invoice_id)
    if other is not None and not ending:
        raise CorrectionRefused(f"{other.kind} of {reference} is under way: `tollbook stripe sync` goes on with it")
    return stored


def audit_correction(connection: Connection, actor: str, made: Correction, name: str) -> None:
    """Tell the audit log of a correction that somebody decided on."""
    detail = {"correction": made.correction_no, "invoice": name, "reason": made.reason, **made.content}
    audit.record(raw(connection), actor, f"invoice.{made.kind}", str(made.invoice_id), detail)
