"""From a business fact to its journal entry (docs/spec/money.md 9). Every posting of billing is made here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Final

from billing.bills.credit_application import grant_of
from billing.bills.credits import Grant, GrantKind
from billing.bills.tax import TaxMode
from billing.invoicing.invoices import CreditUsed, Invoice, InvoiceKind
from billing.ledger.journal import BREAKAGE_EXPECTED, FEES_EARNED, AccountCode, JournalEntry, Posting
from billing.money import ZERO, currency, exactly, from_minor, plain, quantise_pieces, total
from billing.periods import BillingPeriod, accounting_month
from billing.posting.deferrals import deferred_by_tenant, earned_by_tenant, tax_on_reductions
from billing.rating import LineKind, RatedLine

_REVENUE: Final[dict[str, AccountCode]] = {
    LineKind.FEE: AccountCode.FEE_REVENUE,
    LineKind.PREPAID_FEE: AccountCode.FEE_REVENUE,
    LineKind.TRUE_UP: AccountCode.COMMITMENT_TRUE_UP_REVENUE,
}


@dataclass(frozen=True, slots=True)
class Booking:
    """Where an entry goes: its key, whose books, which month, when it holds.

    `original_period` is the month it belongs to, where that is closed.
    """

    key: str
    legal_entity: str
    accounting_period: str
    effective_at: datetime
    original_period: str | None = None

    def entry(
        self, *, kind: str, postings: tuple[Posting, ...], source: Mapping[str, str], reverses: int | None = None
    ) -> JournalEntry:
        """The entry of some postings that goes there. Raises EntryInvalid."""
        return JournalEntry(
            idempotency_key=self.key,
            kind=kind,
            legal_entity=self.legal_entity,
            accounting_period=self.accounting_period,
            effective_at=self.effective_at,
            postings=postings,
            original_period=self.original_period,
            reverses=reverses,
            source=source,
        )


def accrual(
    lines: Iterable[RatedLine],
    *,
    legal_entity: str,
    period: BillingPeriod,
    rating_no: int,
    now: datetime,
    month: BillingPeriod | None = None,
    closed: bool = False,
) -> JournalEntry | None:
    """Revenue of a tenant's newly rated lines: Dr 1150 / Cr 4000, exact, in the accounting period of completion.

    Where the book of that month is `closed`, in the one of `now`, with its original period.

    Fees are credited to 4010, a true-up to 4050; discounts, minimum and maximum lower or raise 4000.

    The lines have one payer; they are what a billing period costs more by an accounting month of it, or its only one.
    None if they come to nothing.
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
            by_revenue[revenue_account(line)] += line.amount
    book = accounting_month((month or period).start)
    return JournalEntry(
        idempotency_key=f"accrual:{legal_entity}:{account}:{tenant_id}:{period.name}:{rating_no}",
        kind="accrual",
        legal_entity=legal_entity,
        accounting_period=accounting_month(now) if closed else book,
        effective_at=now if closed else _within(month or period, now),
        original_period=book if closed else None,
        postings=(
            Posting(AccountCode.UNBILLED_RECEIVABLE, code, amount, tenant_id),
            *(Posting(revenue, code, -part) for revenue, part in by_revenue.items() if part),
        ),
        source={"tenant_id": tenant_id, "billing_account": account, "period": period.name, "rating_no": str(rating_no)},
    )


