"""Draw up the invoices for fees in advance whose time has begun, and issue the credit notes over what came to less.

Drafts follow what is due until they are frozen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, Engine

from billing.bills.documents import Payer
from billing.bills.payment_credits import fees_to_cover
from billing.database import raw, retrying, transaction
from billing.errors import AmountTooLarge, CorrectionRefused, CreditRefused, UnknownTaxGroup
from billing.invoicing import credit_store, invoice_parts, invoice_store, tax_store
from billing.invoicing.advance_fees import ByShare, Service, by_share, changed_tenants, differ, fees_due
from billing.invoicing.invoice_rows import StoredInvoice, altered_by_account
from billing.invoicing.invoice_states import ISSUED
from billing.invoicing.invoiced_fees import InvoicedFees
from billing.invoicing.invoices import NO_CREDITS, AccountCredits, Invoice, InvoiceIdentity, InvoiceKind, draw_up
from billing.money import ZERO, currency, exactly, plain, total
from billing.plans import account_store, plan_store
from billing.posting.note_issuing import issue_note
from billing.rating import RatedLine, difference
from billing.rating.period import AMOUNT_MAX
from streams import audit


@dataclass(frozen=True, slots=True)
class AdvanceBilled:
    """What is due in advance: `drafts` are to be sent, one per account; `notes` are credit notes over what came to
    less, issued by this run; `blocked` (account, reason) has no document."""

    drafts: tuple[Invoice, ...]
    blocked: tuple[tuple[str, str], ...]
    notes: tuple[StoredInvoice, ...] = ()


@dataclass(slots=True)
class StillDue:
    """Fees due at a moment that are on no frozen document, by tenant and tax group: `more` to be invoiced, `less` to be
    credited, `nothing` what nets to nothing and has no document; `adjusted` the tenants of whom it is the difference to
    what is invoiced; `problems` is what cannot be billed, in words."""

    more: ByShare = field(default_factory=dict)
    less: ByShare = field(default_factory=dict)
    nothing: ByShare = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    adjusted: list[str] = field(default_factory=list)


@retrying
def bill_in_advance(
    engine: Engine | Connection,
    *,
    until: datetime,
    now: datetime,
    actor: str,
    dry_run: bool = False,
    billing_accounts: Collection[str] | None = None,
    adjust: Collection[str] = (),
) -> AdvanceBilled:
    """Draw up each billing account's next invoice for fees in advance that become due until a moment.

    One at a time: what it leaves of credits, or below the minimum, is for the one after it. What is invoiced already
    stays, and periods of closed books are over. A tenant that comes to a frozen invoice's moment later gets a further
    revision. What comes to less than zero is a credit note against the invoice that the fees are on, issued here once
    that invoice is (docs/spec/money.md 13.10).

    `adjust`: tenants whose invoices say otherwise than is due by now, of whom the difference is billed: nothing else
    bills it, since it is no change that anybody made.
    """
    with transaction(engine, dry_run=dry_run) as connection:
        invoice_store.lock_kind(connection, InvoiceKind.ADVANCE)
        due = fees_due(connection, min(until, now), billing_accounts)
        stored: dict[Service, list[StoredInvoice]] = defaultdict(list)
        found = invoice_store.fees_until(connection, min(until, now), billing_accounts)
        for each in found:
            stored[each.invoice.identity.billing_account, each.invoice.identity.period].append(each)
        altered = altered_by_account(found)
        services = {service for service in due.keys() | stored.keys() if service[0] not in altered}
        run = _Run(connection, {account for account, _ in services}, now, actor, adjust)
        run.blocked += sorted(altered.items())
        for service in sorted(services, key=lambda service: (service[1], service[0])):
            run.bill(service, due.get(service, {}), stored.get(service, ()))
        return AdvanceBilled(tuple(run.drafts.values()), tuple(run.blocked), tuple(run.notes))


def still_due(
    service: Service, due: ByShare, stored: Sequence[StoredInvoice], adjust: Collection[str] = ()
) -> StillDue:
    """What of the fees due at a moment is on no frozen document yet. A tenant with one that says otherwise waits; of
    those in `adjust` it is the difference, once their documents are issued."""
    frozen = [each for each in stored if each.frozen_at is not None]
    billed = by_share(line.rated for each in frozen for line in each.invoice.lines)
    changed = {tenant for tenant, group in billed if differ(billed[tenant, group], due.get((tenant, group), []))}
    adjusted = {tenant for tenant in changed if tenant in adjust and all(each.state in ISSUED for each in frozen)}
    found = StillDue(
        problems=[_otherwise(service, tenant, due, billed) for tenant in sorted(changed - adjusted)],
        adjusted=sorted(adjusted),
    )
    for share in sorted(due.keys() | billed.keys()):
        if share[0] in adjusted:
            lines = list(difference(due.get(share, ()), billed.get(share, ())))
        elif share[0] in changed or share in billed:
            continue
        else:
            lines = due[share]
        if not lines:
            continue
        comes_to = total(line.amount for line in lines)
        of = found.more if comes_to > 0 else found.less if comes_to < 0 else found.nothing
        of[share] = lines
    return found


def _otherwise(service: Service, tenant: str, due: ByShare, billed: ByShare) -> str:
    """That a tenant's invoices say otherwise than is due: by which lines, and what a person can do."""
    ours, theirs = ([line for share, listed in of.items() if share[0] == tenant for line in listed]
                    for of in (due, billed))  # fmt: skip
    lines = difference(ours, theirs)
    told = ", ".join(f"{line.identity.charge_key} ({line.identity.kind}) {plain(line.amount)}" for line in lines)
    return (
        f"tenant {tenant}: {_told(service)} are invoiced otherwise than they are due by now: {told}"
        f" {lines[0].currency}; `tollbook invoice advance --adjust {tenant}` bills that difference"
    )


