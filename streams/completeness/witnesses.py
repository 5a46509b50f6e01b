"""Two witnesses side by side: what a replica says it did, and what was counted of it (docs/spec/metering.md 6.4).

Values in, values out, without tolerance. Independence is stated, not assumed: heartbeats come from the process that
made the events, by another way (straight to Kafka, not through the spool and the shipper). Engine counters, which come
from the engine, are in `engine_witness.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

TenantModel = tuple[str, str]
"""(tenant_id, model)."""


class Counts(NamedTuple):
    """Cumulative counts; tokens in tokens, `input_tokens` with the cached ones."""

    events: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_hit_tokens: int = 0

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Counts) -> Counts:
        """What is left without the other."""
        return Counts(*(a - b for a, b in zip(self, other, strict=True)))


class Comparable(Enum):
    """How far a boot's reports and what was counted stand for the same events."""

    EXACT = "exact"
    """All numbers up to the last heartbeat are here, and none beyond: both sides mean the same events."""
    AT_LEAST = "at_least"
    """All up to the last heartbeat are here, and later ones: what was counted may be more, never less."""
    NOT_YET = "not_yet"
    """Numbers are missing: they are the difference."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One key on which two witnesses do not agree."""

    key: tuple[str, ...]
    reported: tuple[int, ...]
    counted: tuple[int, ...]


def comparable(last_seq: int, received_through: int, highest: int) -> Comparable:
    """How a boot's two sides may be compared now."""
    if received_through < last_seq:
        return Comparable.NOT_YET
    return Comparable.EXACT if highest <= last_seq else Comparable.AT_LEAST


def differences(
    reported: Mapping[TenantModel, Counts], counted: Mapping[TenantModel, Counts], how: Comparable
) -> list[Difference]:
    """Keys of one boot on which heartbeats and counted events differ; none while numbers are missing.

    With all numbers here, a difference is an event that is in quarantine, or counted under another identity, or a
    replica that reports something else than it sends.
    """
    if how is Comparable.NOT_YET:
        return []
    found = []
    for key in sorted(reported.keys() | counted.keys()):
        said, was = reported.get(key, Counts()), counted.get(key, Counts())
        agrees = said == was if how is Comparable.EXACT else all(w >= s for w, s in zip(was, said, strict=True))
        if not agrees:
            found.append(Difference(key, said, was))
    return found


class Requests(NamedTuple):
    """A boot's requests: those it started, those that ended, those still open, those recorded as lost."""

    started: int
    ended: int
    open: int = 0
    lost: int = 0

    @property
    def unexplained(self) -> int:
        """Requests of which nobody says what became: started − ended − open − lost; 0 when all are accounted for."""
        return self.started - self.ended - self.open - self.lost
