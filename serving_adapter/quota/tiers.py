"""What tiers mean: how soon, how large a share, and what without the quota service. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

Mode = Literal["allow", "safe_capacity", "deny"]
"""What a caller does that cannot reach the service."""


class TierPolicy(NamedTuple):
    """How a tier's requests are treated."""

    priority: int
    """Lower is sooner."""
    weight: int
    """Its share when capacity is short."""
    on_unavailable: Mode
    is_shed: bool = False
    """Whether a tenant of it is limited that floods."""


TIERS: Final[Mapping[str, TierPolicy]] = {
    "enterprise": TierPolicy(0, 8, "allow"),
    "paid": TierPolicy(20, 4, "safe_capacity"),
    "free": TierPolicy(40, 1, "deny", is_shed=True),
}
OTHERS: Final = TierPolicy(20, 2, "safe_capacity")
"""Of tenants without a tier, or with one that is not named here."""


def policy_of(tier: str) -> TierPolicy:
    """A tier's policy."""
    return TIERS.get(tier, OTHERS)
