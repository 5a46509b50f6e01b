"""A plan in words: what a charge says, and step by step what a usage comes to. Values in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from billing.bills.documents import DocumentKind, Payer, draw_up
from billing.errors import NoPriceVersion
from billing.money import ZERO, currency, exactly, from_minor, plain, total
from billing.periods import BillingPeriod, period_of, written
from billing.plans.charge_models import (
    Flat,
    Graduated,
    OneOff,
    Package,
    Percentage,
    PerUnit,
    Prepaid,
    Pricing,
    Seat,
    Tier,
    Timing,
    Volume,
)
from billing.plans.plan_documents import terms_document
from billing.plans.price_plans import (
    Anchor,
    Charge,
    Discount,
    InvoiceDiscount,
    PlanVersion,
    PricePlan,
    Terms,
    counts_by_part,
)
from billing.plans.subscriptions import Piece, Subscription, check_start, pieces, subscription_id
from billing.rating import LineKind, Naming, RatedLine, Usage, distribute, rate_period
from billing.rating.advance import advance_bills
from billing.rating.usage import Part

ORDER: Final = (
    LineKind.UNUSED, LineKind.USAGE, LineKind.OVERAGE, LineKind.TIER_FEE, LineKind.DISCOUNT, LineKind.MINIMUM,
    LineKind.MAXIMUM, LineKind.FEE, LineKind.PREPAID_FEE, LineKind.INVOICE_DISCOUNT, LineKind.TRUE_UP,
)  # fmt: skip
"""The order in which a period is computed (docs/spec/money.md 3)."""


def price_in_words(pricing: Pricing) -> str:
    """What a charge model asks for."""
    match pricing:
        case PerUnit():
            return f"{plain(pricing.price)}{_per(pricing.per)}"
        case Graduated():
            return "each tier: " + _tiers(pricing.tiers, pricing.per)
        case Volume():
            return "all units by the total: " + _tiers(pricing.tiers, pricing.per)
        case Package():
            return f"{plain(pricing.price)} per package of {plain(pricing.size)}"
        case Percentage():
            return f"{plain(pricing.rate * 100)} %" + "".join(
                f", {name} {plain(amount)} per event"
                for name, amount in (
                    ("fixed", pricing.fixed_per_event or None),
                    ("at least", pricing.min_per_event),
                    ("at most", pricing.max_per_event),
                )
                if amount is not None
            )
        case Prepaid():
            fee, beyond = plain(pricing.fee), plain(pricing.overage_price)
            return f"{plain(pricing.included)} for {fee}, beyond {beyond}{_per(pricing.per)}"
        case Flat():
            return f"{plain(pricing.fee)} per period"
        case Seat():
            seats = f" (for {plain(pricing.seats)})" if pricing.seats is not None else ""
            return f"{plain(pricing.fee)} per seat and period{seats}"
        case OneOff():
            return f"{plain(pricing.fee)} once"


def terms_in_words(charge: Charge) -> Iterator[str]:
    """What is done with a charge's amount, one by one."""
    if charge.allowance is not None:
        yield f"{plain(charge.allowance)} free"
    if charge.discount is not None:
        yield _less(charge.discount)
    if charge.minimum is not None:
        yield f"at least {plain(charge.minimum)}"
    if charge.maximum is not None:
        yield f"at most {plain(charge.maximum)}"
    if charge.tier_continuity is not None:
        yield f"tiers {charge.tier_continuity}"
    if charge.tier_period is not None:
        yield f"counted by the {charge.tier_period}"
    if charge.timing is Timing.ADVANCE:
        yield "in advance"
    if not charge.prorated:
        yield "not prorated"
    if charge.tax_group != "std":
        yield f"tax {charge.tax_group}"


def version_in_words(version: PlanVersion) -> Iterator[tuple[str, str]]:
    """What is done with a version's charges together: what it is, and what it says."""
    for pool in version.allowances:
        yield "allowance", f"{plain(pool.units)} free of {', '.join(pool.charges)} together"
    if (discount := version.invoice_discount) is not None:
        yield "invoice discount", _less(discount)
    if (commitment := version.commitment) is not None:
        of = ", ".join(commitment.charges) or "all usage"
        tax = f", tax {commitment.tax_group}" if commitment.tax_group else ""
        yield "commitment", f"{of} at least {plain(commitment.amount)}{tax}"


def contract_in_words(terms: Terms) -> Iterator[str]:
    """What a plan's contracts say, one by one: how they are billed, and where they differ from the defaults."""
    of = "calendar" if terms.anchor is Anchor.CALENDAR else "subscription's day"
    yield f"billed by the {terms.period}, from the {of}"
    for name, told in terms_document(terms).items():
        if name not in ("period", "anchor"):
            yield f"{name}: {', '.join(told) if isinstance(told, list) else told}".lower()


