"""What a replay is made from: messages as they would have come, and what cannot be one. Values only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from serving_adapter.errors import RefusedEvent
from serving_adapter.events import decode_completed


class Found(NamedTuple):
    """A usage event as JSON, and where it was found."""

    origin: str
    message: bytes


class NotMappable(NamedTuple):
    """What was found and is no usage event, and why."""

    origin: str
    reason: str
    raw: bytes


Material = Iterator[Found | NotMappable]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events of the material are wanted: completed in [begin, end), of these tenants (none named: of all)."""

    begin: datetime | None = None
    end: datetime | None = None
    tenants: Collection[str] = ()

    def of(self, material: Iterable[Found | NotMappable]) -> Material:
        """Those that are wanted. What cannot be judged is: it is named in the plan."""
        if self.begin is None and self.end is None and not self.tenants:
            yield from material
            return
        for each in material:
            if isinstance(each, NotMappable) or self._takes(each.message):
                yield each

    def _takes(self, message: bytes) -> bool:
        try:
            event, at = decode_completed(message)
        except RefusedEvent:
            return True
        if self.tenants and event.tenant_id not in self.tenants:
            return False
        return (self.begin is None or at >= self.begin) and (self.end is None or at < self.end)
