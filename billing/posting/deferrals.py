"""Fees that were invoiced before they are earned, and what of them is earned by when (docs/spec/money.md 9).

Each line of an invoice for fees in advance is deferred over its own service period and recognised by the second,
cumulatively, so that its parts add up to it. Values in, values out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

from billing.bills.tax import TaxMode
from billing.invoicing.invoices import Invoice, InvoiceLine
from billing.money import ZERO, exactly, from_minor, quantise_line, quantise_pieces
from billing.periods import BillingPeriod
from billing.rating import LineKind


@dataclass(frozen=True, slots=True)
class Deferred:
    """What an invoiced line leaves to be earned over its service period: without the tax that its price contains."""

    tenant_id: str
    service: BillingPeriod
    amount: Decimal

    def earned(self, until: datetime) -> Decimal:
        """What of it is earned by a moment."""
        if until <= self.service.start:
            return ZERO
        if until >= self.service.end:
            return self.amount
        return quantise_line(Fraction(self.amount) * self.service.elapsed(until))

    def earned_in(self, month: BillingPeriod) -> Decimal:
        """What of it is earned in an accounting period."""
        with exactly():
            return self.earned(month.end) - self.earned(month.start)


def deferred(invoice: Invoice) -> tuple[Deferred, ...]:
    """What an invoice for fees in advance defers, line by line. Price reductions are none: contra income when drawn."""
    taxed = _tax_within(invoice)
    found = []
    for line in invoice.lines:
        if line.rated.identity.kind == LineKind.CREDIT:
            continue
        with exactly():
            amount = line.rated.amount - taxed.get(line.line_key, ZERO)
        service = BillingPeriod(line.rated.service_start, line.rated.service_end)
        found.append(Deferred(line.rated.identity.tenant_id, service, amount))
    return tuple(found)


def by_tenant(amounts: Iterable[tuple[str, Decimal]]) -> dict[str, Decimal]:
    """Amounts summed by tenant, in order of their names; those that come to nothing are left out."""
    sums: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for tenant_id, amount in amounts:
            sums[tenant_id] += amount
    return {tenant_id: amount for tenant_id, amount in sorted(sums.items()) if amount}


def deferred_by_tenant(invoice: Invoice) -> dict[str, Decimal]:
    """What an invoice defers in all, by tenant."""
    return by_tenant((each.tenant_id, each.amount) for each in deferred(invoice))


def earned_by_tenant(invoice: Invoice, month: BillingPeriod) -> dict[str, Decimal]:
    """What of an invoice is earned in an accounting period, by tenant."""
    return by_tenant((each.tenant_id, each.earned_in(month)) for each in deferred(invoice))


def tax_on_reductions(invoice: Invoice) -> dict[str, Decimal]:
    """By line of credit on a document over fees in advance, the tax that it takes off prices that contain tax: less
    than nothing."""
    taxed = _tax_within(invoice)
    return {
        line.line_key: taxed[line.line_key]
        for line in invoice.lines
        if line.rated.identity.kind == LineKind.CREDIT and line.line_key in taxed
    }


def _tax_within(invoice: Invoice) -> Mapping[str, Decimal]:
    """By line, the part of its group's tax that its price contains, where prices do (13.14)."""
    if invoice.tax_mode is not TaxMode.INCLUSIVE:
        return {}
    found: dict[str, Decimal] = {}
    for row in invoice.taxes:
        lines: list[InvoiceLine] = [line for line in invoice.lines if line.tax_group == row.group]
        whole = sum((Fraction(line.rated.amount) for line in lines), Fraction(0))
        tax = Fraction(from_minor(row.tax_minor, invoice.identity.money))
        shares = [Fraction(line.rated.amount) / whole if whole else Fraction(not n) for n, line in enumerate(lines)]
        parts = quantise_pieces(tax * share for share in shares)
        found |= {line.line_key: part for line, part in zip(lines, parts, strict=True)}
    return found
