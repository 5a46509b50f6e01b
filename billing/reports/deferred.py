"""Fees in advance: what was deferred before a month, invoiced in it, earned, and is left. Values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from billing.invoicing.invoices import Invoice
from billing.money import ZERO, exactly
from billing.periods import INSTANT, BillingPeriod, add_months
from billing.plans.schedules import MONTHLY
from billing.posting.deferrals import by_tenant, deferred
from billing.reports.report import Amounts, Report, summed, table, ties

COLUMNS: Final = (
    "billing_account", "tenant_id", "document", "service_start", "service_end", "currency", "opening", "invoiced",
    "earned", "closing", "within_12_months", "later",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AdvanceInvoice:
    """A document over fees in advance, or a credit note against one, and when it was booked.

    `earned_at`: by month (`2026-10`), when what it earned in it was booked; where nothing is there, the month's end.
    """

    invoice: Invoice
    number: str
    booked_at: datetime
    earned_at: Mapping[str, datetime] = field(default_factory=dict)


def deferred_report(
    documents: Iterable[AdvanceInvoice], span: BillingPeriod, opening: Amounts, closing: Amounts
) -> Report:
    """The roll-forward by document and tenant over a span of time.

    `opening` and `closing`: (currency, tenant) → what 2110 owes in the books. What a document earns in a month is
    booked when that ends.
    """
    rows = []
    for each in documents:
        of = each.invoice.identity
        whole = by_tenant((fee.tenant_id, fee.amount) for fee in deferred(each.invoice))
        moments = (span.start, span.end, add_months(span.end, 12))
        before, after, in_a_year = (_left(each, at) for at in moments)
        invoiced_now = span.start <= each.booked_at < span.end
        for tenant in sorted(whole.keys() | before.keys() | after.keys()):
            start, end, late = (found.get(tenant, ZERO) for found in (before, after, in_a_year))
            invoiced = whole.get(tenant, ZERO) if invoiced_now else ZERO
            if not (start or invoiced or end):
                continue
            with exactly():
                rows.append(
                    {
                        "billing_account": of.billing_account, "tenant_id": tenant, "document": each.number,
                        "service_start": of.period.start, "service_end": of.period.end, "currency": of.currency,
                        "opening": start, "invoiced": invoiced, "earned": end - start - invoiced, "closing": end,
                        "within_12_months": end - late, "later": late,
                    }
                )  # fmt: skip
    rows.sort(key=lambda row: (row["currency"], row["billing_account"], row["tenant_id"], row["document"]))
    return Report(
        "deferred",
        table(rows, COLUMNS),
        (
            *ties("opening = 2110 before", _by_tenant(rows, "opening"), opening),
            *ties("closing = 2110", _by_tenant(rows, "closing"), closing),
        ),
    )


def _left(document: AdvanceInvoice, at: datetime) -> dict[str, Decimal]:
    """What the books hold of a document at a moment, by tenant: what it deferred by then less what it earned by then.

    Less than nothing where it was booked after its time began.
    """
    fees = deferred(document.invoice)
    service = document.invoice.identity.period
    parts = [(fee.tenant_id, fee.amount) for fee in fees] if document.booked_at < at else []
    for month in MONTHLY.periods(service.start, service.end):
        if document.earned_at.get(month.name, month.end - INSTANT) < at:
            parts += [(fee.tenant_id, -fee.earned_in(month)) for fee in fees]
    return by_tenant(parts)


def _by_tenant(rows: Iterable[Mapping[str, Any]], column: str) -> Amounts:
    return summed(((row["currency"], row["tenant_id"]), row[column]) for row in rows)
