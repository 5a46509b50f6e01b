"""What stands on an invoice for people: texts, in order. Values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Final

from billing.bills.tax import TaxMode
from billing.invoicing.explained import COUNTED_KINDS
from billing.invoicing.invoice_file import InvoiceFile, LineFile, TaxFile, number_of
from billing.invoicing.invoice_states import InvoiceState
from billing.invoicing.invoices import InvoiceKind
from billing.invoicing.parties import Party
from billing.money import Currency, decimals_of, exactly, from_minor, plain
from billing.periods import BillingPeriod, parse_period
from billing.plans.price_plans import Metric
from billing.rating import LineKind

MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
TITLES: Final = {
    InvoiceKind.USAGE: "Invoice",
    InvoiceKind.ADVANCE: "Invoice in advance",
    InvoiceKind.TOP_UP: "Invoice for a top-up",
    InvoiceKind.ONE_OFF: "Invoice",
    InvoiceKind.FINAL: "Final invoice",
    InvoiceKind.ADJUSTMENT: "Adjustment invoice",
    InvoiceKind.CREDIT_NOTE: "Credit note",
}
NO_INVOICE: Final = {
    InvoiceState.PREVIEW: "Preview: usage so far, not an invoice",
    InvoiceState.DRAFT: "Draft: not an invoice yet",
    InvoiceState.APPROVED: "Draft: not an invoice yet",
    InvoiceState.ZERO: "Nothing is due",
    InvoiceState.CARRIED_BELOW_MINIMUM: "The amount is carried to the next invoice",
    InvoiceState.VOID: "Void",
}
STATEMENTS: Final = (InvoiceState.ZERO, InvoiceState.CARRIED_BELOW_MINIMUM)
"""No number of the invoice series is used for them (docs/spec/money.md 10)."""
METRICS: Final = {
    Metric.INPUT: "Input tokens",
    Metric.CACHED_INPUT: "Cached input tokens",
    Metric.OUTPUT: "Output tokens",
    Metric.TOTAL_TOKENS: "Tokens",
    Metric.REQUEST: "Requests",
    Metric.GPU_SECOND: "GPU seconds",
}
KINDS: Final = {
    LineKind.TIER_FEE: "fee of the tier",
    LineKind.OVERAGE: "beyond what is included",
    LineKind.FEE: "fee",
    LineKind.PREPAID_FEE: "prepaid",
    LineKind.UNUSED: "credit for unused time",
    LineKind.DISCOUNT: "discount",
    LineKind.MINIMUM: "up to the minimum charge",
    LineKind.MAXIMUM: "down to the maximum charge",
    LineKind.INVOICE_DISCOUNT: "discount on the invoice",
    LineKind.TRUE_UP: "up to the committed amount",
    LineKind.CREDIT: "credit",
    LineKind.TOP_UP: "prepaid credit",
}
NOTES: Final = {
    TaxMode.REVERSE_CHARGE: "Reverse charge: the tax is owed by the recipient of the service.",
    TaxMode.EXEMPT: "Exempt from tax.",
    TaxMode.INCLUSIVE: "Line amounts contain the tax.",
}
TO_BE_PAID: Final = (InvoiceState.FINALIZED, InvoiceState.ISSUED_LOCALLY)
PER_MILLION_BELOW: Final = Decimal("0.001")
"""Prices smaller than this are written for a million units."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line: what it is, what narrows it down, how much of it, at what price, for how much."""

    what: str
    detail: str
    quantity: str
    price: str
    amount: str


@dataclass(frozen=True, slots=True)
class Group:
    """Lines under one heading: a tenant, where the invoice has several."""

    heading: str
    rows: tuple[Row, ...]
    subtotal: str


@dataclass(frozen=True, slots=True)
class Total:
    """A sum below the lines. `strong` for what matters most."""

    what: str
    amount: str
    strong: bool = False


@dataclass(frozen=True, slots=True)
class InvoiceView:
    """An invoice as people read it."""

    title: str
    number: str
    warning: str
    facts: tuple[tuple[str, str], ...]
    seller: Party
    buyer: Party
    currency: str
    groups: tuple[Group, ...]
    totals: tuple[Total, ...]
    notes: tuple[str, ...]
    issued: str


