"""The twin's time: everything the twin dates, and the age of an idempotency key, comes from here."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Unix time from ``source`` (seconds), moved forward by ``ahead`` seconds. It never goes back."""

    def __init__(self, source: Callable[[], float] = time.time, ahead: int = 0) -> None:
        self._source = source
        self.ahead = ahead

    def now(self) -> int:
        """Whole seconds, Stripe's resolution."""
        return int(self._source()) + self.ahead

    def advance(self, seconds: int) -> None:
        """Let so much time pass at once. Raises ValueError."""
        if seconds < 0:
            raise ValueError("the twin's time only goes forward")
        self.ahead += seconds
