"""The charge models that a plan can use (docs/spec/money.md 4). Values only; what they cost: billing/rating/.

The fields of each class are the parameters as a plan file writes them. Prices and fees are major units of the plan's
currency, with up to 18 decimals; quantities are units of the metric.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, localcontext
from enum import StrEnum
from typing import ClassVar, Final

from billing.money import PRICE_DECIMALS, ZERO, decimals_of, exactly, plain

Problem = tuple[str, str]
"""What is wrong with a value: the field ('' for all of it) and the reason."""


class TierContinuity(StrEnum):
    """What a change of plan or price version does to the tier position (docs/spec/money.md 4)."""

    CARRY = "carry"
    RESET = "reset"
    PRORATE = "prorate"


class Timing(StrEnum):
    """When a fee is billed: at the start of its service, or at the end."""

    ADVANCE = "advance"
    ARREARS = "arrears"


@dataclass(frozen=True, slots=True)
class Tier:
    """A step of a price: up to and with unit `up_to` (None: without end) each unit costs `price`.

    `flat_fee` is due once in a period, when the first unit enters the tier.
    """

    price: Decimal
    up_to: Decimal | None = None
    flat_fee: Decimal = ZERO


@dataclass(frozen=True, slots=True)
class PerUnit:
    """Each unit at one price: `price` for `per` units, `per` a power of ten."""

    model: ClassVar[str] = "per_unit"
    price: Decimal
    per: int = 1

    @property
    def unit_price(self) -> Decimal:
        """The exact price of one unit."""
        return for_one(self.price, self.per)

    def problems(self) -> list[Problem]:
        """What is wrong with these values."""
        return _unit_problems("price", self.price, self.per)


@dataclass(frozen=True, slots=True)
class Graduated:
    """Each unit at the price of the tier that its position in the period falls in."""

    model: ClassVar[str] = "graduated"
    tiers: tuple[Tier, ...]
    per: int = 1

    def problems(self) -> list[Problem]:
        """What is wrong with these values."""
        return _tier_problems(self.tiers, self.per)


@dataclass(frozen=True, slots=True)
class Volume:
    """All units at the price of the tier that the period's total reaches."""

    model: ClassVar[str] = "volume"
    tiers: tuple[Tier, ...]
    per: int = 1

    def problems(self) -> list[Problem]:
        """What is wrong with these values."""
        return _tier_problems(self.tiers, self.per)


@dataclass(frozen=True, slots=True)
class Package:
    """`price` for each package of `size` units that is opened."""

    model: ClassVar[str] = "package"
    size: Decimal
    price: Decimal

    def problems(self) -> list[Problem]:
        """What is wrong with these values."""
        return [] if self.size > 0 else [("size", "must be more than 0")]


@dataclass(frozen=True, slots=True)
class Percentage:
    """A share of an amount that each event carries: min(max, max(min, base × rate + fixed)) (13.6).

    `base` names the counted amount; '' takes the charge's metric. Never from hourly sums: each event counts by itself.
    """

    model: ClassVar[str] = "percentage"
    rate: Decimal
    base: str = ""
    fixed_per_event: Decimal = ZERO
    min_per_event: Decimal | None = None
    max_per_event: Decimal | None = None

    def problems(self) -> list[Problem]:
        """What is wrong with these values."""
        least, most = self.min_per_event, self.max_per_event
        return [("max_per_event", "is less than min_per_event")] if least and most is not None and least > most else []


@dataclass(frozen=True, slots=True)
class Prepaid:
    """`included` units for a fee, what goes beyond at `overage_price`, which is for `per` units."""

    model: ClassVar[str] = "prepaid"
    included: Decimal
    fee: Decimal
    overage_price: Decimal
    per: int = 1

    @property
    def unit_price(self) -> Decimal:
        """The exact price of one unit beyond what is included."""
        return for_one(self.overage_price, self.per)

    def problems(self) -> list[Problem]:
        """What is wrong with these values."""
        return _unit_problems("overage_price", self.overage_price, self.per)


@dataclass(frozen=True, slots=True)
class Flat:
    """A fee for each period, whatever is used."""

    model: ClassVar[str] = "flat"
    fee: Decimal

    def problems(self) -> list[Problem]:
        """Nothing can be wrong."""
        return []


@dataclass(frozen=True, slots=True)
class Seat:
    """A fee for each period and seat; `seats` None: as many as the subscription has."""

    model: ClassVar[str] = "seat"
    fee: Decimal
    seats: Decimal | None = None

    def problems(self) -> list[Problem]:
        """Nothing can be wrong."""
        return []


@dataclass(frozen=True, slots=True)
class OneOff:
    """A fee once, when a subscription to the plan begins; never prorated."""

    model: ClassVar[str] = "one_off"
    fee: Decimal

    def problems(self) -> list[Problem]:
        """Nothing can be wrong."""
        return []


Metered = PerUnit | Graduated | Volume | Package | Percentage | Prepaid
"""Models that price what was counted."""
Fee = Flat | Seat | OneOff
"""Models that cost something without any usage."""
Pricing = Metered | Fee

MODELS: Final[dict[str, type[Pricing]]] = {
    of.model: of for of in (PerUnit, Graduated, Volume, Package, Percentage, Prepaid, Flat, Seat, OneOff)
}
FEES: Final = (Flat, Seat, OneOff)


def for_one(price: Decimal, per: int) -> Decimal:
    """The exact price of one unit, from a price for `per` of them (a power of ten)."""
    with exactly():
        return price.scaleb(-(len(str(per)) - 1))


def highest_unit_price(pricing: Pricing) -> Decimal:
    """The most that one unit can cost (without minimums, and of packages that are used up); 0 for what is not priced by
    the unit."""
    match pricing:
        case PerUnit() | Prepaid():
            return pricing.unit_price
        case Graduated() | Volume():
            return max(for_one(tier.price, pricing.per) for tier in pricing.tiers)
        case Package():
            with localcontext(prec=80):
                return (pricing.price / pricing.size).quantize(Decimal(1).scaleb(-PRICE_DECIMALS), ROUND_CEILING)
        case _:
            return ZERO


def _unit_problems(field: str, price: Decimal, per: int) -> list[Problem]:
    if decimals_of(for_one(price, per)) > PRICE_DECIMALS:
        return [(field, f"{plain(price)} per {per} has more than {PRICE_DECIMALS} decimals per unit")]
    return []


def _tier_problems(tiers: tuple[Tier, ...], per: int) -> list[Problem]:
    found = [p for tier in tiers for p in _unit_problems("tiers", tier.price, per)]
    *bounded, last = tiers
    if last.up_to is not None:
        found.append(("tiers", "the last tier must be without `up_to`: it takes all that is beyond the others"))
    below = ZERO
    for tier in bounded:
        if tier.up_to is None:
            found.append(("tiers", "only the last tier is without `up_to`"))
        elif tier.up_to <= below:
            found.append(("tiers", f"`up_to` must rise: {plain(tier.up_to)} stands after {plain(below)}"))
        else:
            below = tier.up_to
    return found
