"""Whether a draft still says what is rated and due, before its content is fixed (docs/spec/money.md 7, 13.10)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection

from billing.bills.tax import tax_row
from billing.invoicing import adjustment_store, billed_until_store, invoice_store, rated_line_store, tax_store
from billing.invoicing.advance_fees import changed_tenants
from billing.invoicing.invoices import Invoice, InvoiceIdentity, InvoiceKind
from billing.invoicing.late_drawing import parked_accounts
from billing.money import ZERO, plain, total
from billing.periods import INSTANT, BillingPeriod
from billing.plans import account_store
from billing.plans.schedules import has_period
from billing.plans.term_digests import term_digests
from billing.rating import RatedLine
from billing.stripe.request_sender import Parked


def check_current(connection: Connection, invoice: Invoice) -> None:
    """Make sure that a draft says what is rated and due by now; what it follows from is locked. Raises Parked."""
    identity, drafted = invoice.identity, invoice.rated_totals
    if identity.kind is InvoiceKind.ADVANCE:
        _check_due(connection, invoice)
        billed_until_store.hold_terms(connection)
        return _check_tax(connection, invoice, identity.period.start)
    billed_until_store.hold_terms(connection)
    if identity.kind is InvoiceKind.USAGE:
        _check_tax(connection, invoice, identity.period.end - INSTANT)
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
    if identity.kind is InvoiceKind.USAGE:
        _check_rated(connection, identity, posted.keys())
    parked = parked_accounts(connection, identity.period.end)
    if identity.billing_account in parked:
        raise Parked(parked[identity.billing_account])


def _check_tax(connection: Connection, invoice: Invoice, tax_point: datetime) -> None:
    """Tax rules may be set until it is frozen. Rows of earlier periods (`std@2026-10`) keep theirs: those are."""
    identity = invoice.identity
    rules = tax_store.in_force(connection, [identity.billing_account], tax_point)[identity.billing_account]
    same = invoice.tax_mode is rules.mode and all(
        row == tax_row(row.group, row.base_minor + (row.tax_minor if rules.inclusive else 0), rules, identity.money)
        for row in invoice.taxes
        if "@" not in row.group
    )
    if not same:
        raise Parked(
            f"the tax rules of billing account {identity.billing_account} have changed: draw the invoices up again"
        )


def _check_rated(connection: Connection, identity: InvoiceIdentity, posted: Collection[str]) -> None:
    """Every tenant that the account pays for in the period is rated, by the subscriptions and prices of now."""
    account, period = identity.billing_account, identity.period
    subscribed = account_store.subscriptions(connection, of_payers=[account])
    held = (s for s in subscribed if s.billing_account == account and has_period(s, period))
    tenants = sorted({*posted, *(each.tenant_id for each in held)})
    states = rated_line_store.tenant_periods(connection, period, tenants)
    terms = term_digests(connection, period, tenants)
    for tenant_id in tenants:
        state = states.get(tenant_id)
        if state is not None and state.problem is not None:
            raise Parked(f"tenant {tenant_id}: {state.problem}")
        if state is None or state.terms != terms.get(tenant_id):
            raise Parked(
                f"tenant {tenant_id}: subscriptions or prices are not those that {period.name} was rated by:"
                " rate it and draw the invoices up again"
            )


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
