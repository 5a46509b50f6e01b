"""What must be posted or billed so that what was comes to what is (docs/spec/money.md 4 and 7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

from billing.money import ZERO, exactly
from billing.rating.lines import LineIdentity, RatedLine

PriceKey = tuple[LineIdentity, Decimal | None, str]
"""A line, its unit price, and its tax group: a price reduction, a discount of the whole or a true-up can be of another
group once more is known (docs/spec/money.md 7, 13.12)."""


def difference(target: Iterable[RatedLine], posted: Iterable[RatedLine]) -> tuple[RatedLine, ...]:
    """What must be posted so that the posted lines come to the target.

    Same unit price: the difference in quantity and amount. Another unit price, or usage that is gone: the reversal
    of what was posted, and a line of its own at the new price. Nothing if they agree.
    """
    wanted = {_key(line): line for line in target}
    before = net(posted)
    found: list[RatedLine] = []
    for key in sorted(wanted.keys() | before.keys(), key=lambda key: (key[0], key[1] or ZERO, key[2])):
        new, old = wanted.get(key), before.get(key)
        if new is None:
            assert old is not None, "a key is from one of the two"
            repriced = any(identity == key[0] for identity, _, _ in wanted)
            reason = "reversal: priced otherwise now" if repriced else "reversal: no such usage now"
            found.append(_changed(old, -1, old, reason, nothing=True))
        elif old is None:
            if any(_figures(new)):
                found.append(new)
        elif _figures(new) != _figures(old):
            more = new.quantity > old.quantity or (new.quantity == old.quantity and new.amount > old.amount)
            found.append(_changed(new, -1, old, "more usage" if more else "less usage"))
    return tuple(found)


def net(posted: Iterable[RatedLine]) -> Mapping[PriceKey, RatedLine]:
    """Posted lines summed per identity and unit price; those that come to nothing are left out."""
    sums: dict[PriceKey, RatedLine] = {}
    for line in posted:
        old = sums.get(_key(line))
        sums[_key(line)] = line if old is None else _changed(line, 1, old, line.reason)
    return {key: line for key, line in sums.items() if any(_figures(line))}


def _split_of(line: RatedLine | None, sign: int, by: RatedLine) -> tuple[Fraction, Fraction] | None:
    if by.split is None and (line is None or line.split is None):
        return None
    quantity, free = (Fraction(0), Fraction(0)) if line is None else _fractions(line)
    return quantity + sign * _fractions(by)[0], free + sign * _fractions(by)[1]


def _fractions(line: RatedLine) -> tuple[Fraction, Fraction]:
    return line.split or (Fraction(line.quantity), Fraction(line.free))


def _figures(line: RatedLine) -> tuple[Decimal, ...]:
    return line.quantity, line.amount, line.free, line.units or ZERO, line.included or ZERO


def _key(line: RatedLine) -> PriceKey:
    return line.identity, line.unit_price, line.tax_group


def _changed(line: RatedLine, sign: int, by: RatedLine, reason: str, *, nothing: bool = False) -> RatedLine:
    """`line` (or nothing at all) with `by` added or taken away."""

    def of(name: str) -> Decimal:
        own, other = getattr(line, name) or ZERO, getattr(by, name) or ZERO
        return (ZERO if nothing else own) + sign * other

    with exactly():
        return replace(
            line,
            split=_split_of(None if nothing else line, sign, by),
            quantity=of("quantity"),
            amount=of("amount"),
            free=of("free"),
            units=None if line.units is None else of("units"),
            included=None if line.included is None else of("included"),
            reason=reason,
        )
