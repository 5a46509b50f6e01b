"""Attempts that a gateway has numbered itself: each is served once, as an event's identity is for one attempt.

A signed header may come again as long as it is valid, and a gateway may retry without counting. What this process has
begun is refused a second time while it runs, and for as long as the header that named it can be valid.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from serving_adapter.isolation.callers import CLOCKS_DIFFER_S, LONGEST_S

KEPT_S: Final = float(LONGEST_S + 2 * CLOCKS_DIFFER_S)
"""How long an attempt that is over is remembered, at least; twice that at most."""


class AttemptId(NamedTuple):
    """What a gateway signs of an attempt."""

    tenant_id: str
    request_id: str
    attempt: int


class Dispatched:
    """Those of one process."""

    def __init__(self) -> None:
        self._open: set[AttemptId] = set()
        self._over: set[AttemptId] = set()
        self._over_before: set[AttemptId] = set()
        self._turned_at = 0.0

    def claim(self, attempt: AttemptId, now_s: float) -> bool:
        """Whether nobody else has it, at this monotonic time. Who has claimed it lets go of it."""
        if now_s - self._turned_at > KEPT_S:
            self._over_before = self._over if now_s - self._turned_at < 2 * KEPT_S else set()
            self._over, self._turned_at = set(), now_s
        if attempt in self._open or attempt in self._over or attempt in self._over_before:
            return False
        self._open.add(attempt)
        return True

    def let_go(self, attempt: AttemptId, *, begun: bool) -> None:
        """It is over. One that had not `begun` has no event, and may come again."""
        self._open.discard(attempt)
        if begun:
            self._over.add(attempt)