def _told(service: Service) -> str:
    return f"fees in advance from {service[1].start:%Y-%m-%d %H:%M} to {service[1].end:%Y-%m-%d}"


class _Run:
    """Goes from moment to moment. What all accounts need is read once; an account with a draft waits for it."""

    def __init__(
        self, connection: Connection, accounts: Collection[str], now: datetime, actor: str, adjust: Collection[str]
    ) -> None:
        self._connection = connection
        self._adjust = adjust
        self._accounts = account_store.accounts(connection, accounts)
        self._plan_versions = {name: len(plan.versions) for name, plan in plan_store.plans(connection).items()}
        self._invoiced: dict[tuple[str, datetime], InvoicedFees] = defaultdict(InvoicedFees)
        self._now = now
        self._actor = actor
        self.drafts: dict[str, Invoice] = {}
        self.notes: list[StoredInvoice] = []
        self.blocked: list[tuple[str, str]] = []

    def bill(self, service: Service, due: ByShare, stored: Sequence[StoredInvoice]) -> None:
        """What becomes due at a moment for an account, and what is stored of it."""
        account, period = service
        wanted = still_due(service, due, stored, self._adjust)
        self.blocked += [(account, problem) for problem in wanted.problems]
        invoiced = self._invoiced[account, period.end]
        for each in stored:
            if each.state in ISSUED:
                invoiced.take_in(each.invoice)
            elif each.frozen_at is not None:
                self.drafts.setdefault(account, each.invoice)
        if account in self.drafts:
            return
        for tenant_id in wanted.adjusted:
            detail = {"billing_account": account, "fees": _told(service)}
            audit.record(raw(self._connection), self._actor, "invoice.advance.adjust", tenant_id, detail)
        try:
            for share, lines in wanted.nothing.items():
                invoiced.go_on(period, share, lines, self._payer(service, invoiced.invoices.get(share)))
            if wanted.less:
                self._take_back(service, invoiced, wanted.less)
            is_drawn_up = any(each.frozen_at is None for each in stored)
            if wanted.more or is_drawn_up:
                invoices = [each for each in stored if each.invoice.identity.kind is InvoiceKind.ADVANCE]
                revision = len(invoices) - is_drawn_up
                invoice = self._draw_up(service, revision, wanted.more)
                invoice_store.save_draft(self._connection, invoice, self._now, self._actor)
                self.drafts[account] = invoice
        except (AmountTooLarge, CorrectionRefused, CreditRefused, UnknownTaxGroup) as error:
            self.blocked.append((account, str(error)))

    def _take_back(self, service: Service, invoiced: InvoicedFees, less: ByShare) -> None:
        """Credit notes over what comes to less. Raises CreditRefused, UnknownTaxGroup."""
        account, period = service
        states = credit_store.states(self._connection, accounts=[account])
        left = {state.grant.grant_id: state.drawable for state in states}
        revision = invoice_store.notes_of(self._connection, account, period)
        by_invoice = invoiced.by_invoice(less)
        for tenant_id in sorted({tenant_id for tenant_id, _ in less.keys() - invoiced.invoices.keys()}):
            self.blocked.append(
                (account, f"tenant {tenant_id}: {_told(service)} come to less, and nothing was invoiced of them")
            )
        for number, (original, lines) in enumerate(by_invoice):
            note = invoiced.credit_note(
                original,
                period,
                lines,
                revision=revision + number,
                payer=self._payer(service, original),
                plan_versions=self._plan_versions,
                credits=AccountCredits([state.grant for state in states], left),
            )
            if changed := changed_tenants(self._connection, note):
                self.blocked.append((account, f"the fees in advance of tenant {changed[0]} have changed: run it again"))
                continue
            self.notes.append(issue_note(self._connection, note, now=self._now, actor=self._actor))
            invoiced.take_in(note)

    def _payer(self, service: Service, original: Invoice | None) -> Payer:
        """The account at the tax point of the invoice that its fees are on."""
        account, period = self._accounts[service[0]], service[1]
        at = original.identity.period.start if original is not None else period.start
        tax = tax_store.in_force(self._connection, [service[0]], at)[service[0]]
        return Payer(currency(account.currency, period.end.date()), tax, account.rounding)

    def _draw_up(self, service: Service, revision: int, wanted: ByShare) -> Invoice:
        """The invoice by now. Its tax point is when its time begins. Raises AmountTooLarge, UnknownTaxGroup."""
        name, period = service
        account = self._accounts[name]
        identity = InvoiceIdentity(account.legal_entity, name, InvoiceKind.ADVANCE, period, account.currency, revision)
        lines = [line for share in sorted(wanted) for line in wanted[share]]
        if (amount := total(abs(line.amount) for line in lines)) > AMOUNT_MAX:
            raise AmountTooLarge(
                f"{_told(service)} come to {plain(amount)} {account.currency}, more than {plain(AMOUNT_MAX)}: look at"
                f" the fees of plans {', '.join(sorted({line.identity.plan for line in lines}))}"
            )
        return draw_up(
            identity,
            lines,
            plan_versions=self._plan_versions,
            rounding=account.rounding,
            tax=tax_store.in_force(self._connection, [name], period.start)[name],
            credits=self._credits(identity, lines),
            carried=invoice_parts.carried_to_next(self._connection, [name], [identity.invoice_id]).get(name, ()),
        )

    def _credits(self, identity: InvoiceIdentity, lines: Sequence[RatedLine]) -> AccountCredits:
        """What credits can give: those that lower prices and cover fees (docs/decisions/0051), those that pay."""
        states = credit_store.states(self._connection, accounts=[identity.billing_account])
        if not states or not lines:
            return NO_CREDITS
        ids = [state.grant.grant_id for state in states]
        reserved = credit_store.reserved(self._connection, ids, before=identity.period.start, but=identity.invoice_id)
        with exactly():
            left = {s.grant.grant_id: s.drawable - reserved.get(s.grant.grant_id, ZERO) for s in states}
        grants = [state.grant for state in states if left[state.grant.grant_id] > 0]
        like = min(lines, key=lambda line: line.identity)
        return AccountCredits(grants, left, fees_to_cover(lines), like) if grants else NO_CREDITS
