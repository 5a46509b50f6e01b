"""The replica's clock: wall time when the boot began, and monotonic time since (docs/spec/metering.md 3)."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ReplicaClock:
    """Times that never go back within a boot, whatever is done to the machine's clock."""

    def __init__(
        self, wall_ns: Callable[[], int] = time.time_ns, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._base_ns = wall_ns() - monotonic_ns()

    def now_ns(self) -> int:
        """Nanoseconds since 1970."""
        return self._base_ns + self._monotonic_ns()

    def offset_ms(self) -> int:
        """How far this clock runs before the machine's own, which may have been set since the boot, in ms."""
        return (self.now_ns() - self._wall_ns()) // 1_000_000


def rfc3339(ns: int) -> str:
    """Nanoseconds since 1970 as UTC text; digits beyond the microsecond are cut off."""
    second, within = divmod(ns // 1000, 1_000_000)
    return f"{_second(second)}.{within:06d}+00:00" if within else f"{_second(second)}+00:00"


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    """A second since 1970 without its offset; most times are of the second of the one before."""
    return (_EPOCH + timedelta(seconds=second)).replace(tzinfo=None).isoformat()
