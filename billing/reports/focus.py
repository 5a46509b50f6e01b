"""Documents as rows of FOCUS 1.2, the FinOps Open Cost and Usage Specification (https://focus.finops.org).

BilledCost is what a row adds to what its document asks for; EffectiveCost what the charge costs, whoever paid for it
and when. So usage that prepaid credit pays for has less BilledCost, down to 0; buying that credit costs nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from billing.bills.credit_application import grant_of
from billing.bills.credits import GrantKind
from billing.bills.tax import TaxMode
from billing.invoicing.invoices import Invoice, InvoiceKind, InvoiceLine
from billing.money import exactly, from_minor
from billing.periods import BillingPeriod
from billing.rating import LineKind
from billing.reports.report import Report, summed, table, ties

VERSION: Final = "1.2"
USAGE, PURCHASE, TAX, CREDIT, ADJUSTMENT = "Usage", "Purchase", "Tax", "Credit", "Adjustment"
CATEGORY_OF: Final[Mapping[str, str]] = {
    LineKind.USAGE: USAGE, LineKind.OVERAGE: USAGE, LineKind.FEE: PURCHASE, LineKind.PREPAID_FEE: PURCHASE,
    LineKind.UNUSED: PURCHASE, LineKind.TOP_UP: PURCHASE, LineKind.CREDIT: CREDIT,
}  # fmt: skip
"""What is here for no other reason (discount, minimum, maximum, true-up, fee of a tier) is an adjustment."""
RECURRING: Final = (LineKind.FEE, LineKind.PREPAID_FEE, LineKind.UNUSED)
UNIT_OF: Final = {"request": "Requests", "gpu_second": "GPU Seconds"}
TOKEN_METRICS: Final = ("input", "cached_input", "output", "total_tokens")
CORRECTING: Final = (InvoiceKind.CREDIT_NOTE, InvoiceKind.ADJUSTMENT)
COLUMNS: Final = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd",
    "ChargePeriodStart", "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice", "EffectiveCost",
    "InvoiceId", "InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory", "PricingQuantity", "PricingUnit",
    "ProviderName", "PublisherName", "RegionId", "RegionName", "ServiceCategory", "ServiceName", "ServiceSubcategory",
    "SkuId", "SkuMeter", "SkuPriceId", "SubAccountId", "SubAccountName", "x_Adapter", "x_DocumentId",
    "x_DocumentKind", "x_LineKey", "x_Model", "x_OriginalBillingPeriod", "x_PrepaidApplied", "x_Tier",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FocusDocument:
    """An issued document, who is on it, and the billing period that it is of."""

    invoice: Invoice
    billing_period: BillingPeriod
    number: str | None = None
    issuer: str = ""
    payer: str = ""


@dataclass(slots=True)
class _Charge:
    """A row in the making, in minor units: `net` before, `prepaid` and `reduced` what credit that was bought pays."""

    category: str
    net: int
    line: InvoiceLine | None = None
    description: str = ""
    prepaid: int = 0
    reduced: int = 0
    moved: int = 0
    """What its effective cost is more than its net: the fee that paid for it (or less, where it is such a fee)."""
    is_payment: bool = False

    @property
    def billed(self) -> int:
        """What it adds to what the document asks for."""
        return self.net - self.prepaid - self.reduced


def focus_report(documents: Iterable[FocusDocument]) -> Report:
    """The rows of documents, and whether they come to what these ask for, and to their net before tax."""
    rows: list[dict[str, Any]] = []
    asked, net, said_asked, said_net = [], [], [], []
    for each in documents:
        of, money = each.invoice, each.invoice.identity.money
        key = (of.identity.currency, each.number or str(of.invoice_id))
        charges = _charges(of)
        asked += [(key, from_minor(charge.billed, money)) for charge in charges]
        net += [
            (key, from_minor(charge.billed + charge.prepaid, money))
            for charge in charges
            if charge.category != TAX and not charge.is_payment
        ]
        said_asked.append((key, from_minor(of.receivable_minor, money)))
        said_net.append((key, from_minor(of.net_minor, money)))
        rows += [_row(each, charge) for charge in charges]
    return Report(
        "focus",
        table(rows, COLUMNS),
        (
            *ties("BilledCost = what the documents ask for", summed(asked), summed(said_asked)),
            *ties("before tax and prepaid credit = net of the documents", summed(net), summed(said_net)),
        ),
        (f"FOCUS {VERSION}; an amount carried from another document is in the rows of that one",),
    )


def apportioned(amount: int, weights: Mapping[int, int]) -> dict[int, int]:
    """An amount ≥ 0 in parts by weights > 0 that add up to it, each within one of its share and never above its weight
    as long as the amount is not above all of them."""
    whole, upto, before = sum(weights.values()), 0, 0
    found = {}
    for key, weight in weights.items():
        upto += weight
        after = amount * upto // whole
        found[key], before = after - before, after
    return found


def _charges(of: Invoice) -> list[_Charge]:
    within = _tax_within(of)
    bought = {credit.grant_id for credit in of.credits if credit.kind is GrantKind.PAID and not credit.pays}
    charges: list[_Charge] = []
    reductions: list[_Charge] = []
    for line in of.lines:
        charge = _Charge(
            CATEGORY_OF.get(line.rated.identity.kind, ADJUSTMENT), line.amount_minor - within[line.line_key], line
        )
        known = [credit.grant_id for credit in of.credits if not credit.pays]
        is_bought = charge.category == CREDIT and grant_of(line.rated, known) in bought
        (reductions if is_bought else charges).append(charge)
    for reduction in reductions:
        assert reduction.line is not None, "made of a line"
        group = reduction.line.tax_group
        usage = [c for c in charges if c.category == USAGE and c.line is not None and c.line.tax_group == group]
        left = _cover(usage, -reduction.net, "reduced")
        if left:
            reduction.net = -left
            charges.append(reduction)
    _move_prepaid_fees(charges)
    charges += [_Charge(TAX, row.tax_minor, description=f"Tax {row.group}") for row in of.taxes if row.tax_minor]
    for credit in of.credits:
        if not credit.pays:
            continue
        left = credit.amount_minor
        if credit.kind is GrantKind.PAID:
            left = _cover([c for c in charges if c.category in (USAGE, TAX)], left, "prepaid")
            left = _cover([c for c in charges if c.category != CREDIT], left, "prepaid")
        if left:
            charges.append(_Charge(CREDIT, -left, description=f"Credit {credit.grant_id}", is_payment=True))
    return charges


def _tax_within(of: Invoice) -> dict[str, int]:
    """By line, the part of its group's tax that its price contains."""
    found = {line.line_key: 0 for line in of.lines}
    if of.tax_mode is not TaxMode.INCLUSIVE:
        return found
    for row in of.taxes:
        lines = [line for line in of.lines if line.tax_group == row.group]
        whole, upto, before = sum(line.amount_minor for line in lines), 0, 0
        for line in lines:
            upto += line.amount_minor
            after = row.tax_minor * upto // whole if whole else row.tax_minor
            found[line.line_key], before = after - before, after
    return found


