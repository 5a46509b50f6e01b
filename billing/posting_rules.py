"""From a business fact to its journal entry (docs/spec/money.md 9). Every posting of billing is made here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from billing.invoices import Invoice
from billing.ledger import AccountCode, JournalEntry, Posting
from billing.money import ZERO, currency, exactly, from_minor, plain, total
from billing.periods import BillingPeriod, accounting_month
from billing.rating import LineKind, RatedLine

_REVENUE: Final[dict[str, AccountCode]] = {
    LineKind.FEE: AccountCode.FEE_REVENUE,
    LineKind.PREPAID_FEE: AccountCode.FEE_REVENUE,
    LineKind.TRUE_UP: AccountCode.COMMITMENT_TRUE_UP_REVENUE,
}


def accrual(
    lines: Iterable[RatedLine], *, legal_entity: str, period: BillingPeriod, rating_no: int, now: datetime
) -> JournalEntry | None:
    """Revenue of a tenant's newly rated lines: Dr 1150 / Cr 4000, exact, in the accounting period of completion.

    Fees are credited to 4010, a true-up to 4050; discounts, minimum and maximum lower or raise 4000.

    The lines have one payer, the period is one calendar month. None if the lines come to nothing.
    """
    lines = tuple(lines)
    amount = total(line.amount for line in lines)
    if not amount:
        return None
    (tenant_id,) = {line.identity.tenant_id for line in lines}
    (code,) = {line.currency for line in lines}
    (account,) = {line.billing_account for line in lines}
    by_revenue: dict[AccountCode, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for line in lines:
            by_revenue[_REVENUE.get(line.identity.kind, AccountCode.USAGE_REVENUE)] += line.amount
    return JournalEntry(
        idempotency_key=f"accrual:{legal_entity}:{account}:{tenant_id}:{period.name}:{rating_no}",
        kind="accrual",
        legal_entity=legal_entity,
        accounting_period=accounting_month(period.start),
        effective_at=_within(period, now),
        postings=(
            Posting(AccountCode.UNBILLED_RECEIVABLE, code, amount, tenant_id),
            *(Posting(revenue, code, -part) for revenue, part in by_revenue.items() if part),
        ),
        source={"tenant_id": tenant_id, "billing_account": account, "period": period.name, "rating_no": str(rating_no)},
    )


def invoice_issued(invoice: Invoice, *, now: datetime) -> JournalEntry | None:
    """An invoice becomes due: Dr 1100 rounded, ± 5900 the residue, Cr 1150 exact per tenant, in the month of `now`.

    Also for one that is never sent because it is zero or below the minimum. None if it says nothing in money.
    """
    identity = invoice.identity
    per_tenant: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for line in invoice.lines:
            per_tenant[line.rated.identity.tenant_id] -= line.rated.amount
    due = from_minor(invoice.total_minor, currency(identity.currency, now.date()))
    legs = [
        (AccountCode.ACCOUNTS_RECEIVABLE, identity.billing_account, due),
        (AccountCode.ROUNDING_DIFFERENCE, "", invoice.rounding),
        *((AccountCode.UNBILLED_RECEIVABLE, tenant, amount) for tenant, amount in sorted(per_tenant.items())),
    ]
    postings = tuple(Posting(code, identity.currency, amount, sub) for code, sub, amount in legs if amount)
    if not postings:
        return None
    return JournalEntry(
        idempotency_key=f"invoice:{invoice.invoice_id}",
        kind="invoice",
        legal_entity=identity.legal_entity,
        accounting_period=accounting_month(now),
        effective_at=now,
        postings=postings,
        source={
            "invoice_id": str(invoice.invoice_id),
            "period": identity.period.name,
            "exact_total": plain(invoice.exact_total),
        },
    )


def _within(period: BillingPeriod, now: datetime) -> datetime:
    return min(max(now, period.start), period.end - timedelta(microseconds=1))
