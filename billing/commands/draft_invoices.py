"""Draw up a period's invoices from what is rated. Drafts follow the rating until they are frozen for sending."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, Engine

from billing import account_store, invoice_store, plan_store, rated_line_store
from billing.account_store import BillingAccount
from billing.commands.digest_usage import digest_usage
from billing.database import transaction
from billing.errors import PeriodNotEnded
from billing.invoices import Invoice, InvoiceIdentity, InvoiceKind, draw_up
from billing.periods import BillingPeriod
from billing.rating import RatedLine

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
        by_account = _lines_by_account(connection, period)
        if billing_accounts is not None:
            by_account = {name: lines for name, lines in by_account.items() if name in billing_accounts}
        accounts = account_store.accounts(connection, by_account.keys())
        stored = {s.invoice.invoice_id: s for s in invoice_store.listed(connection, period=period)}
        versions = {name: len(plan.versions) for name, plan in plan_store.plans(connection).items()}
        states = rated_line_store.tenant_periods(connection, period)
        payers = account_store.subscriptions_in(connection, period)
        blocked = {
            subscription.billing_account: f"tenant {tenant_id}: {state.problem}"
            for tenant_id, state in states.items()
            if state.problem is not None
            for subscription in payers.get(tenant_id, [])
        }
        changed, unchanged, frozen = [], [], []
        for name, lines in sorted(by_account.items()):
            if name in blocked:
                continue
            invoice = _draw_up(accounts[name], period, lines, versions)
            old = stored.get(invoice.invoice_id)
            if old is not None and old.frozen_at is not None:
                frozen.append(old.invoice)
            elif invoice_store.save_draft(connection, invoice, now, actor):
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


def _lines_by_account(connection: Connection, period: BillingPeriod) -> dict[str, list[RatedLine]]:
    found: dict[str, list[RatedLine]] = {}
    for lines in rated_line_store.posted(connection, period).values():
        for line in lines:
            found.setdefault(line.billing_account, []).append(line)
    return found


def _draw_up(
    account: BillingAccount, period: BillingPeriod, lines: list[RatedLine], versions: Mapping[str, int]
) -> Invoice:
    identity = InvoiceIdentity(
        account.legal_entity, account.billing_account, InvoiceKind.USAGE, period, account.currency
    )
    return draw_up(identity, lines, plan_versions=versions, rounding=account.rounding)
