"""Where the units of a piece stand in their tiers (docs/spec/money.md 4 tier_continuity, 13.2).

A piece is one (subscription segment, price version) pair; positions follow pieces, not single completions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from billing.periods import BillingPeriod, seconds_between
from billing.plans.charge_models import (
    Graduated,
    Package,
    Percentage,
    PerUnit,
    Prepaid,
    Tier,
    TierContinuity,
    Volume,
    for_one,
)
from billing.plans.price_plans import Charge
from billing.plans.schedules import schedule_of
from billing.plans.subscriptions import Piece
from billing.rating.usage import Part, PieceUsage

Step = tuple[int, Fraction, Fraction]
"""Tier (0 where there is none), units in it, price of one."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What a charge counted in a piece, and where its units stand.

    `over` is the time that the charge counts over, the period or a part of it (`tier_period`); `share` the piece's part
    of its seconds. `start` is the position before its first unit, `scale` what tier bounds are multiplied by, `total`
    what the counter reaches over all pieces that it runs through; `run` numbers the counters: a piece with another
    number begins a new one.
    """

    piece_no: int
    piece: Piece
    charge: Charge
    parts: tuple[Part, ...]
    over: BillingPeriod
    share: Fraction
    quantity: Fraction
    run: int = 0
    start: Fraction = Fraction(0)
    scale: Fraction = Fraction(1)
    total: Fraction = Fraction(0)


def share_of(piece: Piece, period: BillingPeriod) -> Fraction:
    """A piece's part of the period's seconds."""
    return period.elapsed(piece.end) - period.elapsed(piece.start)


def by_charge(used: Sequence[PieceUsage], period: BillingPeriod) -> dict[str, list[Counted]]:
    """Every charge that counts usage, with its pieces in order, also those in which it counted nothing.

    Where it counts over parts of the period the pieces of one part stand after those of the part before.
    """
    found: dict[str, dict[BillingPeriod, list[Counted]]] = {}
    for number, each in enumerate(used):
        share = share_of(each.piece, period)
        for charge in each.piece.version.charges:
            if charge.is_fee:
                continue
            parts = each.parts.get(charge.key, ())
            by_time = found.setdefault(charge.key, {})
            if charge.tier_period is None:
                whole = Counted(number, each.piece, charge, parts, period, share, _quantity(charge, parts))
                by_time.setdefault(period, []).append(whole)
            else:
                for one in _by_part(number, each.piece, charge, parts, period):
                    by_time.setdefault(one.over, []).append(one)
    pieces = [each.piece for each in used]
    return {key: _in_all_times(by_time, pieces) for key, by_time in found.items()}


def _by_part(
    number: int, piece: Piece, charge: Charge, parts: Sequence[Part], period: BillingPeriod
) -> Iterator[Counted]:
    """What a charge counted in a piece, by the parts of the period that it counts over."""
    for over in parts_of(period, piece, charge):
        start, end = max(piece.start, over.start), min(piece.end, over.end)
        within = tuple(part for part in parts if over.contains(part[0]))
        if start < end or within:
            share = seconds_between(start, max(start, end)) / over.seconds
            yield Counted(number, piece, charge, within, over, share, _quantity(charge, within))


def parts_of(period: BillingPeriod, piece: Piece, charge: Charge) -> list[BillingPeriod]:
    """The times within a billing period over which a charge counts, from the contract's own anchor on."""
    schedule = schedule_of(piece.subscription)
    if charge.tier_period is None or charge.tier_period.months >= schedule.months:
        return [period]
    return list(replace(schedule, months=charge.tier_period.months).periods(period.start, period.end))


def _in_all_times(by_time: Mapping[BillingPeriod, Sequence[Counted]], pieces: Sequence[Piece]) -> list[Counted]:
    """Each time's pieces with their positions: every counter begins anew with it."""
    found: list[Counted] = []
    for over in sorted(by_time, key=lambda over: (over.start, over.end)):
        before = found[-1].run + 1 if found else 0
        placed = _placed(by_time[over], _held(over, pieces))
        found += [replace(each, run=before + each.run) for each in placed]
    return found


