"""What usage costs by each charge model, exact and not yet quantised (docs/spec/money.md 4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from math import ceil

from billing.periods import BillingPeriod
from billing.plans.charge_models import Graduated, Package, Percentage, PerUnit, Prepaid, Volume, for_one
from billing.rating.lines import LineKind
from billing.rating.positions import Counted, steps

Free = Mapping[tuple[str, int, BillingPeriod], Fraction]
"""Free units by charge, number of the piece, and the time that the charge counts over."""


@dataclass(frozen=True, slots=True)
class Amount:
    """What one line comes to, exactly. `quantity` is billed units; `units`, `free`, `included` as on the line."""

    of: Counted
    kind: LineKind
    tier_no: int
    quantity: Fraction
    unit_price: Decimal | None
    amount: Fraction
    units: Fraction | None = None
    free: Fraction = Fraction(0)
    included: Fraction | None = None


def amounts(listed: Sequence[Counted], free: Free, *, weighted: bool) -> list[Amount]:
    """What the pieces of one charge cost, in the order of piece, tier and kind in which they are quantised.

    Tiers are entered, packages opened and prepaid quantities used up anew where a new counter begins.
    `weighted`: a prepaid quantity counts by the seconds it was held.
    """
    found: list[Amount] = []
    entered: dict[int, set[int]] = defaultdict(set)
    opened: dict[int, Fraction] = defaultdict(Fraction)
    included: dict[int, Fraction] = defaultdict(Fraction)
    for each in listed:
        if not each.quantity:
            continue
        given = free.get((each.charge.key, each.piece_no, each.over), Fraction(0))
        match each.charge.pricing:
            case PerUnit() | Graduated() | Volume():
                found += _by_tier(each, given, entered[each.run])
            case Package() as package:
                before = opened[each.run]
                opened[each.run] = before + each.quantity - given
                found.append(_packages(each, package, before, opened[each.run], given))
            case Percentage() as percentage:
                found.append(_percentage(each, percentage))
            case Prepaid() as prepaid:
                limit = _included(listed, each, prepaid, weighted=weighted)
                used = min(each.quantity, max(Fraction(0), limit - included[each.run]))
                included[each.run] += each.quantity
                found.append(_overage(each, prepaid, used))
    return _added_up(found) if len({each.over for each in listed}) > 1 else found


def _added_up(found: Sequence[Amount]) -> list[Amount]:
    """One amount by piece, tier and kind, whatever times it was counted over: they have one price."""
    sums: dict[tuple[int, int, bool], Amount] = {}
    for each in found:
        key = (each.of.piece_no, each.tier_no, each.kind is LineKind.TIER_FEE)
        before = sums.get(key)
        sums[key] = (
            each
            if before is None
            else replace(
                before,
                quantity=before.quantity + each.quantity,
                amount=before.amount + each.amount,
                units=None if before.units is None or each.units is None else before.units + each.units,
                free=before.free + each.free,
                included=None if before.included is None or each.included is None else before.included + each.included,
            )
        )
    return [sums[key] for key in sorted(sums)]


def _by_tier(of: Counted, free: Fraction, entered: set[int]) -> list[Amount]:
    """Each tier's units at its price, the first `free` of them for nothing; a tier's fee when it is entered."""
    found: list[Amount] = []
    pricing = of.charge.pricing
    for number, units, _ in steps(of):
        given = max(Fraction(0), min(units, free))
        free -= given
        match pricing:
            case Graduated() | Volume():
                tier = pricing.tiers[number - 1]
                price, fee = for_one(tier.price, pricing.per), tier.flat_fee
            case _:
                assert isinstance(pricing, PerUnit), pricing
                price, fee = pricing.unit_price, Decimal(0)
        billed = units - given
        found.append(Amount(of, LineKind.USAGE, number, billed, price, billed * Fraction(price), free=given))
        if number not in entered and fee:
            found.append(Amount(of, LineKind.TIER_FEE, number, Fraction(1), fee, Fraction(fee)))
        entered.add(number)
    return found


def _packages(of: Counted, package: Package, before: Fraction, after: Fraction, free: Fraction) -> Amount:
    """Packages opened by this piece's units; free ones open none. Both sides by the size now in force (13.5)."""
    size = Fraction(package.size)
    opened = Fraction(ceil(after / size) - ceil(before / size))
    return Amount(
        of, LineKind.USAGE, 0, opened, package.price, opened * Fraction(package.price), units=of.quantity, free=free
    )


def _percentage(of: Counted, model: Percentage) -> Amount:
    """Σ over events of min(max, max(min, base × rate + fixed)) (13.6)."""
    rate, fixed = Fraction(model.rate), Fraction(model.fixed_per_event)
    least, most = model.min_per_event, model.max_per_event
    total = Fraction(0)
    for _, base, _ in of.parts:
        amount = Fraction(base) * rate + fixed
        if least is not None:
            amount = max(Fraction(least), amount)
        if most is not None:
            amount = min(Fraction(most), amount)
        total += amount
    return Amount(of, LineKind.USAGE, 0, of.quantity, None, total)


def _included(listed: Sequence[Counted], of: Counted, prepaid: Prepaid, *, weighted: bool) -> Fraction:
    if not weighted:
        return Fraction(prepaid.included)
    held = ((each, each.charge.pricing) for each in listed if each.run == of.run)
    return sum((Fraction(p.included) * each.share for each, p in held if isinstance(p, Prepaid)), Fraction(0))


def _overage(of: Counted, prepaid: Prepaid, used: Fraction) -> Amount:
    beyond, price = of.quantity - used, prepaid.unit_price
    return Amount(of, LineKind.OVERAGE, 0, beyond, price, beyond * Fraction(price), included=used)


def event_amounts(of: Counted) -> list[Fraction]:
    """What each part weighs in its piece's amount: its quantity; for a percentage, what the event itself costs."""
    if isinstance(of.charge.pricing, Percentage):
        one = [replace(of, parts=(part,), quantity=Fraction(1)) for part in of.parts]
        return [_percentage(each, of.charge.pricing).amount for each in one]
    return [Fraction(units) for _, units, _ in of.parts]
