"""R11: what moved against the month before, by tenant and model, and why: volume, price, mix. Values in, values out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

from billing.money import ZERO, exactly, plain, quantise_line, round_to_quantum
from billing.rating import RatedLine
from reconciliation.comparison import Difference

THRESHOLD: Final = Decimal("0.05")
"""A movement is explained by a person that is more than this share of the currency's whole in the month before."""
_CENT: Final = Decimal("0.01")

MOVED: Final = ("tenant_id", "model", "currency", "before", "now", "change", "volume", "price", "mix")
Cell = tuple[str, str, str]
"""(tenant, model, currency)."""


@dataclass(frozen=True, slots=True)
class Movement:
    """What a tenant's spending on a model changed by: exact major units; its three parts add up to it.

    Volume: more or fewer units at the price of before. Price: the units of now at other prices. Mix: that they are
    others, and what is no price of a unit, such as fees.
    """

    tenant_id: str
    model: str
    currency: str
    before: Decimal
    now: Decimal
    volume: Decimal
    price: Decimal

    @property
    def change(self) -> Decimal:
        """What it changed by."""
        with exactly():
            return self.now - self.before

    @property
    def mix(self) -> Decimal:
        """What neither volume nor price explains."""
        with exactly():
            return self.change - self.volume - self.price

    @property
    def key(self) -> str:
        """What it is told by."""
        return f"{self.tenant_id}/{self.model or 'any model'}/{self.currency}"

    @property
    def row(self) -> dict[str, str]:
        """As the evidence shows it: by MOVED, amounts in major units."""
        amounts = (self.before, self.now, self.change, self.volume, self.price, self.mix)
        return dict(zip(MOVED, (self.tenant_id, self.model, self.currency, *map(plain, amounts)), strict=True))

    @property
    def told(self) -> str:
        """The change with its parts."""
        parts = ", ".join(
            f"{name} {_shown(value)}"
            for name, value in (("volume", self.volume), ("price", self.price), ("mix", self.mix))
            if value
        )
        return f"{_shown(self.now)} ({parts})"


def read(row: Mapping[str, str]) -> Movement:
    """A movement from its row."""
    amounts = (Decimal(row[name]) for name in ("before", "now", "volume", "price"))
    return Movement(row["tenant_id"], row["model"], row["currency"], *amounts)


def movements(before: Iterable[RatedLine], now: Iterable[RatedLine]) -> list[Movement]:
    """Every tenant and model whose spending changed, the largest change first."""
    old, new = _cells(before), _cells(now)
    found = [_movement(cell, old.get(cell, {}), new.get(cell, {})) for cell in old.keys() | new.keys()]
    return sorted((m for m in found if m.change), key=lambda m: (-abs(m.change), m.key))


def to_explain(found: Iterable[Movement], before: Iterable[RatedLine]) -> list[Difference]:
    """Movements above THRESHOLD, and all in a currency that nothing was billed in; none of a first month, which nothing
    stands beside."""
    whole: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for line in before:
            whole[line.currency] += line.amount
        if not whole:
            return []
        return [
            Difference(each.key, _shown(each.before), each.told)
            for each in found
            if abs(each.change) > THRESHOLD * abs(whole[each.currency])
        ]


def _cells(lines: Iterable[RatedLine]) -> dict[Cell, dict[str, tuple[Decimal, Decimal]]]:
    """By cell and metric: units, amount."""
    found: dict[Cell, dict[str, tuple[Decimal, Decimal]]] = defaultdict(dict)
    with exactly():
        for line in lines:
            of = found[line.identity.tenant_id, line.where[0], line.currency]
            units, amount = of.get(str(line.metric), (ZERO, ZERO))
            of[str(line.metric)] = units + line.counted, amount + line.amount
    return found


def _movement(
    cell: Cell, old: Mapping[str, tuple[Decimal, Decimal]], new: Mapping[str, tuple[Decimal, Decimal]]
) -> Movement:
    counted = {metric for metric in old.keys() | new.keys() if any(of.get(metric, (ZERO,))[0] for of in (old, new))}
    with exactly():
        before = sum((amount for _, amount in old.values()), ZERO)
        now = sum((amount for _, amount in new.values()), ZERO)
        units_before = sum((old[m][0] for m in counted if m in old), ZERO)
        units_now = sum((new[m][0] for m in counted if m in new), ZERO)
    volume = price = Fraction(0)
    if units_before:
        paid = sum((Fraction(old[m][1]) for m in counted if m in old), Fraction(0))
        volume = Fraction(units_now - units_before) * paid / Fraction(units_before)
    for metric in counted:
        units, amount = new.get(metric, (ZERO, ZERO))
        was, paid_then = old.get(metric, (ZERO, ZERO))
        if units and was:
            price += Fraction(amount) - Fraction(units) * Fraction(paid_then) / Fraction(was)
    return Movement(*cell, before, now, quantise_line(volume), quantise_line(price))


def _shown(amount: Decimal) -> str:
    return plain(round_to_quantum(amount, _CENT))
