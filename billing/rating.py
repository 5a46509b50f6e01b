"""Rating: what usage costs (docs/spec/money.md 2 to 4), and what of it is not yet posted. Values in, values out."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from billing.errors import AmountTooLarge, NegativeUsage
from billing.money import ZERO, exactly, plain, price_of, total
from billing.price_plans import Charge, Metric, PlanVersion
from billing.subscriptions import Piece
from streams.windows import UsageQuantity

GPU_MICROSECOND: Final = Decimal("0.000001")
FREE_FAULT: Final = "platform"
NEVER_BILLED_SOURCE: Final = "estimate"
NEVER_BILLED_STATUS: Final = "lost"
AMOUNT_MAX: Final = Decimal(10) ** 12
"""Major units per tenant and period. Beyond it a price is mistaken; thousands of such tenants on one account still fit
the minor units of an invoice (a bigint) and the 18 digits of a posting."""


@dataclass(frozen=True, slots=True, order=True)
class LineIdentity:
    """The finest line (docs/spec/money.md 13.1): charge × subscription segment × price version × tier × kind."""

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
    """What one line costs: quantity (units of the metric) × unit price = amount, exact to 10⁻¹² major units.

    As a difference the quantity and the amount may be negative. `where` = the charge's model, adapter, region and
    tier, '' where it takes any. `reason` says why in words.
    """

    identity: LineIdentity
    metric: Metric
    where: tuple[str, str, str, str]
    billing_account: str
    currency: str
    service_start: datetime
    service_end: datetime
    unit_price: Decimal
    quantity: Decimal
    amount: Decimal
    reason: str


@dataclass(frozen=True, slots=True, order=True)
class UnpricedUsage:
    """Billable usage that no charge of the version in force takes."""

    tenant_id: str
    model: str
    metric: str
    quantity: str
    plan: str
    version: str

    def __str__(self) -> str:
        return (
            f"tenant {self.tenant_id}: {self.quantity} {self.metric} of model {self.model} have no price"
            f" in plan {self.plan} version {self.version}"
        )


@dataclass(frozen=True, slots=True)
class Rating:
    """A tenant's period, rated. Lines hold only if nothing is unpriced."""

    lines: tuple[RatedLine, ...]
    unpriced: tuple[UnpricedUsage, ...]

    @property
    def amount(self) -> Decimal:
        """The exact sum of the lines."""
        return total(line.amount for line in self.lines)


def is_billable(usage: UsageQuantity, bill_statuses: Sequence[str]) -> bool:
    """Whether usage bills at all (docs/spec/money.md 2): by status, never the platform's own faults or estimates."""
    return (
        usage.status in bill_statuses
        and usage.status != NEVER_BILLED_STATUS
        and usage.fault != FREE_FAULT
        and usage.usage_source != NEVER_BILLED_SOURCE
        and not usage.tenant_id.startswith("_")
    )


def quantities(usage: UsageQuantity) -> dict[Metric, Decimal]:
    """Usage by metric: tokens, requests, and seconds of GPU time. Raises NegativeUsage."""
    with exactly():
        counted = {
            Metric.INPUT: Decimal(usage.input_tokens - usage.cache_hit_tokens),
            Metric.CACHED_INPUT: Decimal(usage.cache_hit_tokens),
            Metric.OUTPUT: Decimal(usage.output_tokens),
            Metric.TOTAL_TOKENS: Decimal(usage.input_tokens + usage.output_tokens),
            Metric.REQUEST: Decimal(usage.requests),
            Metric.GPU_SECOND: usage.gpu_us * GPU_MICROSECOND,
        }
    for metric, quantity in counted.items():
        if quantity < 0:
            raise NegativeUsage(
                f"tenant {usage.tenant_id}, model {usage.model}: {plain(quantity)} {metric}: rebuild the windows"
            )
    return counted


def rate(usage_of_pieces: Iterable[tuple[Piece, Iterable[UsageQuantity]]]) -> Rating:
    """Rate one tenant's period: each piece with the usage completed in it.

    Neither the order of the usage nor how it is split into quantities changes the result. Raises NegativeUsage,
    AmountTooLarge.
    """
    lines: list[RatedLine] = []
    unpriced: dict[tuple[str, str, Metric, str, str], Decimal] = defaultdict(lambda: ZERO)
    for piece, usages in usage_of_pieces:
        per_charge: dict[Charge, Decimal] = defaultdict(lambda: ZERO)
        for usage in usages:
            if not is_billable(usage, piece.subscription.bill_statuses):
                continue
            priced, missing = _priced(piece.version, usage)
            with exactly():
                for charge, quantity in priced:
                    per_charge[charge] += quantity
                for metric, quantity in missing:
                    unpriced[usage.tenant_id, usage.model, metric, piece.version.plan, piece.version.version] += (
                        quantity
                    )
        lines += [_line(piece, charge, quantity) for charge, quantity in per_charge.items() if quantity]
    lines.sort(key=lambda line: line.identity)
    if (amount := total(line.amount for line in lines)) > AMOUNT_MAX:
        raise AmountTooLarge(
            f"tenant {lines[0].identity.tenant_id}: its usage comes to {plain(amount)} {lines[0].currency}, more than"
            f" {plain(AMOUNT_MAX)}: look at the prices of plan {lines[0].identity.plan}"
        )
    return Rating(
        tuple(lines),
        tuple(
            sorted(
                UnpricedUsage(tenant, model, metric.value, plain(quantity), plan, version)
                for (tenant, model, metric, plan, version), quantity in unpriced.items()
            )
        ),
    )


