"""The twin's time: everything the twin dates, and the age of an idempotency key, comes from here."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Unix time from ``source`` (seconds). One place, so that it can become a time that is moved."""

    def __init__(self, source: Callable[[], float] = time.time) -> None:
        self._source = source

    def now(self) -> int:
        """Whole seconds, Stripe's resolution."""
        return int(self._source())
