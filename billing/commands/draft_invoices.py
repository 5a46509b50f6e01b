"""Draw up a period's invoices from what is rated. Drafts follow the rating until they are frozen for sending."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine

from billing import (
    account_store,
    credit_store,
    invoice_parts,
    invoice_store,
    plan_store,
    rated_line_store,
    tax_store,
)
from billing.commands.digest_usage import digest_usage
from billing.coverable_usage import CoverableUsage
from billing.credit_store import CreditState
from billing.database import transaction
from billing.errors import CreditRefused, PeriodNotEnded, UnknownTaxGroup
from billing.invoices import NO_CREDITS, AccountCredits, Invoice, InvoiceIdentity, InvoiceKind, draw_up
from billing.money import ZERO, exactly
from billing.periods import BillingPeriod
from billing.rating import RatedLine
from billing.subscriptions import Subscription
from streams.errors import EventsArchived

SYSTEM: Final = "tollbook"
"""Who drafts: nobody decides anything in it."""
INSTANT: Final = timedelta(microseconds=1)
"""The tax point of an invoice is the last instant of its service period."""


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

    @property
    def ok(self) -> bool:
        """Whether every account with usage has its draft."""
        return not (self.blocked or self.not_rated)


def draft_invoices(
    engine: Engine | Connection,
    *,
    period: BillingPeriod,
    now: datetime,
    actor: str = SYSTEM,
    dry_run: bool = False,
    billing_accounts: Collection[str] | None = None,
) -> InvoicesDrafted:
    """Draw up one usage invoice per billing account (or those named) with rated lines in the period.

    Doing it again changes nothing. Accounts without any usage get no document (docs/spec/money.md 10).
    Raises PeriodNotEnded while it runs.
    """
    if now < period.end:
        raise PeriodNotEnded(f"{period.name} ends {period.end:%Y-%m-%d %H:%M} UTC: invoices are drawn up after that")
    with transaction(engine, dry_run=dry_run) as connection:
        rated_line_store.lock_period(connection, period)
        posted = _lines_by_account(connection, period)
        if billing_accounts is not None:
            posted = {name: lines for name, lines in posted.items() if name in billing_accounts}
        stored = {s.invoice.invoice_id: s for s in invoice_store.listed(connection, period=period)}
        states = rated_line_store.tenant_periods(connection, period)
        payers = account_store.subscriptions_in(connection, period)
        blocked = {
            subscription.billing_account: f"tenant {tenant_id}: {state.problem}"
            for tenant_id, state in states.items()
            if state.problem is not None
            for subscription in payers.get(tenant_id, [])
        }
        drawing = _Drawing(connection, period, posted, payers)
        changed, unchanged, frozen = [], [], []
        for name in sorted(posted.keys() - blocked.keys()):
            old = stored.get(drawing.identity(name).invoice_id)
            if old is not None and old.frozen_at is not None:
                frozen.append(old.invoice)
                continue
            try:
                invoice = drawing.draw_up(name)
            except (CreditRefused, UnknownTaxGroup, EventsArchived) as error:
                blocked[name] = str(error)
                continue
            if invoice_store.save_draft(connection, invoice, now, actor):
                changed.append(invoice)
            else:
                unchanged.append(invoice)
        digest_usage(connection, period, [*changed, *unchanged])
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


class _Drawing:
    """Draws up the invoices of a period: what all accounts need is read once."""

    def __init__(
        self,
        connection: Connection,
        period: BillingPeriod,
        posted: Mapping[str, Mapping[str, Sequence[RatedLine]]],
        subscribed: Mapping[str, Sequence[Subscription]],
    ) -> None:
        self._period = period
        self._posted = posted
        self._accounts = account_store.accounts(connection, posted.keys())
        plans = {name: plan.versions for name, plan in plan_store.plans(connection).items()}
        self._plan_versions = {name: len(versions) for name, versions in plans.items()}
        self._tax = tax_store.in_force(connection, posted.keys(), period.end - INSTANT)
        ids = [self.identity(name).invoice_id for name in posted]
        self._carried = invoice_parts.carried_to_next(connection, posted.keys(), ids)
        self._usage = CoverableUsage(connection, period, subscribed, plans)
        self._credits: dict[str, list[CreditState]] = defaultdict(list)
        for state in credit_store.states(connection, accounts=posted.keys()):
            if state.grant.effective < period.end:
                self._credits[state.given.billing_account].append(state)
        held = [state.grant.grant_id for listed in self._credits.values() for state in listed]
        self._reserved = credit_store.reserved(connection, held, before=period.start) if held else {}

    def identity(self, name: str) -> InvoiceIdentity:
        """The usage invoice of an account."""
        account = self._accounts[name]
        return InvoiceIdentity(account.legal_entity, name, InvoiceKind.USAGE, self._period, account.currency)

    def draw_up(self, name: str) -> Invoice:
        """The invoice as it is by now. Raises CreditRefused, UnknownTaxGroup, EventsArchived."""
        return draw_up(
            self.identity(name),
            [line for lines in self._posted[name].values() for line in lines],
            plan_versions=self._plan_versions,
            rounding=self._accounts[name].rounding,
            tax=self._tax[name],
            credits=self._credits_of(name),
            carried=self._carried.get(name, ()),
        )

    def _credits_of(self, name: str) -> AccountCredits:
        with exactly():
            left = {
                state.grant.grant_id: state.drawable - self._reserved.get(state.grant.grant_id, ZERO)
                for state in self._credits.get(name, ())
            }
        grants = [state.grant for state in self._credits.get(name, ()) if left[state.grant.grant_id] > 0]
        if not grants:
            return NO_CREDITS
        coverable, cut = self._usage.of(name, self._posted[name], grants)
        return AccountCredits(grants, left, coverable, cut)
