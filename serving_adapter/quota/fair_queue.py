"""Who is next when the pool has no room for all: weighted shares per tier, tenants in turn, with ageing. Pure.

Start-time fair queueing (Goyal, Vin, Cheng 1996) on two levels: each tier advances by cost ÷ weight with what it gets,
and within a tier each tenant by cost. A tier that was idle begins where the others are: it saves nothing up. Waiting
itself counts as well: after `AGEING_S` seconds a request of the lightest tier stands as if its tier had got one place
less, so that nobody waits for ever behind a tier whose weight is a thousand times larger. Seconds, monotonic.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from typing import Final, Generic, NamedTuple, TypeVar

AGEING_S: Final = 2.0

Item = TypeVar("Item")


class Waiting(NamedTuple, Generic[Item]):
    """One that waits. Ordered by its tenant's turn, then by arrival."""

    tag: float
    number: int
    since: float
    cost: float
    tenant: str
    item: Item


class _Tier(Generic[Item]):
    """The requests of one tier, and how much it has got."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.tag = 0.0
        self.heap: list[Waiting[Item]] = []
        self.tenants: dict[str, float] = {}
        self.now = 0.0
        """How far its tenants are."""


class FairQueue(Generic[Item]):
    """What waits for room."""

    def __init__(self, weights: Mapping[str, int], other_weight: int) -> None:
        self._weights = weights
        self._other_weight = other_weight
        self._tiers: dict[str, _Tier[Item]] = {}
        self._now = 0.0
        """How far the tiers are."""
        self._number = 0

    def __len__(self) -> int:
        return sum(len(tier.heap) for tier in self._tiers.values())

    def push(self, item: Item, *, tier: str, tenant: str, now: float, cost: float = 1.0) -> None:
        """Take one into the queue. `cost` > 0: what it takes of the pool, in any unit."""
        mine = self._tiers.get(tier)
        if mine is None:
            mine = self._tiers[tier] = _Tier(self._weights.get(tier, self._other_weight))
        if not mine.heap:
            mine.tag = max(mine.tag, self._now)
            mine.tenants.clear()
        self._number += 1
        begins = max(mine.tenants.get(tenant, 0.0), mine.now)
        mine.tenants[tenant] = begins + cost
        heapq.heappush(mine.heap, Waiting(begins, self._number, now, cost, tenant, item))

    def pop(self, now: float, lives: Callable[[Item], bool] = lambda item: True) -> Item | None:
        """The next that still waits; None if nobody does. Those who gave up are charged to nobody."""
        while waiting := [tier for tier in self._tiers.values() if tier.heap]:
            tier = min(waiting, key=lambda each: each.tag - (now - each.heap[0].since) / AGEING_S)
            found = heapq.heappop(tier.heap)
            if lives(found.item):
                self._now = max(self._now, tier.tag)
                tier.now = max(tier.now, found.tag)
                tier.tag += found.cost / tier.weight
                return found.item
        return None