def view_of(invoice: InvoiceFile) -> InvoiceView:
    """What an invoice's document says to people."""
    state = InvoiceState(invoice.state)
    return InvoiceView(
        title="Statement" if state in STATEMENTS else TITLES[invoice.kind],
        number=invoice.number or "",
        warning=NO_INVOICE.get(state, ""),
        facts=tuple(_facts(invoice)),
        seller=invoice.seller,
        buyer=invoice.buyer,
        currency=invoice.currency,
        groups=tuple(_groups(invoice)),
        totals=tuple(_totals(invoice)),
        notes=tuple(_notes(invoice)),
        issued="" if invoice.issue_date is None else invoice.issue_date.isoformat(),
    )


def day(on: date) -> str:
    """A day as it is read the same everywhere: 31 Oct 2026."""
    return f"{on.day} {MONTHS[on.month - 1]} {on.year}"


def days(period: BillingPeriod) -> str:
    """A period as its first and last day, both included."""
    first, last = period.start.date(), (period.end - timedelta(microseconds=1)).date()
    return day(first) if first == last else f"{day(first)} – {day(last)}"


def money(minor: int, of: Currency) -> str:
    """Minor units as an amount with all decimals of the currency."""
    with exactly():
        return _minus(f"{from_minor(minor, of):,.{decimals_of(of.minor_unit)}f}")


def _major(amount: Decimal, of: Currency) -> str:
    """An exact amount with all its decimals, and at least those of the currency."""
    with exactly():
        return _minus(f"{amount:,.{max(decimals_of(of.minor_unit), decimals_of(amount))}f}")


def _minus(text: str) -> str:
    return text.replace("-", "\u2212")


def _number(value: Decimal) -> str:
    whole, _, rest = plain(value).partition(".")
    grouped = f"{int(whole):,}" if whole not in ("-0",) else "-0"
    return _minus(grouped + (f".{rest}" if rest else ""))


def _facts(invoice: InvoiceFile) -> Iterator[tuple[str, str]]:
    if invoice.number:
        yield "Credit note number" if invoice.is_credit_note else "Invoice number", invoice.number
    if invoice.issue_date:
        yield "Issue date", day(invoice.issue_date)
    if invoice.due_date:
        yield "Due date", day(invoice.due_date)
    yield "Service period", days(invoice.identity.period) + " (UTC)"
    if invoice.credits_invoice is not None:
        of = invoice.credits_invoice
        yield "For invoice", (of.number or "") + (f" of {day(of.issue_date)}" if of.issue_date else "")
    elif invoice.received < invoice.total:
        yield "Payment terms", f"{invoice.payment_terms_days} days net" if invoice.payment_terms_days else "at once"
    if invoice.buyer.purchase_order:
        yield "Purchase order", invoice.buyer.purchase_order
    if invoice.buyer.reference:
        yield "Your reference", invoice.buyer.reference
    yield "Account", invoice.billing_account
    yield "Currency", invoice.currency


def _groups(invoice: InvoiceFile) -> Iterator[Group]:
    by_tenant: dict[str, list[LineFile]] = {}
    for line in invoice.lines:
        by_tenant.setdefault(line.tenant_id, []).append(line)
    for tenant_id, lines in by_tenant.items():
        subtotal = money(sum(line.amount for line in lines), invoice.money)
        heading = tenant_id if len(by_tenant) > 1 or tenant_id != invoice.billing_account else ""
        yield Group(heading, tuple(row_of(invoice, line) for line in lines), subtotal if len(by_tenant) > 1 else "")


def row_of(invoice: InvoiceFile, line: LineFile) -> Row:
    """What a line says to people."""
    metric = METRICS[Metric(line.token_class)] if line.token_class in list(Metric) else line.token_class
    kind = KINDS.get(LineKind(line.kind), "")
    what = " · ".join(part for part in (metric or line.charge, kind) if part)
    quantity, price = number_of(line.quantity), None if line.unit_price is None else number_of(line.unit_price)
    shown = price is not None and quantity is not None
    return Row(
        what=what[:1].upper() + what[1:],
        detail=" · ".join(_details(invoice, line)),
        quantity=_number(quantity) if quantity is not None and (shown or line.kind in COUNTED_KINDS) else "",
        price=_price(price) if shown and price is not None else "",
        amount=money(line.amount, invoice.money),
    )


