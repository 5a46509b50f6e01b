"""Ids that the platform mints: UUIDv7 (RFC 9562), whose order is that of time."""

from __future__ import annotations

import os
from collections.abc import Callable


def uuid7(now_ns: int, random: Callable[[int], bytes] = os.urandom) -> str:
    """A UUIDv7 for a time in nanoseconds since 1970: milliseconds, then 74 random bits."""
    value = (now_ns // 1_000_000 & (1 << 48) - 1) << 80 | int.from_bytes(random(10), "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(3 << 62) | 2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
