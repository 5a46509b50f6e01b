"""What a tenant's invoice would be: the close's own commands, one after the other, and all of it taken back."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine

from billing.commands.draft_invoices import draft_invoices
from billing.commands.rate_period import rate_period
from billing.commands.show_invoices import shown
from billing.database import transaction
from billing.errors import InvoiceFrozen, PreviewRefused
from billing.invoicing import invoice_store
from billing.invoicing.invoice_states import InvoiceState
from billing.periods import BillingPeriod
from billing.plans import account_store
from billing.plans.schedules import periods_in


def preview_invoice(
    engine: Engine, *, tenant_id: str, period: BillingPeriod, now: datetime, billing_account: str | None = None
) -> dict[str, Any] | None:
    """The document that a tenant's billing account would get for a period by its usage so far; None if it gets none.

    A period that runs is taken as if it ended with what is there. The account's other tenants are on it too. Nothing
    is kept. Raises PreviewRefused where it cannot be drawn up, InvoiceFrozen where it is drawn up already.
    """
    at = max(now, period.end)
    with transaction(engine, dry_run=True) as connection:
        payers = account_store.subscriptions_in(connection, period)
        accounts = {s.billing_account for s in payers.get(tenant_id, [])}
        if not accounts:
            raise PreviewRefused(_no_period(connection, tenant_id, period))
        account = _one_of(accounts, tenant_id, period, billing_account)
        tenants = [t for t, listed in payers.items() if any(s.billing_account == account for s in listed)]
        rated = rate_period(connection, period=period, now=at, tenants=tenants)
        problems = [*map(str, rated.unpriced), *rated.unratable]
        if problems:
            raise PreviewRefused("; ".join(problems))
        drafted = draft_invoices(connection, period=period, now=at, billing_accounts=[account])
        if drafted.frozen:
            raise InvoiceFrozen(
                f"the invoice of {account} for {period.name} is drawn up:"
                f" `tollbook invoice show {drafted.frozen[0].invoice_id}`"
            )
        if drafted.blocked:
            raise PreviewRefused("; ".join(reason for _, reason in drafted.blocked))
        for invoice in (*drafted.changed, *drafted.unchanged):
            stored = invoice_store.load(connection, invoice.invoice_id)
            return shown(connection, [stored], now.date())[0] | {"state": InvoiceState.PREVIEW.value}
    return None


def _no_period(connection: Connection, tenant_id: str, period: BillingPeriod) -> str:
    """Why a period is none of a tenant's."""
    held = account_store.subscriptions_during(connection, period).get(tenant_id, [])
    if not held:
        return f"{tenant_id} has no subscription in {period.name}: nobody pays for its usage"
    names = ", ".join(each.name for each in periods_in(held, period))
    return f"{tenant_id} is not billed by {period.name}: its billing periods then are {names}"


def _one_of(accounts: set[str], tenant_id: str, period: BillingPeriod, asked: str | None) -> str:
    if asked is None and len(accounts) > 1:
        raise PreviewRefused(f"{tenant_id} is paid for by {', '.join(sorted(accounts))}: say --account")
    if asked is not None and asked not in accounts:
        raise PreviewRefused(f"{asked} does not pay for {tenant_id} in {period.name}")
    return asked or accounts.pop()
