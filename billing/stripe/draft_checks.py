"""Whether a draft still says what is rated and due, before its content is fixed (docs/spec/money.md 7, 13.10)."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal

from sqlalchemy import Connection

from billing.invoicing import adjustment_store, invoice_store, rated_line_store
from billing.invoicing.advance_fees import changed_tenants
from billing.invoicing.invoices import Invoice, InvoiceKind
from billing.invoicing.late_drawing import parked_accounts
from billing.money import ZERO, plain, total
from billing.periods import BillingPeriod
from billing.rating import RatedLine
from billing.stripe.request_sender import Parked


def check_current(connection: Connection, invoice: Invoice) -> None:
    """Make sure that a draft says what is rated and due by now; what it follows from is locked. Raises Parked."""
    identity, drafted = invoice.identity, invoice.rated_totals
    if identity.kind is InvoiceKind.ADVANCE:
        return _check_due(connection, invoice)
    posted: dict[str, list[RatedLine]] = {}
    rated: dict[BillingPeriod, Decimal] = {}
    if identity.kind is InvoiceKind.USAGE:
        posted = rated_line_store.posted(connection, identity.period, billing_account=identity.billing_account)
        rated[identity.period] = total(line.amount for lines in posted.values() for line in lines)
    rated |= _still_to_bill(connection, invoice)
    for period in sorted(rated.keys() | drafted.keys()):
        if rated.get(period, ZERO) != drafted.get(period, ZERO):
            raise Parked(
                f"the draft is over {plain(drafted.get(period, ZERO))} for {period.name}, rated are"
                f" {plain(rated.get(period, ZERO))} {identity.currency}: draw the invoices up again"
            )
    for state in rated_line_store.tenant_periods(connection, identity.period, posted.keys()).values():
        if state.problem is not None:
            raise Parked(f"tenant {state.tenant_id}: {state.problem}")
    parked = parked_accounts(connection, identity.period.end)
    if identity.billing_account in parked:
        raise Parked(parked[identity.billing_account])


def _check_due(connection: Connection, invoice: Invoice) -> None:
    """Fees in advance follow from subscriptions and prices alone; neither changes until it is frozen."""
    invoice_store.lock_kind(connection, invoice.identity.kind)
    for tenant_id in changed_tenants(connection, invoice):
        raise Parked(f"the fees in advance of tenant {tenant_id} have changed: draw the invoices up again")


def _still_to_bill(connection: Connection, invoice: Invoice) -> dict[BillingPeriod, Decimal]:
    """Of the earlier periods on an invoice what no other document bills, in the tax groups that it carries."""
    groups: dict[BillingPeriod, set[str]] = defaultdict(set)
    for line in invoice.lines:
        if line.original_period is not None:
            groups[line.original_period].add(line.rated.tax_group)
    if not groups:
        return {}
    account = invoice.identity.billing_account
    found = adjustment_store.outstanding(connection, groups, [account])
    return {
        period: total(found.get((account, period), {}).get(group, ZERO) for group in wanted)
        for period, wanted in groups.items()
    }
