"""Issue credit notes: what was billed of a period and is rated at less by now is taken back (docs/spec/money.md 7).

One transaction, under the locks of the periods: numbers, entries and what credits get back happen together or not at
all. Running it again issues nothing. Stripe is told by `send_corrections`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, Engine

from billing.bills.credit_notes import credit_note
from billing.bills.documents import Payer
from billing.bills.late_usage import changed_key
from billing.bills.payment_credits import given_back
from billing.database import retrying, transaction
from billing.errors import CorrectionRefused, CreditRefused, InvoiceAltered, UnknownTaxGroup
from billing.invoicing import adjustment_store, invoice_store, invoices, rated_line_store
from billing.invoicing.adjustment_store import by_group
from billing.invoicing.billed_documents import Bearer, billed_on
from billing.invoicing.correcting import credited
from billing.invoicing.credit_room import credit_room
from billing.invoicing.credit_store import CreditState
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import ISSUED
from billing.invoicing.invoices import AccountCredits, Invoice, InvoiceIdentity, InvoiceKind
from billing.invoicing.late_drawing import LatePeriod, LateUsage, parked_accounts
from billing.money import currency
from billing.periods import BillingPeriod
from billing.plans import account_store
from billing.plans.account_store import BillingAccount
from billing.posting.note_issuing import issue_note
from billing.rating import RatedLine
from streams.errors import EventsArchived


@dataclass(frozen=True, slots=True)
class CreditNotesIssued:
    """What was taken back. `blocked` (account, reason): whose documents cannot be made as it stands."""

    notes: tuple[StoredInvoice, ...]
    blocked: tuple[tuple[str, str], ...]


@retrying
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
            issuing = _Issuing(connection, accounts[name], now, actor)
            try:
                for period in [each.period for each in late.of(name) if issuing.take_back(each)]:
                    issuing.rest_of(period)
            except (CorrectionRefused, CreditRefused, InvoiceAltered, UnknownTaxGroup, EventsArchived) as error:
                blocked[name] = str(error)
            notes += issuing.notes
    return CreditNotesIssued(tuple(notes), tuple(sorted(blocked.items())))


class _Issuing:
    """Issues an account's credit notes, each against a document that has billed what it takes back and has room.

    That is the period's own invoice where it can be; else one that carried of the period (an adjustment invoice, a
    later one); and where none has billed so much, several: as much of each line as was billed on each.
    """

    def __init__(self, connection: Connection, account: BillingAccount, now: datetime, actor: str) -> None:
        self._connection = connection
        self._account = account
        self._now = now
        self._actor = actor
        self.notes: list[StoredInvoice] = []

    def take_back(self, late: LatePeriod) -> bool:
        """Issue the credit note of a period that is owed less; whether it is a part, and more is to be taken back.

        Raises CorrectionRefused where no document has room for it.
        """
        if not (late.change.less and late.issued):
            return False
        bearers = [
            (each, invoice_store.load(self._connection, each.invoice.invoice_id)) for each in late.billed.bearers
        ]
        issued = [(each, stored) for each, stored in bearers if stored.state in ISSUED]
        for whole in (True, False):
            for bearer, stored in issued:
                lines = late.change.less if whole else billed_on(bearer, late.change.less)
                if not lines:
                    continue
                note = credit_note_for(late, self._account, bearer, lines)
                if self._fits(note, bearer, stored, late):
                    self._issue(note, late)
                    return not whole
        if len(issued) < len(bearers):
            return False
        raise CorrectionRefused(
            f"{late.period.name} comes to less than was billed, and none of its invoices has so much left to credit:"
            " they are void, credited or given back"
        )

    def rest_of(self, period: BillingPeriod) -> None:
        """Issue what is still to be taken back of a period, worked out anew after each document."""
        name, more = self._account.billing_account, True
        while more:
            more = any(self.take_back(each) for each in LateUsage(self._connection, [period], [name]).of(name))

    def _fits(self, note: Invoice, bearer: Bearer, stored: StoredInvoice, late: LatePeriod) -> bool:
        """Whether a document has so much left, and of the period where it is another one's."""
        if bearer.invoice.identity.period != late.period or bearer.invoice.identity.kind is not InvoiceKind.USAGE:
            taken = -sum(line.amount_minor for line in note.lines)
            if taken > sum(minor for _, minor in bearer.remaining.lines.values()):
                return False
        return credited(note) <= credit_room(self._connection, stored)

    def _issue(self, note: Invoice, late: LatePeriod) -> None:
        coverables = {}
        if late.then is not None:
            groups = {line.tax_group for line in late.change.less.values()}
            coverables = {late.period: by_group(groups, late.then)}
        self.notes.append(issue_note(self._connection, note, now=self._now, actor=self._actor, coverables=coverables))


def credit_note_for(
    late: LatePeriod, account: BillingAccount, bearer: Bearer, less: Mapping[str, RatedLine]
) -> Invoice:
    """The credit note over what is owed less of a billed period: rounded against a document's lines of it (13.17)."""
    of, tax = late.billed.invoice.identity, late.waiting.tax
    names = {group: bearer.groups.get(group, group) for group in {line.tax_group for line in less.values()}}
    tax = replace(tax, rates={**tax.rates, **{names[g]: tax.rates[g] for g in names if g in tax.rates}})
    payer = Payer(currency(of.currency, of.period.end.date()), tax, account.rounding)
    against = {key: changed_key(key) for key in less}
    lines = {
        key: replace(line, reason=invoices.INVOICED, tax_group=names[line.tax_group]) for key, line in less.items()
    }
    document, _ = credit_note(of.period, lines, against, bearer.remaining, payer)
    document = replace(document, paid=given_back(bearer.paid, -document.total_minor))
    identity = InvoiceIdentity(
        of.legal_entity, of.billing_account, InvoiceKind.CREDIT_NOTE, of.period, of.currency, late.notes
    )
    return invoices.credit_note(identity, bearer.invoice.invoice_id, document, tax=tax, credits=_credits(late.grants))


def _credits(states: Sequence[CreditState]) -> AccountCredits:
    left: dict[str, Decimal] = {state.grant.grant_id: state.drawable for state in states}
    return AccountCredits([state.grant for state in states], left)