def explain(plan: PricePlan, usage: Usage, *, seats: int | None = None) -> list[str]:
    """What a usage costs on a plan, as if it were all of its calendar period, step by step; `seats` for fees by the
    seat that name none. Raises NoPriceVersion, SubscriptionRefused."""
    period = _period(plan, usage.at)
    since = max(period.start, min(version.valid_from for version in plan.versions))
    if usage.at < since:
        raise NoPriceVersion(f"no version of plan {plan.name} is valid at {usage.at:%Y-%m-%d %H:%M} UTC")
    check_start(since, plan.versions, seats)
    tenant = Subscription(
        subscription_id("preview", since), "preview", "preview", plan.name, since, terms=plan.terms, seats=seats,
        begins_plan=False,
    )  # fmt: skip
    cut = pieces([tenant], {plan.name: plan.versions}, period)
    told = [f"period {period.name}"]
    used = []
    for piece in cut:
        here = [usage] if piece.start <= usage.at < piece.end else []
        priced, missing = distribute(piece, here)
        used.append(priced)
        if here:
            told.append(f"version {piece.version.version}, in force from {piece.version.valid_from:%Y-%m-%d %H:%M} UTC")
            told += [f"{plain(sum((q for _, q, _ in parts), Decimal(0)))} counted by charge {key}{_over(piece, key)}"
                     for key, parts in priced.parts.items()]  # fmt: skip
            told += [step for key, parts in priced.parts.items() for step in _by_event(piece, key, parts)]
            told += [str(each) for each in missing]
            priced_by = {charge.metric for charge in piece.version.charges}
            told += [f"{plain(q)} {metric}: no charge counts it" for metric, q in usage.quantities.items()
                     if metric not in priced_by]  # fmt: skip
    rated = rate_period(period, used, plan.terms)
    told += _steps(rated.lines, plan, period)
    for each in advance_bills(cut, period, lambda of, at: ZERO):
        told.append(f"on an invoice of its own, in advance, from {each.service.start:%Y-%m-%d %H:%M} UTC:")
        told += _steps(each.lines, plan, each.service)
    return told


def _charge(piece: Piece, key: str) -> Charge:
    return next(charge for charge in piece.version.charges if charge.key == key)


def _by_event(piece: Piece, key: str, parts: Iterable[Part]) -> Iterator[str]:
    """What a percentage takes of each event: base × rate + fixed, then its least and most (13.6)."""
    pricing = _charge(piece, key).pricing
    if not isinstance(pricing, Percentage):
        return
    for _, base, _ in parts:
        with exactly():
            amount = base * pricing.rate + pricing.fixed_per_event
        fixed = f" + {plain(pricing.fixed_per_event)}" if pricing.fixed_per_event else ""
        told = f"{key}: {plain(base)} × {plain(pricing.rate)}{fixed} = {plain(amount)} for the event"
        if pricing.min_per_event is not None:
            told += f", at least {plain(pricing.min_per_event)}"
        if pricing.max_per_event is not None:
            told += f", at most {plain(pricing.max_per_event)}"
        yield told


def _over(piece: Piece, key: str) -> str:
    charge = _charge(piece, key)
    return f" over the {charge.tier_period}" if counts_by_part(charge, piece.subscription.terms) else ""


def _steps(lines: Sequence[RatedLine], plan: PricePlan, period: BillingPeriod) -> list[str]:
    naming = Naming({}, {plan.name: len(plan.versions)})
    keyed = {
        naming.key(line.identity): line for line in sorted(lines, key=lambda line: ORDER.index(line.identity.kind))
    }
    told = [f"{key}: {_line(line)}" for key, line in keyed.items()]
    money = currency(plan.currency, period.end.date())
    payer = Payer(money, rounding=plan.terms.rounding)
    document = draw_up(DocumentKind.USAGE, period, keyed, payer)
    exact = plain(total(line.amount for line in lines))
    return [*told, f"exact {exact} {plan.currency}, rounded {plain(from_minor(document.net_minor, money))} (net)"]


def _line(line: RatedLine) -> str:
    if line.unit_price is None:
        return f"{line.identity.kind.replace('_', ' ')} = {plain(line.amount)}"
    free = f", {plain(line.free)} free" if line.free else ""
    free += f", {plain(line.included)} included" if line.included else ""
    what = "packages × " if line.units is not None else "× "
    if line.identity.kind == LineKind.TIER_FEE:
        what = "tier fee × "
    return f"{plain(line.quantity)} {what}{plain(line.unit_price)}{free} = {plain(line.amount)}"


def _period(plan: PricePlan, at: datetime) -> BillingPeriod:
    months = plan.terms.period.months
    return period_of(at, datetime(2020, 1, 1, tzinfo=UTC), months)


def _less(of: Discount | InvoiceDiscount) -> str:
    told = f"less {plain(of.percent * 100)} %" if of.percent is not None else f"less {plain(of.amount or Decimal(0))}"
    if isinstance(of, InvoiceDiscount):
        told += f" of {of.base}"
    if of.periods is not None:
        told += f" for {of.periods} period" + ("s" if of.periods > 1 else "")
    told += f" from {written(of.since)}" if of.since is not None else ""
    return told + (f" until {written(of.until)}" if of.until is not None else "")


def _per(per: int) -> str:
    return f" per {per}" if per != 1 else " per unit"


def _tiers(tiers: Sequence[Tier], per: int) -> str:
    told = []
    for tier in tiers:
        bound = f"up to {plain(tier.up_to)}" if tier.up_to is not None else "beyond"
        fee = f" + {plain(tier.flat_fee)}" if tier.flat_fee else ""
        told.append(f"{bound} {plain(tier.price)}{fee}")
    return ", ".join(told) + (f" per {per}" if per != 1 else "")
