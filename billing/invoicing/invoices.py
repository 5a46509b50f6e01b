"""Invoices as documents: identity, lines, and the one rounding (docs/spec/money.md 1, 5)."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from typing import Final

from billing.bills import documents
from billing.bills.credit_application import grant_of, price_reductions
from billing.bills.credits import Grant, GrantKind, TaxTreatment, reduces_price
from billing.bills.documents import Document, DocumentKind, PaidByCredit, Payer
from billing.bills.late_usage import Waiting, dated_key, plain_group
from billing.bills.payment_credits import paid_by_credits
from billing.bills.tax import NO_TAX, TaxMode, TaxRow, TaxRules
from billing.errors import CurrencyMismatch
from billing.money import ZERO, Currency, Rounding, currency, exactly, from_minor, plain, total
from billing.periods import BillingPeriod
from billing.plans.price_plans import DEFAULT_TAX_GROUP
from billing.rating import LineKind, Naming, RatedLine, net, segments_of
from billing.rating.period import Coverable

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
    CREDIT_NOTE = "credit_note"


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
    """A rated line on an invoice: its key there, and its amount rounded, in minor units.

    `original_period`: where it changes what was billed of an earlier one. `tax_group` is the line's own, or one of its
    period's rates where these have changed since.
    """

    line_key: str
    rated: RatedLine
    amount_minor: int
    original_period: BillingPeriod | None = None
    tax_group: str = DEFAULT_TAX_GROUP


@dataclass(frozen=True, slots=True)
class CreditUsed:
    """What an invoice draws of a grant: exact, and on the document in minor units; negative where it gives back.

    `left` is what is left of the grant then, in major units.
    """

    grant_id: str
    kind: GrantKind
    treatment: TaxTreatment
    amount: Decimal
    amount_minor: int
    left: Decimal

    @property
    def pays(self) -> bool:
        """Whether it pays of the total; else it is among the lines, before tax."""
        return self.treatment is TaxTreatment.PAYMENT


@dataclass(frozen=True, slots=True)
class CarriedIn:
    """What an earlier invoice below the minimum left to this one, in minor units; it keeps its own tax (13.16)."""

    invoice_id: uuid.UUID
    number: str
    amount_minor: int


@dataclass(frozen=True, slots=True)
class AccountCredits:
    """What grants can give for an account's usage or fees: `left` of each in major units, what they can cover, and the
    line whose names and time lines of credit have.

    `carried` is what late usage on the same document draws of each; it is no longer in `left`.
    """

    grants: Sequence[Grant] = ()
    left: Mapping[str, Decimal] = field(default_factory=dict)
    coverable: Sequence[Coverable] = ()
    like: RatedLine | None = None
    carried: Mapping[str, Decimal] = field(default_factory=dict)

    def left_before(self, grant_id: str) -> Decimal:
        """What is left of a grant before the whole document."""
        with exactly():
            return self.left[grant_id] + self.carried.get(grant_id, ZERO)


NO_CREDITS: Final = AccountCredits()


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice's content. Minor amounts are integers; `exact_total`, `rounding` (= exact − rounded) major units.

    Due is the total, less what credits pay and what was received before, with what is carried in. A credit note is one
    whose amounts are negative; `credits_invoice_id` is what it takes back from.
    """

    identity: InvoiceIdentity
    lines: tuple[InvoiceLine, ...]
    exact_total: Decimal
    rounding: Decimal
    net_minor: int
    tax_minor: int
    total_minor: int
    amount_due_minor: int
    tax_mode: TaxMode = TaxMode.NONE
    taxes: tuple[TaxRow, ...] = ()
    credits: tuple[CreditUsed, ...] = ()
    carried: tuple[CarriedIn, ...] = ()
    credits_invoice_id: uuid.UUID | None = None

    @property
    def invoice_id(self) -> uuid.UUID:
        """The id that follows from the identity."""
        return self.identity.invoice_id

    @property
    def in_advance(self) -> bool:
        """Whether its lines are fees in advance, or what is taken back of such: what is deferred until it is earned.

        A credit note over usage has lines of an earlier period alone, one over an amount only credits.
        """
        if self.identity.kind is InvoiceKind.CREDIT_NOTE:
            fees = any(line.rated.identity.kind != LineKind.CREDIT for line in self.lines)
            return fees and all(line.original_period is None for line in self.lines)
        return self.identity.kind is InvoiceKind.ADVANCE

    @property
    def rated_totals(self) -> dict[BillingPeriod, Decimal]:
        """The exact sum of what was rated of each period, before credits."""
        sums: dict[BillingPeriod, list[Decimal]] = defaultdict(list)
        for line in self.lines:
            if line.rated.identity.kind != LineKind.CREDIT:
                sums[line.original_period or self.identity.period].append(line.rated.amount)
        return {period: total(amounts) for period, amounts in sums.items()}

    @property
    def receivable_minor(self) -> int:
        """What the payer owes for this document alone: its total, less what credits pay of it."""
        return self.total_minor - sum(each.amount_minor for each in self.credits if each.pays)

    @property
    def received_minor(self) -> int:
        """What was paid before it was issued: of an invoice for prepaid credit what is not due."""
        return self.total_minor - self.amount_due_minor if self.identity.kind is InvoiceKind.TOP_UP else 0

    @property
    def lines_hash(self) -> str:
        """SHA-256 of the lines, taxes, credits and what is carried in, in hex: equal hashes mean an equal document."""
        content: list[list[object]] = [
            [line.line_key, plain(line.rated.quantity), plain(line.rated.unit_price or ZERO), plain(line.rated.amount),
             line.amount_minor, line.tax_group, line.original_period and line.original_period.name]
            for line in self.lines
        ]  # fmt: skip
        content += [["tax", self.tax_mode, r.group, plain(r.rate), r.base_minor, r.tax_minor] for r in self.taxes]
        content += [
            ["credit", c.grant_id, c.kind, c.treatment, plain(c.amount), c.amount_minor, plain(c.left)]
            for c in self.credits
        ]
        content += [["carried", str(c.invoice_id), c.number, c.amount_minor] for c in self.carried]
        content += [["credits", str(self.credits_invoice_id)]] if self.credits_invoice_id else []
        return hashlib.sha256(b"tollbook.invoice_lines.v1\n" + json.dumps(content).encode()).hexdigest()