def _cover(charges: list[_Charge], amount: int, what: str) -> int:
    """Let credit that was bought pay an amount of some charges, in proportion; what is left of it.

    A negative amount gives back, of charges that are negative.
    """
    sign = -1 if amount < 0 else 1
    open_ = {at: sign * charge.billed for at, charge in enumerate(charges) if sign * charge.billed > 0}
    paid = min(abs(amount), sum(open_.values()))
    for at, part in (apportioned(paid, open_) if open_ else {}).items():
        setattr(charges[at], what, getattr(charges[at], what) + sign * part)
    return amount - sign * paid


def _move_prepaid_fees(charges: list[_Charge]) -> None:
    """A fee for included usage is effective cost of that usage, where the document has both; buying credit is none."""

    def of(charge: _Charge) -> tuple[object, ...] | None:
        if charge.line is None:
            return None
        identity = charge.line.rated.identity
        return identity.tenant_id, identity.charge_key, identity.segment_no, identity.version

    usage = {of(c): c for c in charges if c.line is not None and c.line.rated.identity.kind == LineKind.OVERAGE}
    for charge in charges:
        kind = None if charge.line is None else charge.line.rated.identity.kind
        if kind == LineKind.PREPAID_FEE and of(charge) in usage:
            usage[of(charge)].moved += charge.net
            charge.moved = -charge.net
        elif kind == LineKind.TOP_UP:
            charge.moved = -charge.net


