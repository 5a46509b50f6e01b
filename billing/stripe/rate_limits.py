"""Stripe's rate limits, kept by us: token buckets for all requests and for each endpoint, slower after a 429.

The limits are those of https://docs.stripe.com/rate-limits: 100 requests a second in live mode, 25 in a sandbox, 25 on
one endpoint. Other programs share them, so a 429 lowers the rate and answers raise it again (additive increase,
multiplicative decrease).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LIVE_PER_S: Final = 100.0
SANDBOX_PER_S: Final = 25.0
ENDPOINT_PER_S: Final = 25.0
BURST_S: Final = 0.2
"""What may go out at once after a pause, in seconds' worth: bursts of a second would be refused in the next one."""
REPLY_S: Final = 0.3
"""How long Stripe takes for a request, as a rule: so many must be under way at once to use a limit up."""
SENDERS: Final = 8
"""Without limits: a twin on the same machine is not faster with more."""
SLOWEST_PER_S: Final = 1.0
BACKOFF: Final = 0.5
RECOVERY: Final = 0.02
"""The share of the limit that each answer gives back after a 429: fifty answers for all of it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Requests a second, of all endpoints together and of each."""

    all_per_s: float
    endpoint_per_s: float = ENDPOINT_PER_S


class TokenBucket:
    """Lets through `rate` requests a second. Times are seconds of a clock that only goes forward."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.rate = limit
        self._tokens = max(1.0, limit * BURST_S)
        self._at = 0.0

    def book(self, now: float) -> float:
        """Take a token; how many seconds to wait for it."""
        most = max(1.0, self.rate * BURST_S)
        self._tokens = min(most, self._tokens + max(0.0, now - self._at) * self.rate)
        self._at = max(self._at, now)
        self._tokens -= 1
        return max(0.0, -self._tokens / self.rate)

    def refused(self) -> None:
        """A request was too many."""
        self.rate = max(min(SLOWEST_PER_S, self.limit), self.rate * BACKOFF)

    def answered(self) -> None:
        """A request was let through."""
        self.rate = min(self.limit, self.rate + self.limit * RECOVERY)


class RateLimiter:
    """Holds back requests to Stripe, and counts them by endpoint. Safe to use from several threads."""

    def __init__(
        self,
        limits: Limits | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._sleep = sleep
        self._guard = threading.Lock()
        self._all = TokenBucket(limits.all_per_s) if limits else None
        self._endpoints: dict[str, TokenBucket] = {}
        self.calls: Counter[str] = Counter()
        self.refusals = 0

    @property
    def senders(self) -> int:
        """How many requests should be under way at once."""
        return SENDERS if self._limits is None else max(SENDERS, round(self._limits.all_per_s * REPLY_S))

    def wait(self, endpoint: str) -> None:
        """Wait until a request to an endpoint may go out."""
        with self._guard:
            self.calls[endpoint] += 1
            wait_s = max((bucket.book(self._clock()) for bucket in self._buckets(endpoint)), default=0.0)
        if wait_s:
            self._sleep(wait_s)

    def answered(self, endpoint: str, *, refused: bool) -> None:
        """Take note of an answer: `refused` is a 429."""
        with self._guard:
            self.refusals += refused
            for bucket in self._buckets(endpoint):
                if refused:
                    bucket.refused()
                else:
                    bucket.answered()

    def _buckets(self, endpoint: str) -> list[TokenBucket]:
        if self._limits is None or self._all is None:
            return []
        if endpoint not in self._endpoints:
            self._endpoints[endpoint] = TokenBucket(self._limits.endpoint_per_s)
        return [self._all, self._endpoints[endpoint]]
