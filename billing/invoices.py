"""Invoices as documents: identity, lines, the one rounding, and the states of their life (docs/spec/money.md 1, 5)."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from typing import Final

from billing.errors import CurrencyMismatch, IllegalTransition
from billing.money import (
    ZERO,
    Currency,
    Rounding,
    currency,
    exactly,
    plain,
    round_to_quantum,
    spread,
    to_minor,
    total,
)
from billing.periods import BillingPeriod
from billing.price_plans import DEFAULT_TAX_GROUP
from billing.rating import Naming, RatedLine, net, segments_of

_INVOICE: Final = uuid.UUID("0d3c9c0a-6f5f-5c57-8f0e-0c6b0f5f4a57")
INVOICED: Final = "invoiced"
"""The reason of a line on an invoice: the sum of what was posted, whatever the reasons of that."""


class InvoiceKind(StrEnum):
    """What an invoice is for (docs/spec/money.md 1)."""

    USAGE = "usage"
    ADVANCE = "advance"
    TOP_UP = "top_up"
    ONE_OFF = "one_off"
    FINAL = "final"
    ADJUSTMENT = "adjustment"


@dataclass(frozen=True, slots=True)
class InvoiceIdentity:
    """What makes an invoice the one it is: there is one invoice per identity, ever."""

    legal_entity: str
    billing_account: str
    kind: InvoiceKind
    period: BillingPeriod
    currency: str
    revision: int = 0

    @property
    def invoice_id(self) -> uuid.UUID:
        """The id that follows from the identity."""
        parts = [
            self.legal_entity,
            self.billing_account,
            self.kind.value,
            self.period.start.isoformat(),
            self.period.end.isoformat(),
            self.currency,
            self.revision,
        ]
        return uuid.uuid5(_INVOICE, json.dumps(parts, separators=(",", ":")))

    @property
    def money(self) -> Currency:
        """The currency as it is when the period ends."""
        return currency(self.currency, self.period.end.date())


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """A rated line on an invoice: its key there, and its amount rounded, in minor units."""

    line_key: str
    rated: RatedLine
    amount_minor: int
    original_period: str | None = None
    tax_group: str = DEFAULT_TAX_GROUP


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice's content. Minor amounts are integers; `exact_total`, `rounding` (= exact − rounded) major units."""

    identity: InvoiceIdentity
    lines: tuple[InvoiceLine, ...]
    exact_total: Decimal
    rounding: Decimal
    net_minor: int
    tax_minor: int
    total_minor: int
    amount_due_minor: int

    @property
    def invoice_id(self) -> uuid.UUID:
        """The id that follows from the identity."""
        return self.identity.invoice_id

    @property
    def lines_hash(self) -> str:
        """SHA-256 of the lines, in hex: equal hashes mean an equal document."""
        content = [
            [line.line_key, plain(line.rated.quantity), plain(line.rated.unit_price or ZERO), plain(line.rated.amount),
             line.amount_minor, line.tax_group, line.original_period]
            for line in self.lines
        ]  # fmt: skip
        return hashlib.sha256(b"tollbook.invoice_lines.v1\n" + json.dumps(content).encode()).hexdigest()


def draw_up(
    identity: InvoiceIdentity,
    posted: Iterable[RatedLine],
    *,
    plan_versions: Mapping[str, int],
    rounding: Rounding = Rounding.HALF_EVEN,
) -> Invoice:
    """The invoice over posted rated lines: net rounded once, then spread over the lines (docs/spec/money.md 5).

    `plan_versions` says how many versions each plan has, for the line keys. There is no tax yet: total = net = due.
    """
    lines = [replace(line, reason=INVOICED) for line in net(posted).values()]
    for line in lines:
        if line.currency != identity.currency:
            raise CurrencyMismatch(f"a line in {line.currency} on an invoice in {identity.currency}")
    named = _named(lines, plan_versions)
    money = identity.money
    exact_total = total(line.amount for line in lines)
    rounded = round_to_quantum(exact_total, money.quantum, rounding)
    shares = spread(rounded, {key: line.amount for key, line in named.items()}, money.quantum)
    with exactly():
        residue = exact_total - rounded
    net_minor = to_minor(rounded, money)
    return Invoice(
        identity=identity,
        lines=tuple(
            InvoiceLine(key, named[key], to_minor(shares[key], money), tax_group=named[key].tax_group)
            for key in sorted(named, key=str.encode)
        ),
        exact_total=exact_total,
        rounding=residue,
        net_minor=net_minor,
        tax_minor=0,
        total_minor=net_minor,
        amount_due_minor=net_minor,
    )


def _named(lines: list[RatedLine], plan_versions: Mapping[str, int]) -> dict[str, RatedLine]:
    naming = Naming(segments_of(lines), plan_versions)
    named: dict[str, RatedLine] = {}
    for line in lines:
        key = naming.key(line.identity)
        assert key not in named, f"two lines have the key {key}"
        named[key] = line
    return named


class InvoiceState(StrEnum):
    """Where an invoice is in its life. A preview is never stored."""

    PREVIEW = "preview"
    DRAFT = "draft"
    APPROVED = "approved"
    FINALIZED = "finalized"
    PAID = "paid"
    VOID = "void"
    UNCOLLECTIBLE = "uncollectible"
    ZERO = "zero"
    CARRIED_BELOW_MINIMUM = "carried_below_minimum"


class InvoiceEvent(StrEnum):
    """What can happen to an invoice."""

    APPROVE = "approve"
    FINALIZE = "finalize"
    SETTLE_AS_ZERO = "settle_as_zero"
    CARRY = "carry"
    PAY = "pay"
    VOID = "void"
    GIVE_UP = "give_up"


_NEXT: Final = {
    (InvoiceState.DRAFT, InvoiceEvent.APPROVE): InvoiceState.APPROVED,
    (InvoiceState.DRAFT, InvoiceEvent.SETTLE_AS_ZERO): InvoiceState.ZERO,
    (InvoiceState.DRAFT, InvoiceEvent.CARRY): InvoiceState.CARRIED_BELOW_MINIMUM,
    (InvoiceState.APPROVED, InvoiceEvent.FINALIZE): InvoiceState.FINALIZED,
    (InvoiceState.FINALIZED, InvoiceEvent.PAY): InvoiceState.PAID,
    (InvoiceState.FINALIZED, InvoiceEvent.VOID): InvoiceState.VOID,
    (InvoiceState.FINALIZED, InvoiceEvent.GIVE_UP): InvoiceState.UNCOLLECTIBLE,
    (InvoiceState.UNCOLLECTIBLE, InvoiceEvent.PAY): InvoiceState.PAID,
    (InvoiceState.UNCOLLECTIBLE, InvoiceEvent.VOID): InvoiceState.VOID,
}


def after(state: InvoiceState, event: InvoiceEvent) -> InvoiceState:
    """The state that an event leads to: the one place that knows. Raises IllegalTransition."""
    try:
        return _NEXT[state, event]
    except KeyError:
        raise IllegalTransition(f"an invoice that is {state} cannot {event}") from None


def settled_locally(invoice: Invoice) -> InvoiceEvent | None:
    """Why an invoice is never sent (docs/spec/money.md 10): zero, or below what Stripe charges. None if it is sent.

    An amount equal to the minimum is not below it (13.16).
    """
    if invoice.amount_due_minor == 0:
        return InvoiceEvent.SETTLE_AS_ZERO
    minimum = invoice.identity.money.stripe_minimum
    if minimum is not None and invoice.amount_due_minor < minimum:
        return InvoiceEvent.CARRY
    return None
