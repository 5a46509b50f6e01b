"""An invoice as lines in Stripe: amounts that add up to what is due, at most as many and as large as Stripe takes.

Pure. Sources: https://docs.stripe.com/changelog/2016-02-22/no-more-than-250-invoice-items,
https://docs.stripe.com/currencies#minimum-and-maximum-charge-amounts (at most eight digits).
"""

from __future__ import annotations

from calendar import timegm
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from billing.bills.tax import TaxMode
from billing.invoicing.invoices import Invoice, InvoiceLine
from billing.money import from_minor, plain, to_stripe
from billing.rating import LineKind

LINES_MAX: Final = 250
"""Stripe holds at most so many lines an invoice; of more, the smallest are summed in one."""
AMOUNT_MAX: Final = 99_999_999
"""In Stripe's integers: eight digits, which is 999,999.99 where there are cents."""
DESCRIPTION_MAX: Final = 250
PERIOD_END_IS_INCLUSIVE_S: Final = 1
FURTHER: Final = "further:"
"""The key of the line that sums the smallest, before how many. An invoice's own lines have a colon only behind an @."""


@dataclass(frozen=True, slots=True)
class LineSeen:
    """What Stripe says of a line, read back."""

    line_key: str
    amount: int
    currency: str
    discounts: int = 0
    taxes: int = 0


@dataclass(frozen=True, slots=True)
class StripeLine:
    """An amount on an invoice in Stripe, in minor units, for a service period."""

    key: str
    amount_minor: int
    description: str
    period: tuple[datetime, datetime]
    metadata: Mapping[str, str] = field(default_factory=dict)


def stripe_lines(invoice: Invoice) -> list[StripeLine]:
    """All that makes up what is due, as amounts: lines, tax on top of them, payments by credit, what is carried in.

    Tax is computed here and nowhere else; Stripe is told how much it is (docs/spec/money.md 5). In the key of a line a
    colon stands only behind an @, so those of the others never meet one.
    """
    period = invoice.identity.period
    whole = (period.start, period.end)
    own = [
        StripeLine(line.line_key, line.amount_minor, describe(line), (line.rated.service_start, line.rated.service_end),
                   _metadata(line))
        for line in invoice.lines
    ]  # fmt: skip
    others: list[StripeLine] = []
    if invoice.tax_mode is TaxMode.EXCLUSIVE:
        others += [
            StripeLine(f"tax:{row.group}", row.tax_minor, f"Tax {row.group}, {percent(row.rate)}", whole)
            for row in invoice.taxes
            if row.tax_minor
        ]
    others += [
        StripeLine(f"credit:{credit.grant_id}", -credit.amount_minor, f"Paid by credit {credit.grant_id}", whole)
        for credit in invoice.credits
        if credit.pays
    ]
    others += [
        StripeLine(f"carried:{each.number}", each.amount_minor, f"Carried over from {each.number}", whole)
        for each in invoice.carried
    ]
    return _grouped(own, LINES_MAX - len(others), whole) + others


def _grouped(lines: list[StripeLine], most: int, period: tuple[datetime, datetime]) -> list[StripeLine]:
    """At most so many lines: the largest as they are, the smallest as one. The same for the same lines."""
    if len(lines) <= most or most < 1:
        return lines
    by_size = sorted(lines, key=lambda line: (-abs(line.amount_minor), line.key))
    kept = {line.key for line in by_size[: most - 1]}
    rest = by_size[most - 1 :]
    text = f"{len(rest)} further lines; the document of this invoice has each of them"
    summed = StripeLine(f"{FURTHER}{len(rest)}", sum(line.amount_minor for line in rest), text, period)
    return [*(line for line in lines if line.key in kept), summed]


def unsendable(invoice: Invoice) -> str | None:
    """Why Stripe cannot take an invoice at all, and what to do; None if it can."""
    lines, money = stripe_lines(invoice), invoice.identity.money
    if len(lines) > LINES_MAX:
        return f"{len(lines)} lines of taxes, credits and carried amounts; Stripe takes {LINES_MAX}: ask for help"
    amounts = [invoice.amount_due_minor, *(line.amount_minor for line in lines)]
    largest = max(amounts, key=abs)
    if abs(to_stripe(largest, money)) > AMOUNT_MAX:
        amount = plain(from_minor(largest, money))
        return (
            f"{amount} {money.code} is more than Stripe takes in one amount (8 digits): collect this invoice outside"
            " Stripe, or bill its usage in shorter periods"
        )
    return None


def wanted_lines(invoice: Invoice) -> Counter[LineSeen]:
    """The lines that Stripe must have."""
    identity = invoice.identity
    return Counter(
        LineSeen(line.key, to_stripe(line.amount_minor, identity.money), identity.currency.lower())
        for line in stripe_lines(invoice)
    )


def told(line: LineSeen) -> str:
    """A line of Stripe's in words."""
    extra = " with a discount or tax of its own" if line.discounts or line.taxes else ""
    return f"{line.line_key or '(without key)'} {line.amount} {line.currency}{extra}"


def percent(rate: Decimal) -> str:
    """A rate as people write it: 0.19 is 19 %."""
    return f"{plain(rate.scaleb(2))} %"


def line_parameters(invoice: Invoice, line: StripeLine) -> dict[str, Any]:
    """A line as `add_lines` takes it: whole seconds, also of a service that lasted no second."""
    start, end = (timegm(at.utctimetuple()) for at in line.period)
    return {
        "amount": to_stripe(line.amount_minor, invoice.identity.money),
        "description": line.description,
        "discountable": False,
        "period": {"start": start, "end": max(start, end - PERIOD_END_IS_INCLUSIVE_S)},
        "metadata": {"line_key": line.key, **line.metadata},
    }


def _metadata(line: InvoiceLine) -> dict[str, str]:
    rated = line.rated
    return {
        "tenant_id": rated.identity.tenant_id,
        "quantity": plain(rated.quantity),
        **({} if rated.unit_price is None else {"unit_price": plain(rated.unit_price)}),
        "amount_exact": plain(rated.amount),
    }


def describe(line: InvoiceLine) -> str:
    """A line in words: what, how much, at which price."""
    rated = line.rated
    where = " ".join(value for value in rated.where if value)
    kind = rated.identity.kind
    named = rated.metric if kind in (LineKind.USAGE, LineKind.OVERAGE) else f"{rated.identity.charge_key} {kind}"
    text = f"{where + ': ' if where else ''}{named.replace('_', ' ')}"
    if rated.unit_price is not None:
        text += f", {plain(rated.quantity)} × {plain(rated.unit_price)} {rated.currency}"
    return text if len(text) <= DESCRIPTION_MAX else text[: DESCRIPTION_MAX - 1] + "…"