def invoice_issued(invoice: Invoice, *, now: datetime) -> JournalEntry | None:
    """An invoice becomes due, or a credit note takes back what was due, in the month of `now`.

    For prepaid credit Dr 1100 / Cr 2100: it is owed from then on, and is paid then or later. Else
    Dr 1100 rounded, less what credits pay · Dr 2100, 4900 or 4910 what grants give · ± 5900 the residue · Cr 1150 exact
    per tenant · Cr 2200 tax, which comes out of revenue where prices contain it (13.14). Fees in advance: Cr 2110
    instead of 1150, less the tax that they contain.

    What is carried in stays where its own invoice booked it. Also for one that is never sent because it is zero or
    below the minimum. A credit note's amounts are negative, so that the same legs take back what they booked. None if
    it says nothing in money.
    """
    identity = invoice.identity
    money = currency(identity.currency, now.date())
    legs = [
        (AccountCode.ACCOUNTS_RECEIVABLE, identity.billing_account, from_minor(invoice.receivable_minor, money)),
        *((*granted_account(credit), credit.amount) for credit in invoice.credits),
        (AccountCode.ROUNDING_DIFFERENCE, "", invoice.rounding),
        *_cleared(invoice),
        (AccountCode.TAX_PAYABLE, "", from_minor(-invoice.tax_minor, money)),
        *((account, sub, amount) for (account, sub), amount in sorted(_tax_in_prices(invoice).items(), key=_by_code)),
    ]
    sums: dict[tuple[AccountCode, str], Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for code, sub, amount in legs:
            sums[code, sub] += amount
    postings = tuple(Posting(code, identity.currency, amount, sub) for (code, sub), amount in sums.items() if amount)
    if not postings:
        return None
    note = identity.kind is InvoiceKind.CREDIT_NOTE
    return JournalEntry(
        idempotency_key=f"invoice:{invoice.invoice_id}",
        kind="credit_note" if note else "invoice",
        legal_entity=identity.legal_entity,
        accounting_period=accounting_month(now),
        effective_at=now,
        postings=postings,
        original_period=accounting_month(identity.period.start) if note else None,
        source={
            "invoice_id": str(invoice.invoice_id),
            "period": identity.period.name,
            "exact_total": plain(invoice.exact_total),
        },
    )


def fees_earned(invoice: Invoice, month: BillingPeriod, *, booking: Booking) -> JournalEntry | None:
    """What of an invoice for fees in advance is earned in a month: Dr 2110 / Cr 4010. None if it is nothing."""
    earned = earned_by_tenant(invoice, month)
    if not earned:
        return None
    code = invoice.identity.currency
    with exactly():
        revenue = -total(earned.values())
    legs = [Posting(AccountCode.DEFERRED_FEES, code, amount, tenant) for tenant, amount in earned.items()]
    return booking.entry(
        kind=FEES_EARNED,
        postings=(*legs, *([Posting(AccountCode.FEE_REVENUE, code, revenue)] if revenue else [])),
        source={"invoice_id": str(invoice.invoice_id), "period": month.name},
    )


def revenue_account(line: RatedLine) -> AccountCode:
    """Where a rated line is credited."""
    return _REVENUE.get(line.identity.kind, AccountCode.USAGE_REVENUE)


def granted_account(credit: CreditUsed) -> tuple[AccountCode, str]:
    """What a draw is debited to, with its subledger: the liability of a paid grant, else contra income (money 6)."""
    if credit.kind is GrantKind.PAID:
        return AccountCode.DEFERRED_REVENUE_PREPAID, credit.grant_id
    return (AccountCode.SLA_CREDITS if credit.kind is GrantKind.SLA else AccountCode.PROMO_CREDITS), ""


def _cleared(invoice: Invoice) -> list[tuple[AccountCode, str, Decimal]]:
    """What an invoice takes from what was accrued, or defers, by tenant; what it owes by credit."""
    prepaid = [line.rated for line in invoice.lines if line.rated.identity.kind == LineKind.TOP_UP]
    if prepaid:
        with exactly():
            return [(AccountCode.DEFERRED_REVENUE_PREPAID, of.identity.charge_key, -of.amount) for of in prepaid]
    if invoice.in_advance:
        with exactly():
            return [(AccountCode.DEFERRED_FEES, tenant, -a) for tenant, a in deferred_by_tenant(invoice).items()]
    per_tenant: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for line in invoice.lines:
            if line.rated.identity.kind != LineKind.CREDIT:
                per_tenant[line.rated.identity.tenant_id] -= line.rated.amount
    return [(AccountCode.UNBILLED_RECEIVABLE, tenant, amount) for tenant, amount in sorted(per_tenant.items())]


def _tax_in_prices(invoice: Invoice) -> dict[tuple[AccountCode, str], Decimal]:
    """The tax that inclusive prices contain, on the accounts that carry them gross: debits, in all the tax.

    A price reduction of a paid grant is a debit of its liability in full: its part of the tax is taken from revenue.
    Of fees in advance the price reductions alone: what is deferred is without tax.
    """
    if invoice.tax_mode is not TaxMode.INCLUSIVE:
        return {}
    credits = {credit.grant_id: credit for credit in invoice.credits if not credit.pays}
    found: dict[tuple[AccountCode, str], Decimal] = defaultdict(lambda: ZERO)
    if invoice.in_advance:
        reduced = tax_on_reductions(invoice)
        for line in invoice.lines:
            if line.line_key in reduced:
                given = granted_account(credits[grant_of(line.rated, credits)])
                with exactly():
                    found[(AccountCode.FEE_REVENUE, "") if given[1] else given] += reduced[line.line_key]
        return found
    for row in invoice.taxes:
        on: dict[tuple[AccountCode, str], Fraction] = defaultdict(Fraction)
        for line in invoice.lines:
            if line.tax_group == row.group:
                account = revenue_account(line.rated), ""
                if line.rated.identity.kind == LineKind.CREDIT:
                    given = granted_account(credits[grant_of(line.rated, credits)])
                    account = account if given[1] else given
                on[account] += Fraction(line.rated.amount)
        tax = Fraction(from_minor(row.tax_minor, invoice.identity.money))
        whole = sum(on.values(), Fraction(0))
        if not whole:
            on, whole = {(AccountCode.USAGE_REVENUE, ""): Fraction(1)}, Fraction(1)
        accounts = sorted(on, key=lambda account: account[0].code)
        parts = quantise_pieces(tax * on[account] / whole for account in accounts)
        with exactly():
            for account, part in zip(accounts, parts, strict=True):
                found[account] += part
    return found


def _by_code(item: tuple[tuple[AccountCode, str], Decimal]) -> int:
    return item[0][0].code


def credit_settled(grant: Grant, document: str, *, booking: Booking) -> JournalEntry:
    """A paid grant was paid outside Stripe: Dr 1020 / Cr 2100. It is a liability from then on (money 6)."""
    return _of_grant(grant, "settled", AccountCode.BANK, grant.amount, booking, {"document": document})


def prepaid_invoice_paid(
    grant: Grant, amount: Decimal, billing_account: str, document: str, *, booking: Booking
) -> JournalEntry:
    """The invoice of a credit was paid outside Stripe: Dr 1020 / Cr 1100, what it and its credit note left there."""
    return booking.entry(
        kind="credit_settled",
        postings=(
            Posting(AccountCode.BANK, grant.currency, amount),
            Posting(AccountCode.ACCOUNTS_RECEIVABLE, grant.currency, -amount, billing_account),
        ),
        source={"grant_id": grant.grant_id, "document": document},
    )


def credit_refunded(grant: Grant, amount: Decimal, document: str, *, booking: Booking) -> JournalEntry:
    """What is left of a paid grant is to be paid back: Dr 2100 / Cr 2300."""
    return _of_grant(grant, "refunded", AccountCode.REFUNDS_PAYABLE, -amount, booking, {"document": document})


def credit_expired(grant: Grant, amount: Decimal, *, booking: Booking) -> JournalEntry:
    """What was left of a paid grant at its expiry is breakage: Dr 2100 / Cr 4100 (money 6)."""
    return _of_grant(grant, "expired", AccountCode.BREAKAGE_REVENUE, -amount, booking, {})


def breakage_expected(grant: Grant, amount: Decimal, month: str, *, booking: Booking) -> JournalEntry:
    """What of a paid grant is expected never to be used: Dr 2105 / Cr 4100; a negative amount takes it back.

    2105 stands against 2100, which stays what is left of the grant.
    """
    return booking.entry(
        kind=BREAKAGE_EXPECTED,
        postings=(
            Posting(AccountCode.EXPECTED_BREAKAGE, grant.currency, amount, grant.grant_id),
            Posting(AccountCode.BREAKAGE_REVENUE, grant.currency, -amount),
        ),
        source={"grant_id": grant.grant_id, "period": month},
    )


def credit_reinstated(grant: Grant, amount: Decimal, *, booking: Booking) -> JournalEntry:
    """Late usage draws on what was booked as breakage: Dr 4100 / Cr 2100."""
    return _of_grant(grant, "reinstated", AccountCode.BREAKAGE_REVENUE, amount, booking, {})


def _of_grant(
    grant: Grant, what: str, against: AccountCode, amount: Decimal, booking: Booking, source: Mapping[str, str]
) -> JournalEntry:
    """What is added to the liability of a grant (credit), against an account (debit)."""
    return booking.entry(
        kind=f"credit_{what}",
        postings=(
            Posting(against, grant.currency, amount),
            Posting(AccountCode.DEFERRED_REVENUE_PREPAID, grant.currency, -amount, grant.grant_id),
        ),
        source={"grant_id": grant.grant_id, **source},
    )


def _within(period: BillingPeriod, now: datetime) -> datetime:
    return min(max(now, period.start), period.end - timedelta(microseconds=1))
