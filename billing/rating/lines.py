"""Rated lines: the finest lines of a bill (docs/spec/money.md 13.1), and the keys that order them."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from billing.money import ZERO, exactly
from billing.plans.price_plans import DEFAULT_TAX_GROUP


class LineKind(StrEnum):
    """What a line is for."""

    USAGE = "usage"
    TIER_FEE = "tier_fee"
    OVERAGE = "overage"
    FEE = "fee"
    PREPAID_FEE = "prepaid_fee"
    UNUSED = "unused"
    DISCOUNT = "discount"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    INVOICE_DISCOUNT = "invoice_discount"
    TRUE_UP = "true_up"
    CREDIT = "credit"
    TOP_UP = "top_up"


_SUFFIX: Mapping[str, str] = {
    LineKind.TIER_FEE: ".fee",
    LineKind.PREPAID_FEE: ".fee",
    LineKind.OVERAGE: ".overage",
    LineKind.DISCOUNT: ".discount",
    LineKind.MINIMUM: ".minimum",
    LineKind.MAXIMUM: ".maximum",
    LineKind.UNUSED: ".unused",
}


@dataclass(frozen=True, slots=True, order=True)
class LineIdentity:
    """The finest line: charge × subscription segment × price version × tier × kind.

    What belongs to the whole period (minimum, maximum, true-up, invoice discount, credit) has segment 0; its version is
    the last one of the period, and no part of its key. The invoice discount on fees in advance is of each fee.
    """

    tenant_id: str
    charge_key: str
    segment_no: int
    version: str
    tier_no: int
    kind: str
    plan: str
    subscription_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class RatedLine:
    """What one line costs, exact to 10⁻¹² major units: quantity (billed units) × unit price where it has one.

    As a difference the quantity and the amount may be negative. `where` = the charge's model, adapter, region and
    tier, '' where it takes any. `units` are those behind packages; `free` and `included` those that cost nothing by
    an allowance and by a prepaid quantity. Where prorated tiers split a unit these are quantised at 10⁻¹² so that they
    add up to what was counted, and `split` holds quantity and free units exactly. `reason` says why in words.
    """

    identity: LineIdentity
    metric: str
    where: tuple[str, str, str, str]
    billing_account: str
    currency: str
    service_start: datetime
    service_end: datetime
    unit_price: Decimal | None
    quantity: Decimal
    amount: Decimal
    reason: str
    tax_group: str = DEFAULT_TAX_GROUP
    units: Decimal | None = None
    free: Decimal = ZERO
    included: Decimal | None = None
    split: tuple[Fraction, Fraction] | None = field(default=None, compare=False)

    @property
    def counted(self) -> Decimal:
        """Units of the metric that the line stands for, billed or free."""
        with exactly():
            if self.units is not None:
                return self.units
            if self.identity.kind in (LineKind.USAGE, LineKind.OVERAGE):
                return self.quantity + self.free + (self.included or ZERO)
            return ZERO


@dataclass(frozen=True, slots=True)
class Naming:
    """What tells the lines of a document apart: each part of a key stands only where it does.

    `segments` counts a tenant's subscription segments in the period, `versions` the price versions of a plan.
    """

    segments: Mapping[str, int]
    versions: Mapping[str, int]

    def key(self, of: LineIdentity) -> str:
        """`charge[.sN][.version][.tN][.kind][@tenant]`. Ties of rounding follow its bytes."""
        key = of.charge_key
        if of.segment_no:
            key += f".s{of.segment_no}" if self.segments.get(of.tenant_id, 1) > 1 else ""
            key += f".{of.version}" if self.versions.get(of.plan, 1) > 1 else ""
        key += f".t{of.tier_no}" if of.tier_no else ""
        of_charge = of.kind == LineKind.INVOICE_DISCOUNT and of.segment_no
        key += f".{of.kind}" if of_charge else _SUFFIX.get(of.kind, "")
        return key + (f"@{of.tenant_id}" if len(self.segments) > 1 else "")


def segments_of(lines: Iterable[RatedLine]) -> dict[str, int]:
    """The highest number of a subscription segment by tenant."""
    found: dict[str, int] = {}
    for line in lines:
        tenant = line.identity.tenant_id
        found[tenant] = max(found.get(tenant, 0), line.identity.segment_no)
    return found


def fees_by_key(lines: Iterable[RatedLine]) -> dict[str, Decimal]:
    """What fees come to with their discounts, by the key that a credit covers them under: a prepaid fee is not its
    charge. Lines of credit are none."""
    lines = [line for line in lines if line.identity.kind != LineKind.CREDIT]

    def of(line: RatedLine) -> tuple[str, ...]:
        identity = line.identity
        return identity.tenant_id, identity.plan, identity.version, identity.charge_key

    prepaid = {of(line) for line in lines if line.identity.kind == LineKind.PREPAID_FEE}
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for line in lines:
            key = line.identity.charge_key
            found[f"{key}.fee" if of(line) in prepaid else key] += line.amount
    return dict(found)
