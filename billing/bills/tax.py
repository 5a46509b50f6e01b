"""Tax on a document (docs/spec/money.md 5): exclusive, inclusive, reverse charge, exempt. Values in, values out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from billing.errors import UnknownTaxGroup
from billing.money import ZERO, Currency, Rounding, from_minor, round_fraction, to_minor


class TaxMode(StrEnum):
    """How tax meets prices. With reverse charge the recipient owes it; exempt needs evidence, which the payer keeps."""

    NONE = "none"
    EXCLUSIVE = "exclusive"
    INCLUSIVE = "inclusive"
    REVERSE_CHARGE = "reverse_charge"
    EXEMPT = "exempt"


@dataclass(frozen=True, slots=True)
class TaxRules:
    """What holds for a payer at a tax point: the mode, and the rate of each tax group (0.20 for 20 %)."""

    mode: TaxMode = TaxMode.NONE
    rates: Mapping[str, Decimal] = field(default_factory=dict)
    rounding: Rounding = Rounding.HALF_UP

    @property
    def inclusive(self) -> bool:
        """Whether prices, and so lines, contain the tax."""
        return self.mode is TaxMode.INCLUSIVE

    def rate(self, group: str) -> Decimal:
        """The rate that a group is taxed at. Raises UnknownTaxGroup."""
        if self.mode not in (TaxMode.EXCLUSIVE, TaxMode.INCLUSIVE):
            return ZERO
        if group not in self.rates:
            raise UnknownTaxGroup(f"no rate for tax group {group}: known are {', '.join(sorted(self.rates))}")
        return self.rates[group]


NO_TAX = TaxRules()


@dataclass(frozen=True, slots=True)
class TaxRow:
    """The tax of a group on a document, in minor units; `base_minor` is net."""

    group: str
    rate: Decimal
    base_minor: int
    tax_minor: int


def tax_row(group: str, amount_minor: int, rules: TaxRules, money: Currency) -> TaxRow:
    """The tax on a group's rounded lines, whose sum is net, or gross where prices contain the tax."""
    rate = rules.rate(group)
    share = Fraction(rate) / (1 + Fraction(rate)) if rules.inclusive else Fraction(rate)
    exact = Fraction(from_minor(amount_minor, money)) * share
    tax_minor = to_minor(round_fraction(exact, money.quantum, rules.rounding), money)
    return TaxRow(group, rate, amount_minor - tax_minor if rules.inclusive else amount_minor, tax_minor)