def draw_up(
    identity: InvoiceIdentity,
    posted: Iterable[RatedLine],
    *,
    plan_versions: Mapping[str, int],
    rounding: Rounding = Rounding.HALF_EVEN,
    tax: TaxRules = NO_TAX,
    credits: AccountCredits = NO_CREDITS,
    carried: Sequence[CarriedIn] = (),
    late: Sequence[Waiting] = (),
) -> Invoice:
    """The invoice over posted rated lines, in the order of docs/spec/money.md 3 from the price reductions on.

    `plan_versions` says how many versions each plan has, for the line keys; `late` is what it carries of earlier
    periods, `left` of the credits what that leaves. Raises CurrencyMismatch, UnknownTaxGroup.
    """
    reduced = price_reductions(credits.coverable, credits.grants, credits.left, credits.like)
    own = [replace(line, reason=INVOICED) for line in (*net(posted).values(), *reduced.lines)]
    lines = _named(own, plan_versions)
    original: dict[str, BillingPeriod] = {}
    open_ = list(reduced.open)
    for waiting in sorted(late, key=lambda waiting: waiting.period):
        dated = waiting.dated(tax)
        tax = dated.tax
        open_ += dated.open
        for key, line in dated.lines.items():
            key = key if key not in lines else dated_key(key, waiting.period)
            lines[key], original[key] = replace(line, reason=INVOICED), waiting.period
    for line in lines.values():
        if line.currency != identity.currency:
            raise CurrencyMismatch(f"a line in {line.currency} on an invoice in {identity.currency}")
    payer = Payer(identity.money, tax, rounding)
    document = documents.draw_up(DocumentKind.USAGE, identity.period, lines, payer)
    paying = [grant for grant in credits.grants if not reduces_price(grant)]
    paid = paid_by_credits(document, open_, paying, credits.left, {}, payer)
    document = documents.settle(document, paid, sum(each.amount_minor for each in carried), payer)
    return invoice_of(document, identity, original, tax=tax, credits=credits, carried=carried)


def credit_note(
    identity: InvoiceIdentity,
    original: uuid.UUID,
    document: Document,
    *,
    tax: TaxRules,
    credits: AccountCredits = NO_CREDITS,
) -> Invoice:
    """A credit note against an invoice, from the document that says what it takes back of that invoice's period."""
    periods = {line.key: identity.period for line in document.lines}
    made = invoice_of(document, identity, periods, tax=tax, credits=credits)
    return replace(made, credits_invoice_id=original)


def invoice_of(
    document: Document,
    identity: InvoiceIdentity,
    original: Mapping[str, BillingPeriod],
    *,
    tax: TaxRules,
    credits: AccountCredits,
    carried: Sequence[CarriedIn] = (),
) -> Invoice:
    """A document as the invoice of an identity. `original`: by key the earlier period of the lines that change one."""
    lines = []
    for line in document.lines:
        rated = replace(line.rated, tax_group=plain_group(line.rated.tax_group))
        lines.append(InvoiceLine(line.key, rated, line.amount_minor, original.get(line.key), line.rated.tax_group))
    return Invoice(
        identity=identity,
        lines=tuple(lines),
        exact_total=document.exact_total,
        rounding=document.residue,
        net_minor=document.net_minor,
        tax_minor=sum(row.tax_minor for row in document.taxes),
        total_minor=document.total_minor,
        amount_due_minor=document.due_minor,
        tax_mode=tax.mode,
        taxes=document.taxes if tax.mode is not TaxMode.NONE else (),
        credits=_credits_used(lines, document.paid, credits, identity.money),
        carried=tuple(carried),
    )


def _credits_used(
    lines: Iterable[InvoiceLine], paid: Iterable[PaidByCredit], credits: AccountCredits, money: Currency
) -> tuple[CreditUsed, ...]:
    """What the lines of price reductions and the payments draw of each grant."""
    used: dict[str, tuple[Decimal, int]] = {}
    grant_ids = {grant.grant_id for grant in credits.grants}
    for line in lines:
        if line.rated.identity.kind == LineKind.CREDIT:
            grant_id = grant_of(line.rated, grant_ids)
            amount, minor = used.get(grant_id, (ZERO, 0))
            with exactly():
                used[grant_id] = amount - line.rated.amount, minor - line.amount_minor
    used |= {each.grant_id: (from_minor(each.used_minor, money), each.used_minor) for each in paid}
    found = []
    for grant in sorted(credits.grants, key=lambda grant: grant.grant_id):
        if grant.grant_id in used:
            amount, minor = used[grant.grant_id]
            with exactly():
                left = credits.left_before(grant.grant_id) - amount
            found.append(CreditUsed(grant.grant_id, grant.kind, grant.treatment, amount, minor, left))
    return tuple(found)


def _named(lines: list[RatedLine], plan_versions: Mapping[str, int]) -> dict[str, RatedLine]:
    naming = Naming(segments_of(lines), plan_versions)
    named: dict[str, RatedLine] = {}
    for line in lines:
        key = naming.key(line.identity)
        assert key not in named, f"two lines have the key {key}"
        named[key] = line
    return named
