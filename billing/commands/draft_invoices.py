"""Draw up a period's invoices from what is rated. Drafts follow the rating until they are frozen for sending."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection, Engine

from billing.bills.credit_application import price_reductions
from billing.bills.credits import reduces_price
from billing.bills.documents import GRACE
from billing.bills.tax import NO_TAX, TaxRules
from billing.commands.digest_usage import digest_usage
from billing.database import retrying, transaction
from billing.errors import CreditRefused, InvoiceAltered, PeriodNotEnded, UnknownTaxGroup
from billing.invoicing import (
    adjustment_store,
    billed_until_store,
    credit_store,
    invoice_parts,
    invoice_store,
    rated_line_store,
    tax_store,
)
from billing.invoicing.adjustment_store import by_group
from billing.invoicing.credit_store import CreditState
from billing.invoicing.invoice_rows import StoredInvoice, altered_by_account
from billing.invoicing.invoices import NO_CREDITS, AccountCredits, Invoice, InvoiceIdentity, InvoiceKind, draw_up
from billing.invoicing.late_drawing import LatePeriod, LateUsage, parked_accounts
from billing.money import ZERO, exactly, plain
from billing.periods import INSTANT, BillingPeriod
from billing.plans import account_store, plan_store
from billing.plans.schedules import schedule_of
from billing.plans.subscriptions import Subscription, payers_in
from billing.rating import RatedLine
from billing.rating.period import Coverable
from billing.usage.coverable_usage import CoverableUsage
from streams.errors import EventsArchived

SYSTEM: Final = "tollbook"
"""Who drafts: nobody decides anything in it."""


@dataclass(frozen=True, slots=True)
class InvoicesDrafted:
    """What the accounts of a period came to.

    `changed` were made or brought up to date, `unchanged` were there, `frozen` are final already and no longer
    touched, `blocked` (account, reason) cannot be drawn up, `not_rated` are tenants that nobody has rated yet.
    """

    period: BillingPeriod
    changed: tuple[Invoice, ...]
    unchanged: tuple[Invoice, ...]
    frozen: tuple[Invoice, ...]
    blocked: tuple[tuple[str, str], ...]
    not_rated: tuple[str, ...]


@retrying
def draft_invoices(
    engine: Engine | Connection,
    *,
    period: BillingPeriod,
    now: datetime,
    actor: str = SYSTEM,
    dry_run: bool = False,
    billing_accounts: Collection[str] | None = None,
    at_once: bool = False,
) -> InvoicesDrafted:
    """Draw up one usage invoice per billing account (or those named) with rated lines in the period.

    It carries what came late to periods that are billed; an account that has no next invoice gets an adjustment invoice
    for each of them (docs/spec/money.md 7), and so does every account `at_once`. Doing it again changes nothing.
    Accounts without any usage get no document (10). Raises PeriodNotEnded while it runs.
    """
    if now < period.end:
        raise PeriodNotEnded(f"{period.name} ends {period.end:%Y-%m-%d %H:%M} UTC: invoices are drawn up after that")
    with transaction(engine, dry_run=dry_run) as connection:
        billed = adjustment_store.rated_periods(connection, period.end)
        for each in sorted({*billed, period}):
            rated_line_store.lock_period(connection, each)
        posted = _lines_by_account(connection, period)
        if billing_accounts is not None:
            posted = {name: lines for name, lines in posted.items() if name in billing_accounts}
        late = LateUsage(connection, billed, billing_accounts)
        drawn_before = invoice_store.listed(
            connection, period=period, kind=InvoiceKind.USAGE, billing_accounts=billing_accounts, as_stored=True
        )
        stored = {s.invoice.identity.billing_account: s for s in drawn_before}
        states = rated_line_store.tenant_periods(connection, period)
        payers = account_store.subscriptions_in(connection, period)
        blocked = {
            subscription.billing_account: f"tenant {tenant_id}: {state.problem}"
            for tenant_id, state in states.items()
            if state.problem is not None
            for subscription in payers.get(tenant_id, [])
        } | parked_accounts(connection, period.end)
        names = {*posted, *late.accounts, *(name for name, old in stored.items() if old.frozen_at is None)}
        adjustments = invoice_store.adjustment_drafts(connection, names)
        blocked |= altered_by_account([*drawn_before, *adjustments])
        drafts = [s.invoice for s in adjustments if s.invoice.identity.billing_account not in blocked]
        drawing = _Drawing(connection, period, names, posted, payers, late, drafts, at_once)
        changed, unchanged, frozen = [], [], []
        for name in sorted(names - blocked.keys()):
            old = stored.get(name)
            if old is not None and old.frozen_at is not None:
                frozen.append(old.invoice)
            try:
                drawn = drawing.documents(name, old)
            except (CreditRefused, InvoiceAltered, UnknownTaxGroup, EventsArchived) as error:
                blocked[name] = str(error)
                continue
            for invoice, coverables in drawn:
                if invoice_store.save_draft(connection, invoice, now, actor):
                    changed.append(invoice)
                else:
                    unchanged.append(invoice)
                adjustment_store.save_coverables(connection, invoice.invoice_id, coverables)
        usage = [invoice for invoice in (*changed, *unchanged) if invoice.identity.kind is InvoiceKind.USAGE]
        digest_usage(connection, period, usage)
    return InvoicesDrafted(
        period=period,
        changed=tuple(changed),
        unchanged=tuple(unchanged),
        frozen=tuple(frozen),
        blocked=tuple(sorted(blocked.items())),
        not_rated=tuple(sorted(tenant_id for tenant_id in payers if tenant_id not in states)),
    )


def _lines_by_account(connection: Connection, period: BillingPeriod) -> dict[str, dict[str, list[RatedLine]]]:
    found: dict[str, dict[str, list[RatedLine]]] = {}
    for tenant_id, lines in rated_line_store.posted(connection, period).items():
        for line in lines:
            found.setdefault(line.billing_account, {}).setdefault(tenant_id, []).append(line)
    return found


Coverables = Mapping[BillingPeriod, Mapping[str, Sequence[Coverable]]]
"""What credits can still cover by original period and tax group, once a document is frozen."""


class _Drawing:
    """Draws up the invoices of a period: what all accounts need is read once."""

    def __init__(
        self,
        connection: Connection,
        period: BillingPeriod,
        names: Collection[str],
        posted: Mapping[str, Mapping[str, Sequence[RatedLine]]],
        subscribed: Mapping[str, Sequence[Subscription]],
        late: LateUsage,
        drafts: Sequence[Invoice],
        at_once: bool,
    ) -> None:
        self._at_once = at_once
        self._connection = connection
        self._period = period
        self._posted = posted
        self._late = late
        self._accounts = account_store.accounts(connection, names)
        plans = plan_store.plans(connection)
        self._plan_versions = {name: len(plan.versions) for name, plan in plans.items()}
        self._tax = tax_store.in_force(connection, names, period.end - INSTANT)
        self._drafts = drafts
        ids = [self.identity(name).invoice_id for name in names] + [draft.invoice_id for draft in self._drafts]
        self._carried = invoice_parts.carried_to_next(connection, names, ids)
        self._usage = CoverableUsage(connection, period, subscribed, plans)
        self._here = payers_in(subscribed, period)
        self._closed = {of for of, _ in billed_until_store.closed_without_invoice(connection, [period], names)}
        self._next: set[str] = set()
        self._running: set[str] = set()
        for each in account_store.subscriptions(connection):
            after = schedule_of(each).period_of(period.end)
            payers = payers_in({each.tenant_id: [each]}, after)
            self._next |= payers
            if after.start < period.end:
                self._running |= payers
        self._credits: dict[str, list[CreditState]] = defaultdict(list)
        for state in credit_store.states(connection, accounts=names):
            self._credits[state.given.billing_account].append(state)
        held = [state.grant.grant_id for listed in self._credits.values() for state in listed]
        self._reserved = credit_store.reserved(connection, held, before=period.end + GRACE) if held else {}

    def identity(self, name: str) -> InvoiceIdentity:
        """The usage invoice of an account."""
        account = self._accounts[name]
        return InvoiceIdentity(account.legal_entity, name, InvoiceKind.USAGE, self._period, account.currency)

    def documents(self, name: str, old: StoredInvoice | None) -> list[tuple[Invoice, Coverables]]:
        """An account's drafts as they are by now, beside its usage invoice of the period that is stored already.

        Raises CreditRefused, UnknownTaxGroup, EventsArchived.
        """
        billed = (old is not None and old.frozen_at is not None) or name in self._closed
        late: list[LatePeriod] = []
        if name in self._late.accounts:
            found = self._late.of(name, before=self._period.end + GRACE)
            late = [each for each in found if each.change.more]
        found_here: list[tuple[Invoice, Coverables]] = []
        carried = []
        if billed and name in self._next and not self._at_once:
            # It waits for the next invoice, but for what somebody has drawn up at once
            drawn = {d.identity.period for d in self._drafts if d.identity.billing_account == name and d.lines}
            carried = [each for each in late if each.period not in drawn]
        elif not billed and name in self._running and not (name in self._posted or name in self._here):
            carried = late  # of another billing period, which goes on
        elif not billed:
            if name in self._posted or name in self._here:
                carried = [each for each in late if each.waiting.fits(self._tax[name])]
            if name in self._posted or carried or old is not None:
                found_here.append(self._usage_invoice(name, carried))
        alone = [each for each in late if each not in carried]
        found_here += [self._adjustment(name, each) for each in alone]
        made = {invoice.invoice_id for invoice, _ in found_here}
        unneeded = [d for d in self._drafts if d.identity.billing_account == name and d.invoice_id not in made]
        return [*found_here, *((self._invoice(draft.identity, [], NO_CREDITS, NO_TAX), {}) for draft in unneeded)]

    def _usage_invoice(self, name: str, late: Sequence[LatePeriod]) -> tuple[Invoice, Coverables]:
        posted = self._posted.get(name, {})
        credits = self._credits_of(name, posted, late)
        invoice = self._invoice(
            self.identity(name), late, credits, self._tax[name], [line for each in posted.values() for line in each]
        )
        coverables = _coverables(late)
        if any(not reduces_price(grant) for grant in credits.grants):
            open_ = price_reductions(credits.coverable, credits.grants, credits.left, credits.like).open
            groups = {line.tax_group for line in invoice.lines if line.original_period is None}
            coverables[self._period] = by_group(groups, open_)
        return invoice, coverables

    def _adjustment(self, name: str, late: LatePeriod) -> tuple[Invoice, Coverables]:
        identity = replace(
            self.identity(name), kind=InvoiceKind.ADJUSTMENT, period=late.period, revision=late.adjustments
        )
        credits = self._credits_of(name, {}, [late])
        return self._invoice(identity, [late], credits, late.waiting.tax), _coverables([late])

    def _invoice(
        self,
        identity: InvoiceIdentity,
        late: Sequence[LatePeriod],
        credits: AccountCredits,
        tax: TaxRules,
        posted: Sequence[RatedLine] = (),
    ) -> Invoice:
        """Raises CreditRefused where it draws what is not there yet: nobody else's drafts wait for that."""
        name = identity.billing_account
        drawn = draw_up(
            identity,
            posted,
            plan_versions=self._plan_versions,
            rounding=self._accounts[name].rounding,
            tax=tax,
            credits=credits,
            carried=self._carried.pop(name, ()) if posted or late else (),
            late=[each.waiting for each in late],
        )
        for credit in drawn.credits:
            if credit.left < 0:
                raise CreditRefused(
                    f"it draws {plain(credit.amount)} of credit {credit.grant_id}, which a document that is not issued"
                    " yet gives back: drawn up after that"
                )
        return drawn

    def _credits_of(
        self, name: str, posted: Mapping[str, Sequence[RatedLine]], late: Sequence[LatePeriod]
    ) -> AccountCredits:
        """What grants can give, to the usage of the period after what came late to earlier ones."""
        carried: dict[str, Decimal] = defaultdict(lambda: ZERO)
        left: dict[str, Decimal] = {}
        states = self._credits.get(name, ())
        with exactly():
            for each in late:
                for grant_id, amount in each.waiting.drawn.items():
                    carried[grant_id] += amount
            for state in states:
                grant_id = state.grant.grant_id
                left[grant_id] = state.drawable - self._reserved.get(grant_id, ZERO) - carried[grant_id]
        given = [s.grant for s in states if s.grant.effective < self._period.end and left[s.grant.grant_id] > 0]
        coverable, like = self._usage.of(name, posted, given) if given and posted else ([], None)
        known = given + [s.grant for s in states if s.grant not in given and s.grant.grant_id in carried]
        return AccountCredits(known, left, coverable, like, carried) if known else NO_CREDITS


def _coverables(late: Sequence[LatePeriod]) -> dict[BillingPeriod, dict[str, list[Coverable]]]:
    return {
        each.period: by_group({line.tax_group for line in each.change.more.values()}, each.then)
        for each in late
        if each.then is not None
    }
