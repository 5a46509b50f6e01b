"""Messages by tenant in a bounded number of labels: the busiest tenants by name, all others together.

Each minute the busiest of the last one are named anew. A message counts for its tenant if that one is named when it
comes, else for the others, so that every series only grows while it is there, and together they hold every message. A
tenant that is named again begins at 0 again, which Prometheus' `rate` takes for a restart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

NAMED_AT_MOST: Final = 20
ANEW_EVERY_S: Final = 60.0
OTHERS: Final = "(other)"
"""No tenant can have this id."""


class BusiestTenants:
    """Counts of one worker. Memory: the tenants of one minute, and NAMED_AT_MOST counts."""

    def __init__(self, now: float) -> None:
        """`now` = monotonic seconds, here and below."""
        self._named_at = now
        self._recent: Counter[str] = Counter()
        self._named: dict[str, int] = {}
        self._others = 0

    def add(self, messages: Mapping[str, int], now: float) -> None:
        """Count messages by tenant."""
        for tenant_id, count in messages.items():
            if len(self._named) < NAMED_AT_MOST:
                self._named.setdefault(tenant_id, 0)
            if tenant_id in self._named:
                self._named[tenant_id] += count
            else:
                self._others += count
        self._recent.update(messages)
        if now - self._named_at >= ANEW_EVERY_S:
            busiest = [tenant_id for tenant_id, _ in self._recent.most_common(NAMED_AT_MOST)]
            self._named = {tenant_id: self._named.get(tenant_id, 0) for tenant_id in busiest}
            self._recent.clear()
            self._named_at = now

    def series(self) -> dict[str, int]:
        """Messages of each named tenant, and of all others (OTHERS). For any thread."""
        return self._named | {OTHERS: self._others}
