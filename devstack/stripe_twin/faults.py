"""What can be made to go wrong between a client and Stripe, on demand.

Each fault is one that Stripe's documentation, or the network, knows:
docs.stripe.com/error-low-level (connection and 5xx errors, what an idempotency key keeps of them),
docs.stripe.com/rate-limits (429, lock timeouts), docs.stripe.com/api/idempotent_requests (a stored 500 is repeated).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from itertools import count
from typing import Any

from devstack.stripe_twin.errors import API, INVALID_REQUEST, StripeError


class FaultKind(StrEnum):
    """What happens to a request instead of its normal course."""

    REFUSE = "refuse"
    """The connection is closed; nothing is done."""
    TIMEOUT = "timeout"
    """Nothing is done, and after `seconds` the connection is closed without a reply."""
    LOSE_REPLY = "lose_reply"
    """All is done and committed; the connection is closed instead of a reply."""
    COMMIT_LATE = "commit_late"
    """The connection is closed at once, as by a client that waits no longer; all is done and committed `seconds` later.
    Until then the key is in use."""
    ERROR = "error_500"
    """A 500 before execution began: nothing is done, nothing is stored under the key."""
    ERROR_STORED = "error_500_stored"
    """A 500 from within: nothing is done, and the key repeats the 500."""
    ERROR_COMMITTED = "error_500_committed"
    """All is done and committed, and the reply, which the key repeats, is a 500."""
    CONFLICT = "conflict_409"
    RATE_LIMIT = "rate_limit_429"
    LOCK_TIMEOUT = "lock_timeout_429"
    REFUSED = "refused_400"
    """Execution says no with the error code `code`: nothing is done, and the key repeats the 400. A finalizing leaves
    the refusal on its invoice (`last_finalization_error`), and tells of it."""
    SLOW = "slow"
    """All is done, and the reply comes after `seconds`: a webhook may come before it."""


BEFORE = frozenset({FaultKind.ERROR, FaultKind.CONFLICT, FaultKind.RATE_LIMIT, FaultKind.LOCK_TIMEOUT})
"""Answered with an error before the request is looked at."""


class Dropped(Exception):
    """The connection is closed without a reply."""


@dataclass(slots=True)
class Fault:
    """Meets requests whose method and path match (`*` is any text), `times` times after `skip` of them.

    `probability` makes it meet some of them only, by a generator of its own that begins with `seed`. `account` is the
    one that the key of the request belongs to; None is any.
    """

    kind: FaultKind
    method: str = "*"
    path: str = "*"
    times: int = 1
    skip: int = 0
    probability: float = 1.0
    seconds: float = 0.0
    seed: int = 0
    code: str | None = None
    account: str | None = None
    id: int = 0
    met: int = 0
    _chance: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def meets(self, account: str, method: str, path: str) -> bool:
        """Whether this request is met; counts it."""
        if self.times <= 0 or self.account not in (None, account):
            return False
        if not (fnmatchcase(method, self.method) and fnmatchcase(path, self.path)):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self._chance.random() >= self.probability:
            return False
        self.times -= 1
        self.met += 1
        return True

    def shown(self) -> dict[str, Any]:
        """As JSON: what is left of it, and how many requests it has met."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("_")}


class Faults:
    """The faults that wait for requests. Kept in memory: a restarted twin is well."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._numbers = count(1)

    def add(self, given: Mapping[str, Any]) -> Fault:
        """A fault as JSON gives it. Raises ValueError, TypeError."""
        fault = Fault(**{**given, "kind": FaultKind(given.get("kind", ""))})
        if fault.times < 1 or fault.skip < 0 or not 0 < fault.probability <= 1 or fault.seconds < 0:
            raise ValueError("times from 1, skip from 0, probability over 0 up to 1, seconds from 0")
        fault.id = next(self._numbers)
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forget all of them."""
        self._faults.clear()

    def listed(self) -> list[dict[str, Any]]:
        """All of them, as JSON."""
        return [fault.shown() for fault in self._faults]

    def next(self, account: str, method: str, path: str) -> Fault | None:
        """The first fault that meets a request."""
        return next((fault for fault in self._faults if fault.meets(account, method, path)), None)


def error_of(kind: FaultKind, key: str | None = None) -> StripeError:
    """The reply of a fault that answers with an error."""
    match kind:
        case FaultKind.CONFLICT:
            message = f"There is currently another in-progress request using this Idempotent Key: {key}."
            return StripeError(409, message, "idempotency_key_in_use", should_retry=True)
        case FaultKind.RATE_LIMIT:
            return too_many()
        case FaultKind.LOCK_TIMEOUT:
            message = "This object cannot be accessed right now because another API request or Stripe process is"
            return StripeError(429, f"{message} currently accessing it.", "lock_timeout", should_retry=True)
        case _:
            return StripeError(500, "An unknown error occurred", None, None, API)


def refusal(code: str | None) -> StripeError:
    """What a refused request is answered; a finalizing that was refused is told of all the same."""
    return StripeError(400, f"Stripe cannot do this ({code or 'no code'}).", code, keeps=True)


def too_many() -> StripeError:
    """More requests than the limit lets through."""
    return StripeError(429, "Request rate limit exceeded.", "rate_limit", None, INVALID_REQUEST)


class RateLimits:
    """Stripe's limits on requests a second, by account: of all, and of each endpoint (docs.stripe.com/rate-limits).

    Off until they are set. By the machine's clock, not the twin's: a moved time sends no more.
    """

    BURST_S = 1.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._per_s: tuple[float, float] | None = None
        self._left: dict[tuple[str, str], tuple[float, float]] = {}

    def set(self, all_per_s: float | None, endpoint_per_s: float | None) -> None:
        """Let through so many requests a second; None lets all through."""
        self._left.clear()
        self._per_s = None
        if all_per_s is not None and endpoint_per_s is not None:
            if all_per_s <= 0 or endpoint_per_s <= 0:
                raise ValueError("limits are above 0")
            self._per_s = all_per_s, endpoint_per_s

    def shown(self) -> dict[str, float | None]:
        """The limits as JSON."""
        all_per_s, endpoint_per_s = self._per_s or (None, None)
        return {"all_per_s": all_per_s, "endpoint_per_s": endpoint_per_s}

    def check(self, account: str, endpoint: str) -> None:
        """Count a request. Raises StripeError (429) where it is one too many."""
        if self._per_s is None:
            return
        now = self._clock()
        taken = []
        for name, per_s in (("", self._per_s[0]), (endpoint, self._per_s[1])):
            burst = max(1.0, per_s * self.BURST_S)
            left, at = self._left.get((account, name), (burst, now))
            left = min(burst, left + (now - at) * per_s)
            if left < 1:
                raise too_many()
            taken.append(((account, name), (left - 1, now)))
        self._left.update(taken)
