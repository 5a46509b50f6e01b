"""The verdict on a second arrival of the same identity (docs/spec/metering.md 1.5)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from serving_adapter.events import SOURCE_STRENGTH


class Verdict(Enum):
    """What an arrival is, beside the event that was counted first."""

    DUPLICATE = "duplicate"
    RETIMED = "retimed"
    """A duplicate with another timestamp: the first one's stays."""
    CONFLICT = "conflict"
    STRONGER = "stronger"
    WEAKER = "weaker"


@dataclass(frozen=True, slots=True)
class Seen:
    """What decides between duplicate and conflict. `numbered_by` is (replica, boot), or None if unnumbered."""

    content_digest: bytes
    usage_source: str
    completed_at: datetime
    numbered_by: tuple[str, str] | None


def judge(counted: Seen, arrived: Seen) -> Verdict:
    """Compare an arrival with the event that is counted."""
    equal = counted.content_digest == arrived.content_digest
    more = SOURCE_STRENGTH[arrived.usage_source] - SOURCE_STRENGTH[counted.usage_source]
    if more > 0:
        return Verdict.STRONGER
    if equal:
        numbers = (counted.numbered_by, arrived.numbered_by)
        if None not in numbers and numbers[0] != numbers[1]:
            return Verdict.CONFLICT
        return Verdict.DUPLICATE if counted.completed_at == arrived.completed_at else Verdict.RETIMED
    return Verdict.WEAKER if more < 0 else Verdict.CONFLICT
