"""Ids that the platform mints: UUIDv7 (RFC 9562), whose order is that of time."""

from __future__ import annotations

import os
from collections.abc import Callable


def uuid7(now_ns: int, random: Callable[[int], bytes] = os.urandom) -> str:
    """A UUIDv7 for a time in nanoseconds since 1970: milliseconds, then 74 random bits."""
    time, chance = f"{now_ns // 1_000_000 & (1 << 48) - 1:012x}", random(10).hex()
    variant = "89ab"[int(chance[4], 16) & 3]
    return f"{time[:8]}-{time[8:]}-7{chance[1:4]}-{variant}{chance[5:8]}-{chance[8:]}"
