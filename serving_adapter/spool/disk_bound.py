"""What happens when the spool's disk fills up or fails (docs/spec/metering.md 8.3). Values in, values out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Policy = Literal["block", "shed_free", "serve_memory"]
Room = Literal["durable", "memory", "refused"]

TIGHT_FROM: Final = 0.85
"""From this share of the bound on, `shed_free` refuses the tiers that may be refused."""
PER_OPEN_REQUEST_BYTES: Final = 4096
"""Kept free for each open request: its end must find room whatever comes. An event has about 500 bytes."""


@dataclass(frozen=True, slots=True)
class DiskState:
    """Bytes of the spool with all its boots, what they may be, open requests, whether the last write failed."""

    used_bytes: int
    bound_bytes: int
    open_requests: int
    failing: bool

    @property
    def full(self) -> bool:
        """No further request may begin on this disk."""
        return self.failing or self.used_bytes + self.open_requests * PER_OPEN_REQUEST_BYTES >= self.bound_bytes

    @property
    def tight(self) -> bool:
        """Nearly full."""
        return self.full or self.used_bytes >= TIGHT_FROM * self.bound_bytes


def room_for(policy: Policy, disk: DiskState, *, may_be_shed: bool) -> Room:
    """May a request begin, and is it kept on disk or in memory only?"""
    if policy == "serve_memory":
        return "memory" if disk.full else "durable"
    if disk.full or (policy == "shed_free" and may_be_shed and disk.tight):
        return "refused"
    return "durable"
