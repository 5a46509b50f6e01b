"""Issue credit notes: what was billed of a period and is rated at less by now is taken back (docs/spec/money.md 7).

One transaction, under the locks of the periods: numbers, entries and what credits get back happen together or not at
all. Running it again issues nothing. Credit notes stay here; sending them to Stripe is not built yet.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, Engine

from billing.bills.credit_notes import credit_note
from billing.bills.documents import Payer
from billing.bills.late_usage import changed_key
from billing.bills.payment_credits import given_back
from billing.database import transaction
from billing.errors import CreditRefused, UnknownTaxGroup
from billing.invoicing import adjustment_store, invoices, rated_line_store
from billing.invoicing.adjustment_store import by_group
from billing.invoicing.credit_store import CreditState
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoices import AccountCredits, Invoice, InvoiceIdentity, InvoiceKind
from billing.invoicing.late_drawing import LatePeriod, LateUsage, parked_accounts
from billing.money import currency
from billing.plans import account_store
from billing.plans.account_store import BillingAccount
from billing.posting.note_issuing import issue_note
from streams.errors import EventsArchived


@dataclass(frozen=True, slots=True)
class CreditNotesIssued:
    """What was taken back. `blocked` (account, reason): whose documents cannot be made as it stands."""

    notes: tuple[StoredInvoice, ...]
    blocked: tuple[tuple[str, str], ...]


def issue_credit_notes(
    engine: Engine | Connection,
    *,
    up_to: datetime,
    now: datetime,
    actor: str,
    dry_run: bool = False,
    billing_accounts: Collection[str] | None = None,
) -> CreditNotesIssued:
    """Issue a credit note for each period that ends by `up_to` and tax groups of which less is owed than was billed.

    An account whose invoice is still on its way to Stripe waits until that is issued.
    """
    notes: list[StoredInvoice] = []
    blocked: dict[str, str] = {}
    with transaction(engine, dry_run=dry_run) as connection:
        periods = adjustment_store.rated_periods(connection, up_to)
        for period in periods:
            rated_line_store.lock_period(connection, period)
        late = LateUsage(connection, periods, billing_accounts)
        parked = parked_accounts(connection, up_to)
        accounts = account_store.accounts(connection, late.accounts)
        for name in late.accounts:
            if name in parked:
                blocked[name] = parked[name]
                continue
            try:
                notes.extend(
                    _issue(connection, accounts[name], each, now, actor)
                    for each in late.of(name)
                    if each.change.less and each.issued
                )
            except (CreditRefused, UnknownTaxGroup, EventsArchived) as error:
                blocked[name] = str(error)
    return CreditNotesIssued(tuple(notes), tuple(sorted(blocked.items())))


def _issue(
    connection: Connection, account: BillingAccount, late: LatePeriod, now: datetime, actor: str
) -> StoredInvoice:
    note = credit_note_for(late, account)
    coverables = {}
    if late.then is not None:
        groups = {line.tax_group for line in late.change.less.values()}
        coverables = {late.period: by_group(groups, late.then)}
    return issue_note(connection, note, now=now, actor=actor, coverables=coverables)


def credit_note_for(late: LatePeriod, account: BillingAccount) -> Invoice:
    """The credit note over what is owed less of a billed period: rounded against its invoice's lines (13.17)."""
    of, tax = late.billed.invoice.identity, late.waiting.tax
    payer = Payer(currency(of.currency, of.period.end.date()), tax, account.rounding)
    against = {key: changed_key(key) for key in late.change.less}
    lines = {key: replace(line, reason=invoices.INVOICED) for key, line in late.change.less.items()}
    document, _ = credit_note(of.period, lines, against, late.billed.remaining, payer)
    document = replace(document, paid=given_back(late.billed.paid, -document.total_minor))
    identity = InvoiceIdentity(
        of.legal_entity, of.billing_account, InvoiceKind.CREDIT_NOTE, of.period, of.currency, late.notes
    )
    return invoices.credit_note(
        identity, late.billed.invoice.invoice_id, document, tax=tax, credits=_credits(late.grants)
    )


def _credits(states: Sequence[CreditState]) -> AccountCredits:
    left: dict[str, Decimal] = {state.grant.grant_id: state.drawable for state in states}
    return AccountCredits([state.grant for state in states], left)
