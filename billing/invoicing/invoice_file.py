"""An invoice as a document by itself: what `invoice show --json` prints, read back and typed. No database."""

from __future__ import annotations

import uuid
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import msgspec

from billing.bills.tax import TaxMode
from billing.errors import BillingError, DocumentRefused
from billing.invoicing.invoice_states import InvoiceState
from billing.invoicing.invoices import InvoiceIdentity, InvoiceKind
from billing.invoicing.parties import Party
from billing.money import Currency, currency, parse_decimal
from billing.periods import BillingPeriod, parse_period
from billing.rating import LineKind
from billing.usage.usage_digest import TenantUsage

NOT_FINITE = "n/d"


class LineFile(msgspec.Struct, frozen=True, kw_only=True):
    """A line. `quantity`, `unit_price` are decimals as text, or n/d where none ends; `amount` is minor units."""

    line_key: str
    kind: LineKind
    tenant_id: str
    model: str
    adapter: str
    region: str
    tier: str
    token_class: str
    plan: str
    charge: str
    segment: int
    tier_no: int
    price_version: str
    service_period: str
    original_period: str
    counted: str
    quantity: str
    unit_price: str | None
    amount_exact: Decimal
    amount: int
    tax_group: str


class TaxFile(msgspec.Struct, frozen=True, kw_only=True):
    """The tax of a group. `base` (net) and `amount` are minor units, `rate` 0.19 for 19 %; modes: `bills/tax.py`."""

    tax_group: str
    mode: TaxMode
    rate: Decimal
    base: int
    amount: int

    @property
    def inclusive(self) -> bool:
        """Whether the group's lines contain the tax."""
        return self.mode is TaxMode.INCLUSIVE


class CreditFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a grant gives, in minor units, negative where it gets back: it pays of the total, or is among the lines.

    `left` is what is left of it then, in major units; None in documents that do not say so.
    """

    credit_id: str
    amount: int
    kind: str = ""
    pays: bool = True
    left: Decimal | None = None


class OriginalFile(msgspec.Struct, frozen=True, kw_only=True):
    """The invoice that a credit note takes back from."""

    number: str | None
    issue_date: date | None


class UsageFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant's billed events come to (docs/usage-digest.md)."""

    tenant_id: str
    events: int
    requests: int
    input_tokens: int
    cache_hit_tokens: int
    output_tokens: int
    gpu_us: int
    root: str


class InvoiceFile(msgspec.Struct, frozen=True, kw_only=True):
    """The whole document. Minor amounts are integers; `exact_total` and `rounding` major units."""

    invoice_id: str
    number: str | None
    legal_entity: str
    billing_account: str
    kind: InvoiceKind
    service_start: datetime
    service_end: datetime
    revision: int
    currency: str
    state: InvoiceState
    issue_date: date | None
    due_date: date | None
    payment_terms_days: int
    seller: Party
    buyer: Party
    lines: list[LineFile]
    net: int
    tax_mode: TaxMode
    tax: list[TaxFile]
    credits: list[CreditFile]
    total: int
    amount_due: int
    exact_total: Decimal
    rounding: Decimal
    received: int = 0
    carried_in: int = 0
    credits_invoice: OriginalFile | None = None
    usage_digest: str | None = None
    usage: list[UsageFile] | None = None

    @property
    def money(self) -> Currency:
        """Its currency as of the end of the service period."""
        return currency(self.currency, self.service_end.date())

    @property
    def identity(self) -> InvoiceIdentity:
        """What makes it the invoice it is."""
        period = BillingPeriod(self.service_start, self.service_end)
        return InvoiceIdentity(
            self.legal_entity, self.billing_account, self.kind, period, self.currency, self.revision
        )  # fmt: skip

    @property
    def is_credit_note(self) -> bool:
        """Whether it takes back what another document billed; its amounts are negative."""
        return self.kind is InvoiceKind.CREDIT_NOTE

    @property
    def payments(self) -> list[CreditFile]:
        """What grants pay of the total; the others are among the lines."""
        return [credit for credit in self.credits if credit.pays]

    @property
    def tenants(self) -> list[TenantUsage] | None:
        """What its tenants' events come to, if it says so."""
        if self.usage is None:
            return None
        return [
            TenantUsage(u.tenant_id, u.events, u.requests, u.input_tokens, u.cache_hit_tokens, u.output_tokens,
                        u.gpu_us, bytes.fromhex(u.root))
            for u in self.usage
        ]  # fmt: skip


def invoice_file(document: dict[str, Any]) -> InvoiceFile:
    """A document made here, typed."""
    return _checked(msgspec.convert(document, InvoiceFile))


def read_invoice_file(content: bytes) -> InvoiceFile:
    """The document in a file. Raises DocumentRefused, which names the field."""
    try:
        return _checked(msgspec.json.decode(content, type=InvoiceFile))
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, BillingError) as error:
        raise DocumentRefused(f"this is no invoice document: {error}") from None


def number_of(text: str) -> Decimal | None:
    """A quantity or price of a line; None where it does not end as a decimal."""
    return None if text == NOT_FINITE else parse_decimal(text, decimals=40)


def _checked(found: InvoiceFile) -> InvoiceFile:
    """Read what is read only when it is asked for, so that a file is refused as a whole."""
    uuid.UUID(found.invoice_id)
    found.money, found.identity, found.tenants  # noqa: B018
    for line in found.lines:
        parse_period(line.original_period)
        for text in (line.quantity, line.counted, line.unit_price or "0"):
            number_of(text)
    return found
