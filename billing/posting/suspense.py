"""Money of nobody that we know (1090), and what two people have posted from there. Values in, values out.

docs/spec/money.md 9: what is unknown goes to 1090, and R6 is red until somebody has looked at it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

from billing.money import ZERO, exactly, plain, total

_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Suspended:
    """What something of Stripe's (a balance transaction, a dispute) has in 1090; in major units, debit positive."""

    name: str
    legal_entity: str
    currency: str
    amount: Decimal

    @property
    def told(self) -> str:
        """What it is, and the way on."""
        return (
            f"{self.name}: {plain(self.amount)} {self.currency} of {self.legal_entity} is in 1090, whose it is nobody"
            f" knows: `tollbook ledger post` books it where it belongs, with {self.name} in its memo"
        )


def unexplained(booked: Iterable[Suspended], by_hand: Iterable[Suspended]) -> list[Suspended]:
    """What is in 1090 and no entry by hand has taken away; nothing of a currency that has nothing there.

    An entry by hand (`name`: its memo) takes away what its memo names, all of it, if it comes to that; else it is
    listed itself.
    """
    open_: dict[tuple[str, str], dict[str, Suspended]] = defaultdict(dict)
    with exactly():
        for each in booked:
            items = open_[each.legal_entity, each.currency]
            known = items.get(each.name)
            items[each.name] = each if known is None else replace(each, amount=known.amount + each.amount)
        for each in by_hand:
            items = open_[each.legal_entity, each.currency]
            words = set(_WORD.findall(each.name))
            named = [name for name in items if name in words]
            if named and total(items[name].amount for name in named) == -each.amount:
                for name in named:
                    del items[name]
            else:
                items[f"by hand: {each.name}"] = replace(each, name=f"by hand: {each.name}")
    left = []
    for items in open_.values():
        if total(each.amount for each in items.values()) != ZERO:
            left += [each for each in items.values() if each.amount]
    return left