def difference(target: Iterable[RatedLine], posted: Iterable[RatedLine]) -> tuple[RatedLine, ...]:
    """What must be posted so that the posted lines come to the target (docs/spec/money.md 4).

    Same unit price: the difference in quantity and amount. Another unit price, or usage that is gone: the reversal
    of what was posted, and a line of its own at the new price. Nothing if they agree.
    """
    wanted = {(line.identity, line.unit_price): line for line in target}
    before = net(posted)
    found: list[RatedLine] = []
    for key in sorted(wanted.keys() | before.keys()):
        new, old = wanted.get(key), before.get(key)
        if new is None:
            assert old is not None, "a key is from one of the two"
            repriced = any(identity == key[0] for identity, _ in wanted)
            reason = "reversal: priced otherwise now" if repriced else "reversal: no such usage now"
            found.append(replace(old, quantity=-old.quantity, amount=-old.amount, reason=reason))
        elif old is None:
            found.append(new)
        elif (new.quantity, new.amount) != (old.quantity, old.amount):
            with exactly():
                quantity, amount = new.quantity - old.quantity, new.amount - old.amount
            reason = "more usage" if quantity > 0 else "less usage"
            found.append(replace(new, quantity=quantity, amount=amount, reason=reason))
    return tuple(found)


def net(posted: Iterable[RatedLine]) -> Mapping[tuple[LineIdentity, Decimal], RatedLine]:
    """Posted lines summed per identity and unit price; those that come to nothing are left out."""
    sums: dict[tuple[LineIdentity, Decimal], RatedLine] = {}
    with exactly():
        for line in posted:
            key = (line.identity, line.unit_price)
            old = sums.get(key)
            sums[key] = (
                line
                if old is None
                else replace(line, quantity=old.quantity + line.quantity, amount=old.amount + line.amount)
            )
    return {key: line for key, line in sums.items() if line.quantity or line.amount}


def _priced(
    version: PlanVersion, usage: UsageQuantity
) -> tuple[list[tuple[Charge, Decimal]], list[tuple[Metric, Decimal]]]:
    """Usage by the charge that takes it, and what no charge takes.

    A metric that the version prices nowhere is free by the contract; one that it prices for other usage only, or
    usage of which it prices nothing at all, is an omission.
    """
    keys = {"model": usage.model, "adapter": usage.adapter, "region": usage.region, "tier": usage.tier}
    counted = [(metric, quantity) for metric, quantity in quantities(usage).items() if quantity]
    priced: list[tuple[Charge, Decimal]] = []
    missing: list[tuple[Metric, Decimal]] = []
    for metric, quantity in counted:
        charge = version.charge_for(metric, **keys)
        if charge is not None:
            priced.append((charge, quantity))
        elif metric in version.metrics:
            missing.append((metric, quantity))
    if not any(charge.where.take(**keys) for charge in version.charges):
        missing = [(metric, quantity) for metric, quantity in counted if metric is not Metric.TOTAL_TOKENS]
    return priced, missing


def _line(piece: Piece, charge: Charge, quantity: Decimal) -> RatedLine:
    unit_price = charge.pricing.unit_price
    where = charge.where
    return RatedLine(
        identity=LineIdentity(
            tenant_id=piece.subscription.tenant_id,
            charge_key=charge.key,
            segment_no=piece.segment_no,
            version=piece.version.version,
            tier_no=0,
            kind="usage",
            plan=piece.version.plan,
            subscription_id=piece.subscription.subscription_id,
        ),
        metric=charge.metric,
        where=(where.model or "", where.adapter or "", where.region or "", where.tier or ""),
        billing_account=piece.subscription.billing_account,
        currency=piece.version.currency,
        service_start=piece.start,
        service_end=piece.end,
        unit_price=unit_price,
        quantity=quantity,
        amount=price_of(quantity, unit_price),
        reason="usage",
    )