def _quantity(charge: Charge, parts: Sequence[Part]) -> Fraction:
    if isinstance(charge.pricing, Percentage):
        return Fraction(len(parts))
    return sum((Fraction(units) for _, units, _ in parts), Fraction(0))


def _held(over: BillingPeriod, pieces: Sequence[Piece]) -> dict[int, Fraction]:
    """By subscription segment its part of a time's seconds, whichever of its versions have a charge."""
    held: dict[int, Fraction] = defaultdict(Fraction)
    for piece in pieces:
        start, end = max(piece.start, over.start), min(piece.end, over.end)
        if start < end:
            held[piece.segment_no] += over.elapsed(end) - over.elapsed(start)
    return held


def _continuity(of: Counted) -> TierContinuity:
    """As the charge says, or else the contract of its segment."""
    return of.charge.tier_continuity or of.piece.subscription.terms.tier_continuity


def _placed(listed: Sequence[Counted], held: Mapping[int, Fraction]) -> list[Counted]:
    """The pieces of a charge with their positions: a counter goes on over price versions, and over a change of plan
    if the contract carries it: as the first version says that has the charge there for a time."""
    if len(listed) == 1:
        (only,) = listed
        return [replace(only, total=only.quantity, scale=_scale(only, held))]
    begins: dict[int, TierContinuity] = {}
    for each in sorted(listed, key=lambda each: each.piece.start == each.piece.end):
        begins.setdefault(each.piece.segment_no, _continuity(each))
    runs: list[list[tuple[Counted, Fraction, Fraction]]] = []
    for each in listed:
        before = runs[-1][-1] if runs else None
        changed = before is not None and before[0].piece.segment_no != each.piece.segment_no
        if before is None or (changed and begins[each.piece.segment_no] is not TierContinuity.CARRY):
            runs.append([])
            before = None
        start = before[1] + before[0].quantity if before else Fraction(0)
        runs[-1].append((each, start, _scale(each, held)))
    return [
        replace(
            each,
            run=number,
            start=start,
            scale=scale,
            total=sum((other.quantity for other, _, _ in run), Fraction(0)),
        )
        for number, run in enumerate(runs)
        for each, start, scale in run
    ]


def _scale(of: Counted, held: Mapping[int, Fraction]) -> Fraction:
    return held.get(of.piece.segment_no, Fraction(0)) if _continuity(of) is TierContinuity.PRORATE else Fraction(1)


def steps(of: Counted) -> list[Step]:
    """The units of a piece by tier, in order of position, with the price of one."""
    pricing = of.charge.pricing
    match pricing:
        case PerUnit() | Prepaid():
            return [(0, of.quantity, Fraction(pricing.unit_price))]
        case Package():
            return [(0, of.quantity, Fraction(pricing.price) / Fraction(pricing.size))]
        case Graduated():
            return _graduated(of, pricing)
        case Volume():
            number = tier_reached(pricing.tiers, of.total, of.scale)
            return [(number, of.quantity, Fraction(for_one(pricing.tiers[number - 1].price, pricing.per)))]
        case _:
            return []


def tier_reached(tiers: Sequence[Tier], total: Fraction, scale: Fraction) -> int:
    """The number (from 1) of the tier that a total falls in; `up_to` is an inclusive upper end."""
    for number, tier in enumerate(tiers, start=1):
        if tier.up_to is None or total <= Fraction(tier.up_to) * scale:
            return number
    return len(tiers)


def _graduated(of: Counted, pricing: Graduated) -> list[Step]:
    found: list[Step] = []
    below, end = Fraction(0), of.start + of.quantity
    for number, tier in enumerate(pricing.tiers, start=1):
        bound = end if tier.up_to is None else Fraction(tier.up_to) * of.scale
        units = min(bound, end) - max(below, of.start)
        if units > 0:
            found.append((number, units, Fraction(for_one(tier.price, pricing.per))))
        below = bound
    return found
