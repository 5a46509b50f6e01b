"""Which part of the tenants one belongs to, and which shard of the quota service answers for it. Pure."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

LEASE_MARK: Final = "~"
"""In a slice's id between tenant and name: no tenant's id has it."""
GROUPS: Final = 512
"""Tenants are stored in so many groups; a shard has whole groups."""
SHARDS_AT_MOST: Final = 64


@lru_cache(maxsize=1 << 17)
def group_of(tenant_id: str) -> int:
    """A tenant's group; `usage.quota_group` is the same in SQL."""
    return int(hashlib.md5(tenant_id.encode(), usedforsecurity=False).hexdigest()[:8], 16) % GROUPS


def shard_of(tenant_id: str, shards: int) -> int:
    """Which of so many shards answers for a tenant."""
    return group_of(tenant_id) % shards
