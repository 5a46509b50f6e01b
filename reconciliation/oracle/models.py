"""What the usage of one charge costs: the table of money.md 4, with 13.2 to 13.6 and 13.13.

Amounts here are exact rationals; `statement.py` cuts them at 10⁻¹².
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from reconciliation.oracle.case import Allowance, Charge, Tier
from reconciliation.oracle.rational import ONE, ZERO
from reconciliation.oracle.segments import Pair


@dataclass(frozen=True, slots=True)
class Used:
    """Units of one charge in one pair. `free` of them, the first ones, fall under an allowance (13.3).

    `bases` holds the billable events' bases, for `percentage` alone; `portion` is the subscription segment's share of
    what is counted over (the billing period, or a tier period), for prorated tiers; `counter` numbers the counter that
    goes on from pair to pair of the charge, or begins anew (4).
    """

    pair: Pair
    charge: Charge
    units: Fraction
    free: Fraction
    portion: Fraction
    counter: int
    bases: tuple[Fraction, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of what a charge costs in a pair; `suffix` ends its key."""

    pair: Pair
    suffix: str
    amount: Fraction
    quantity: Fraction
    unit_price: Fraction | None
    tier: int = 0
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


def over_all_times(pieces_of_times: Sequence[Sequence[Piece]]) -> list[Piece]:
    """One piece per line (13.1) of what was counted in several tier periods, which have one price; pair, tier, fee."""
    sums: dict[tuple[Pair, int, str], Piece] = {}
    for one in (piece for listed in pieces_of_times for piece in listed):
        at = (one.pair, one.tier, one.suffix)
        sums[at] = _and(sums[at], one) if at in sums else one
    return [sums[at] for at in sorted(sums)]


def _and(one: Piece, other: Piece) -> Piece:
    assert one.unit_price == other.unit_price
    return replace(
        one,
        amount=one.amount + other.amount,
        quantity=one.quantity + other.quantity,
        free=one.free + other.free,
        units=one.units + other.units if one.units is not None and other.units is not None else None,
        included=one.included + other.included if one.included is not None and other.included is not None else None,
    )


class Counter:
    """Where the next unit stands, which tiers were entered, what was used in packages and of included quantities.

    All units of the charge have a position; packages hold the units used in packages that are not free, an included
    quantity those used of one (4, 13.2).
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._begin()

    def _begin(self) -> None:
        self.position = self.in_packages = self.of_included = ZERO
        self.entered: set[int] = set()

    def enter(self, use: Used) -> None:
        if use.counter != self._number:
            self._begin()
        self._number = use.counter


def _per_unit(use: Used, counter: Counter, uses: Sequence[Used]) -> list[Piece]:
    billed = use.units - use.free
    return [Piece(use.pair, "", billed * use.charge.price, billed, use.charge.price, free=use.free)]


def _graduated(use: Used, counter: Counter, uses: Sequence[Used]) -> list[Piece]:
    """Each unit at the price of the tier that its position falls in (4)."""
    first, result = counter.position, []
    for number, tier, units, lower, upper in _in_tiers(use, first):
        free = _overlap(first, first + use.free, lower, upper)
        billed = units - free
        result.append(Piece(use.pair, f".t{number}", billed * tier.price, billed, tier.price, number, free))
        result += _entered(use, counter, number, tier)
    return result


def _in_tiers(use: Used, first: Fraction) -> Iterable[tuple[int, Tier, Fraction, Fraction, Fraction | None]]:
    """(number, tier, units in it, units below it, its end) of every tier that units from a position on fall in."""
    for number, (lower, upper, tier) in enumerate(_bounds(use), 1):
        units = _overlap(first, first + use.units, lower, upper)
        if units:
            yield number, tier, units, lower, upper


def _entered(use: Used, counter: Counter, number: int, tier: Tier) -> list[Piece]:
    """A tier's first unit, free or not, enters it, and its flat fee is due, once for its number (4, 13.4)."""
    if number in counter.entered:
        return []
    counter.entered.add(number)
    return [Piece(use.pair, f".t{number}.fee", tier.flat_fee, ONE, tier.flat_fee, number)] if tier.flat_fee else []


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
    """All units at the price, in this pair's version, of the tier that the total reaches; it alone is entered (4)."""
    number, tier = _reached(use, uses)
    billed = use.units - use.free
    whole = Piece(use.pair, f".t{number}", billed * tier.price, billed, tier.price, number, use.free)
    return [whole, *_entered(use, counter, number, tier)]


def _reached(use: Used, uses: Sequence[Used]) -> tuple[int, Tier]:
    """The tier that the total of the counter falls in."""
    total = sum((other.units for other in uses if other.counter == use.counter), ZERO)
    bounds = enumerate(_bounds(use), 1)
    return next((number, tier) for number, (_, upper, tier) in bounds if upper is None or total <= upper)


def _package(use: Used, counter: Counter, uses: Sequence[Used]) -> list[Piece]:
    """Packages opened, by this version's size on both sides (4, 13.5); free units are in no package."""
    size, before = use.charge.size, counter.in_packages
    counter.in_packages += use.units - use.free
    opened = _ceiling(counter.in_packages / size) - _ceiling(before / size)
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
    first = counter.of_included
    counter.of_included += use.units
    included = _overlap(first, counter.of_included, ZERO, use.charge.included)
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
    uses: Mapping[str, Sequence[Used]], pools: Mapping[Pair, Sequence[Allowance]]
) -> dict[tuple[str, Pair], Fraction]:
    """How many units of each (charge, pair) are free (4 allowance, 13.3).

    `uses` holds those of each charge in the order of their pairs, without free units; `pools` what each pair's version
    gives free. The first units used under a pool are free: earlier pairs first, then the higher price of the next
    unit, then the charge key; a charge gives its units in the order of their positions. What two pools free are the
    same first units, free once.
    """
    ladders = {(key, use.pair): prices for key, listed in uses.items() for use, prices in _priced(listed)}
    result: dict[tuple[str, Pair], Fraction] = {}
    used: dict[str, Fraction] = {}
    for pair in sorted({pair for _, pair in ladders}):
        for pool in pools[pair]:
            here = {key: list(ladders[key, pair]) for key in pool.charges if ladders.get((key, pair))}
            left = max(ZERO, pool.units - used.get(pool.pool, ZERO))
            used[pool.pool] = used.get(pool.pool, ZERO) + sum(
                (units for prices in here.values() for units, _ in prices), ZERO
            )
            freed: dict[str, Fraction] = {}
            while left and any(here.values()):
                key = min((key for key in here if here[key]), key=lambda key: (-here[key][0][1], key.encode()))
                units, _ = here[key].pop(0)
                freed[key] = freed.get(key, ZERO) + min(units, left)
                left -= min(units, left)
            for key, units in freed.items():
                result[key, pair] = max(result.get((key, pair), ZERO), units)
    return result


def _priced(uses: Sequence[Used]) -> Iterable[tuple[Used, list[tuple[Fraction, Fraction]]]]:
    """Each use with its units in the order of their positions, and the price of one of them."""
    counter = Counter()
    for use in uses:
        counter.enter(use)
        model = use.charge.model
        if model == "graduated":
            yield use, [(units, tier.price) for _, tier, units, _, _ in _in_tiers(use, counter.position)]
        elif model in ("per_unit", "volume", "package"):
            price = _reached(use, uses)[1].price if model == "volume" else use.charge.price / use.charge.size
            yield use, [(use.units, price)]
        counter.position += use.units