def _row(document: FocusDocument, charge: _Charge) -> dict[str, Any]:
    of, line = document.invoice, charge.line
    identity, money = of.identity, of.identity.money
    effective = from_minor(charge.net + charge.moved, money)
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {
        "BilledCost": from_minor(charge.billed, money), "EffectiveCost": effective,
        "ContractedCost": effective, "ListCost": effective,
        "BillingAccountId": identity.billing_account, "BillingAccountName": document.payer,
        "BillingCurrency": identity.currency, "BillingPeriodStart": document.billing_period.start,
        "BillingPeriodEnd": document.billing_period.end, "ChargeCategory": charge.category,
        "ChargeClass": "Correction" if _corrects(of, line) else None, "ChargeDescription": charge.description,
        "ChargeFrequency": "One-Time", "ChargePeriodStart": identity.period.start,
        "ChargePeriodEnd": identity.period.end, "InvoiceId": document.number, "InvoiceIssuerName": document.issuer,
        "ProviderName": document.issuer, "PublisherName": document.issuer, "ServiceCategory": "AI and Machine Learning",
        "ServiceSubcategory": "Generative AI", "ServiceName": "LLM serving", "x_DocumentId": str(of.invoice_id),
        "x_DocumentKind": identity.kind.value,
        "x_PrepaidApplied": from_minor(charge.prepaid + charge.reduced, money),
    }  # fmt: skip
    return row if line is None else row | _of_line(of, charge, line, effective)


def _corrects(of: Invoice, line: InvoiceLine | None) -> bool:
    """Whether a row changes a billing period that was invoiced before."""
    return of.identity.kind in CORRECTING or (line is not None and line.original_period is not None)


def _of_line(of: Invoice, charge: _Charge, line: InvoiceLine, effective: Decimal) -> dict[str, Any]:
    rated, key = line.rated, line.rated.identity
    model, adapter, region, tier = rated.where
    tier_no = f"/t{key.tier_no}" if key.tier_no else ""
    found: dict[str, Any] = {
        "ChargeDescription": line.line_key, "ChargePeriodStart": rated.service_start,
        "ChargePeriodEnd": rated.service_end, "SubAccountId": key.tenant_id, "SubAccountName": key.tenant_id,
        "RegionId": region or None, "RegionName": region or None, "x_LineKey": line.line_key,
        "x_Model": model or None, "x_Adapter": adapter or None, "x_Tier": tier or None,
        "x_OriginalBillingPeriod": line.original_period and line.original_period.name,
    }  # fmt: skip
    if key.kind in RECURRING:
        found["ChargeFrequency"] = "Recurring"
    if charge.category not in (USAGE, PURCHASE):
        return found
    found |= {
        "PricingCategory": "Standard", "SkuId": key.charge_key, "SkuMeter": str(rated.metric) or None,
        "SkuPriceId": f"{key.plan}/{key.version}/{key.charge_key}{tier_no}",
    }  # fmt: skip
    if charge.category == PURCHASE:
        price = from_minor(charge.net, of.identity.money)
        return found | {
            "PricingQuantity": Decimal(1), "PricingUnit": "Units", "ContractedUnitPrice": price,
            "ListUnitPrice": price, "ContractedCost": price, "ListCost": price,
        }  # fmt: skip
    unit = "Tokens" if rated.metric in TOKEN_METRICS else UNIT_OF.get(rated.metric, "Units")
    in_packages = rated.units is not None
    found |= {
        "ChargeFrequency": "Usage-Based", "ConsumedQuantity": rated.counted, "ConsumedUnit": unit,
        "PricingQuantity": rated.quantity, "PricingUnit": "Packages" if in_packages else unit,
    }  # fmt: skip
    if rated.unit_price is not None and of.tax_mode is not TaxMode.INCLUSIVE:
        with exactly():
            cost = rated.unit_price * rated.quantity
        found |= {
            "ContractedUnitPrice": rated.unit_price, "ListUnitPrice": rated.unit_price, "ContractedCost": cost,
            "ListCost": cost,
        }  # fmt: skip
    return found