def _details(invoice: InvoiceFile, line: LineFile) -> Iterator[str]:
    yield from (part for part in (line.model, line.adapter, line.region, line.tier) if part)
    if line.tier_no:
        yield f"price tier {line.tier_no}"
    if line.plan:
        yield f"{line.plan}, {line.charge}" + (f", {line.price_version}" if line.segment else "")
    own = parse_period(line.service_period)
    if own != invoice.identity.period:
        yield days(own)
    if line.original_period != invoice.identity.period.name:
        yield f"for {days(parse_period(line.original_period))}"
    counted, quantity = number_of(line.counted), number_of(line.quantity)
    if line.kind in COUNTED_KINDS and counted is not None and counted != quantity:
        yield f"of {_number(counted)} counted"


def _price(price: Decimal) -> str:
    if price and abs(price) < PER_MILLION_BELOW:
        with exactly():
            return f"{_number(price * 1_000_000)} per 1M"
    return _number(price)


def _totals(invoice: InvoiceFile) -> Iterator[Total]:
    def amount(minor: int) -> str:
        return money(minor, invoice.money)

    inclusive = any(row.inclusive for row in invoice.tax)
    if invoice.tax:
        yield Total("Net", amount(invoice.net))
    for row in invoice.tax:
        yield Total(_tax(row, amount(row.base)), amount(row.amount))
    yield Total("Total including tax" if inclusive else "Total", amount(invoice.total), strong=True)
    for credit in invoice.payments:
        how = "Given back to" if credit.amount < 0 else "Paid by"
        yield Total(f"{how} credit {credit.credit_id}", amount(-credit.amount))
    if invoice.received:
        yield Total(f"Received on {days(invoice.identity.period)}", amount(-invoice.received))
    if invoice.carried_in:
        yield Total("Carried over from an earlier period", amount(invoice.carried_in))
    due = -invoice.amount_due if invoice.is_credit_note else invoice.amount_due
    what = "Amount in your favour" if invoice.is_credit_note else "Amount due"
    yield Total(what, f"{invoice.currency} {amount(due)}", strong=True)


def _tax(row: TaxFile, base: str) -> str:
    with exactly():
        percent = _number(row.rate * 100)
    return f"Tax {percent} % on {base}" + (f" ({row.tax_group})" if row.tax_group != "std" else "")


def _notes(invoice: InvoiceFile) -> Iterator[str]:
    for credit in invoice.credits:
        if credit.left is not None:
            what = f"{money(abs(credit.amount), invoice.money)} {'given back' if credit.amount < 0 else 'used'} here"
            yield f"Credit {credit.credit_id}: {what}, {_major(credit.left, invoice.money)} {invoice.currency} left."
    if invoice.kind is InvoiceKind.TOP_UP:
        yield "Prepaid credit: tax is charged on the invoices that it pays."
    yield from _once(NOTES[row.mode] for row in invoice.tax if row.mode in NOTES)
    if invoice.seller.iban and invoice.amount_due > 0 and invoice.state in TO_BE_PAID:
        bank = f"IBAN {invoice.seller.iban}" + (f", BIC {invoice.seller.bic}" if invoice.seller.bic else "")
        yield f"Please pay to {bank}, and name {invoice.number}."
    rounding = plain(invoice.rounding)
    if rounding != "0":
        how = "against the invoice's" if invoice.is_credit_note else "so that they add up"
        yield f"Exact price {plain(invoice.exact_total)}; line amounts are rounded {how}."
    if invoice.usage_digest and invoice.usage:
        events = sum(usage.events for usage in invoice.usage)
        yield f"Usage digest over {events:,} events: {invoice.usage_digest}"


def _once(texts: Iterable[str]) -> Iterator[str]:
    yield from dict.fromkeys(texts)
