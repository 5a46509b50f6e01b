"""What the usage of one charge costs: the table of money.md 4, with 13.2 to 13.6 and 13.13.

Amounts here are exact rationals; `statement.py` cuts them at 10⁻¹².
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from reconciliation.oracle.case import Charge, Tier
from reconciliation.oracle.rational import ONE, ZERO
from reconciliation.oracle.segments import Pair


@dataclass(frozen=True, slots=True)
class Used:
    """Units of one charge in one pair. `free` of them, the first ones, fall under an allowance (13.3).

    `events` holds the billable events' bases, for `percentage` alone; `portion` is the subscription segment's share of
    the period, for prorated tiers.
    """

    pair: Pair
    charge: Charge
    units: Fraction
    free: Fraction
    portion: Fraction
    bases: tuple[Fraction, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of what a charge costs in a pair; `suffix` ends its key."""

    pair: Pair
    suffix: str
    amount: Fraction
    quantity: Fraction
    unit_price: Fraction | None
    free: Fraction = ZERO
    units: Fraction | None = None
    included: Fraction | None = None


def pieces(uses: Sequence[Used]) -> list[Piece]:
    """What one charge costs; `uses` in the order of their pairs. Order of the result: pair, tier, then its fee."""
    result: list[Piece] = []
    counter = Counter()
    for use in uses:
        counter.enter(use)
        if use.units or use.bases:
            result += _MODELS[use.charge.model](use, counter, uses)
        counter.position += use.units
    return result


class Counter:
    """Where the next unit stands, and which tiers were entered.

    It goes on over segments and versions (`carry`), or starts anew with each subscription segment (`reset`,
    `prorate`); price versions of one segment share it in any case (4, 13.2).
    """

    def __init__(self) -> None:
        self.position = ZERO
        self.entered: set[int] = set()
        self._segment = 0

    def enter(self, use: Used) -> None:
        if use.charge.continuity != "carry" and use.pair[0] != self._segment:
            self.position, self.entered = ZERO, set()
        self._segment = use.pair[0]


def _per_unit(use: Used, counter: Counter, uses: Sequence[Used]) -> list[Piece]:
    billed = use.units - use.free
    return [Piece(use.pair, "", billed * use.charge.price, billed, use.charge.price, free=use.free)]


def _graduated(use: Used, counter: Counter, uses: Sequence[Used]) -> list[Piece]:
    """Each unit at the price of the tier that its position falls in; a tier's first unit enters it (4, 13.4)."""
    first, last = counter.position, counter.position + use.units
    result = []
    for number, (lower, upper, tier) in enumerate(_bounds(use), 1):
        units = _overlap(first, last, lower, upper)
        if not units:
            continue
        free = _overlap(first, first + use.free, lower, upper)
        billed = units - free
        result.append(Piece(use.pair, f".t{number}", billed * tier.price, billed, tier.price, free=free))
        if tier.flat_fee and number not in counter.entered:
            result.append(Piece(use.pair, f".t{number}.fee", tier.flat_fee, ONE, tier.flat_fee))
        counter.entered.add(number)
    return result


def _bounds(use: Used) -> Iterable[tuple[Fraction, Fraction | None, Tier]]:
    """(units below it, inclusive upper end, tier); prorated ends stay exact fractions (13.13)."""
    lower = ZERO
    for tier in use.charge.tiers:
        upper = tier.up_to
        if upper is not None and use.charge.continuity == "prorate":
            upper *= use.portion
        yield lower, upper, tier
        lower = upper if upper is not None else lower


def _overlap(first: Fraction, last: Fraction, lower: Fraction, upper: Fraction | None) -> Fraction:
    return max(ZERO, (last if upper is None else min(last, upper)) - max(first, lower))


def _volume(use: Used, counter: Counter, uses: Sequence[Used]) -> list[Piece]:
    """All units at the price, in this pair's version, of the tier that the total reaches (4)."""
    counts_all = use.charge.continuity == "carry"
    total = sum((other.units for other in uses if counts_all or other.pair[0] == use.pair[0]), ZERO)
    bounds = list(_bounds(use))
    number = next(n for n, (_, upper, _) in enumerate(bounds, 1) if upper is None or total <= upper)
    tier = bounds[number - 1][2]
    billed = use.units - use.free
    return [Piece(use.pair, f".t{number}", billed * tier.price, billed, tier.price, free=use.free)]


def _package(use: Used, counter: Counter, uses: Sequence[Used]) -> list[Piece]:
    """Packages opened, by this version's size on both sides (4, 13.5); one opened at a free position costs nothing."""
    size = use.charge.size
    opened = _ceiling((counter.position + use.units) / size) - _ceiling((counter.position + use.free) / size)
    price = use.charge.price
    return [Piece(use.pair, "", opened * price, Fraction(opened), price, free=use.free, units=use.units)]


def _ceiling(number: Fraction) -> int:
    return -(-number.numerator // number.denominator)


def _percentage(use: Used, counter: Counter, uses: Sequence[Used]) -> list[Piece]:
    amounts = [of_event(use.charge, base) for base in use.bases]
    return [Piece(use.pair, "", sum(amounts, ZERO), Fraction(len(amounts)), None)]


def of_event(charge: Charge, base: Fraction) -> Fraction:
    """min(max, max(min, base × rate + fixed)), per billable event, also at base 0 (13.6)."""
    amount = base * charge.rate + charge.fixed_per_event
    if charge.min_per_event is not None:
        amount = max(charge.min_per_event, amount)
    if charge.max_per_event is not None:
        amount = min(charge.max_per_event, amount)
    return amount


def _prepaid(use: Used, counter: Counter, uses: Sequence[Used]) -> list[Piece]:
    """Positions up to the included quantity are in the fee, the rest is overage (4); not weighted by time (13.3)."""
    first, last = counter.position, counter.position + use.units
    included = _overlap(first, last, ZERO, use.charge.included)
    over, price = use.units - included, use.charge.overage_price
    return [Piece(use.pair, ".overage", over * price, over, price, included=included)]


_MODELS = {
    "per_unit": _per_unit,
    "graduated": _graduated,
    "volume": _volume,
    "package": _package,
    "percentage": _percentage,
    "prepaid": _prepaid,
}


def free_units(
    uses: Mapping[tuple[str, Pair], tuple[Charge, Fraction]],
    pools: Mapping[Pair, Mapping[str, tuple[str, Fraction]]],
) -> dict[tuple[str, Pair], Fraction]:
    """How many units of each (charge, pair) are free (4 allowance, 13.3).

    `uses` holds charge and units, `pools` the pool and its units that a pair's version gives a charge. A pool's
    positions run over earlier pairs first, then the higher unit price, then the charge key; its first cost nothing.
    """
    result: dict[tuple[str, Pair], Fraction] = {}
    position: dict[str, Fraction] = {}
    for key, pair in sorted(uses, key=lambda at: (at[1], -_unit_price(uses[at][0]), at[0].encode())):
        if key not in pools[pair]:
            continue
        pool, allowed = pools[pair][key]
        units = uses[key, pair][1]
        first = position.get(pool, ZERO)
        result[key, pair] = _overlap(first, first + units, ZERO, allowed)
        position[pool] = first + units
    return result


def _unit_price(charge: Charge) -> Fraction:
    return charge.tiers[0].price if charge.tiers else charge.price
