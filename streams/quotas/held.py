"""A tenant in a shard: its book, and what is about to happen to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from serving_adapter.quota.groups import group_of
from streams.quotas.book import TenantBook
from streams.quotas.definitions import OnUnavailable
from streams.quotas.escrow import Escrow
from streams.quotas.meter_set import NEVER
from streams.quotas.meters import BudgetMeter


class Awaited(NamedTuple):
    """Definitions whose budgets are being read: of which tier, as told, and the budgets' periods."""

    told_tier: str
    budgets: Sequence[BudgetMeter]


@dataclass(slots=True, eq=False)
class Held:
    """A tenant's book in the hands of a shard."""

    book: TenantBook
    group: int = field(init=False)
    changes_at: int = NEVER
    """When its next dated definition begins."""
    told_tier: str = ""
    on_unavailable: OnUnavailable = "deny"
    """What a caller does that cannot reach us: as the quotas say, the strictest, else as the tier does."""
    is_loading: bool = True
    """Whether a budget does not know yet what is confirmed."""
    awaits: Awaited | None = None
    """Other definitions hold, and their budgets are being read: until then those before decide."""
    found_in: int = -1
    """The hour, since 1970, in which it was last told that usage of it is overdue."""

    is_shed: bool = False
    """Whether it is limited where it floods: as its tier says."""
    escrow: Escrow | None = None
    """What may be answered before it is written, if anything."""
    no_escrow_until: int = 0

    def __post_init__(self) -> None:
        self.group = group_of(self.book.tenant_id)
