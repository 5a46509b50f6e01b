"""The finest line of a document (money.md 13.1), and what of usage a credit may draw on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from reconciliation.oracle.rational import ZERO
from reconciliation.oracle.segments import Pair

By = TypeVar("By", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Line:
    """`amount` in major units with at most 12 decimals, gross where tax is inclusive.

    `kind` is usage, discount, minimum, maximum, fee, one_off, fee_discount, invoice_discount, true_up, credit, unused
    or adjustment; `charge` is empty and `pair` None where the line belongs to none. `of_fee`: what a prepaid charge's
    discount or maximum takes off its fee, the rest being off its overage.
    """

    key: str
    kind: str
    charge: str
    pair: Pair | None
    group: str
    amount: Fraction
    quantity: Fraction | None = None
    unit_price: Fraction | None = None
    free: Fraction = ZERO
    units: Fraction | None = None
    included: Fraction | None = None
    of_fee: Fraction = ZERO

    @property
    def fee(self) -> Fraction:
        """What of the amount is a fee's: all of it, none, or a part."""
        return self.amount if self.kind in ("fee", "one_off", "fee_discount") else self.of_fee

    @property
    def usage(self) -> Fraction:
        """What of the amount is usage's."""
        return self.amount - self.fee


@dataclass(frozen=True, slots=True)
class Draw:
    """What one event's usage of one charge costs after discounts and maximum: what credits may cover (6, 13.8).

    `model`: the event's, where some grant asks for it. `fee`: it is a fee, when its time begins; a prepaid charge's has
    the key of its line, which no grant names.
    """

    completed: int
    charge: str
    group: str
    order: int
    value: Fraction
    model: str = ""
    fee: bool = False


def totals(lines: Iterable[Line], by: Callable[[Line], By]) -> dict[By, Fraction]:
    """Σ amount of the lines, by what `by` says of them."""
    return totals_of(lines, by, lambda line: line.amount)


def totals_of(
    lines: Iterable[Line], by: Callable[[Line], By], amount: Callable[[Line], Fraction]
) -> dict[By, Fraction]:
    """Σ of an amount of the lines, by what `by` says of them."""
    result: dict[By, Fraction] = {}
    for line in lines:
        key = by(line)
        result[key] = result.get(key, ZERO) + amount(line)
    return result
