"""The verdict on a further arrival of a known identity (docs/spec/metering.md 1.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from serving_adapter.events import SOURCE_STRENGTH, UsageEvent
from serving_adapter.identity import Identity
from streams.rules.chunks import Accepted
from streams.rules.identity_keys import minted, numbered_by


class Verdict(Enum):
    """What an arrival is, beside the versions of the event that are stored."""

    DUPLICATE = "duplicate"
    RETIMED = "retimed"
    """A duplicate with another timestamp: the first one's stays."""
    CONFLICT = "conflict"
    STRONGER = "stronger"
    """Of a stronger source than the version in force: takes its place."""
    WEAKER = "weaker"
    """Of a weaker source, with other content: is stored and counts nothing."""


@dataclass(frozen=True, slots=True)
class Version:
    """What decides between the verdicts. `numbered_by` stands for (replica, boot); None if unnumbered."""

    content_digest: bytes
    usage_source: str
    completed_at: datetime
    numbered_by: bytes | None

    @property
    def strength(self) -> int:
        """Greater is stronger."""
        return SOURCE_STRENGTH[self.usage_source]


def in_force(versions: Sequence[Version]) -> Version:
    """The version that counts: the one of the strongest source. Each source has one version at most."""
    return max(versions, key=lambda version: version.strength)


def judge(stored: Sequence[Version], arrived: Version) -> Verdict:
    """Compare an arrival with the stored versions of its identity (at least one)."""
    beside = compared_with(stored, arrived)
    if arrived.strength > beside.strength:
        return Verdict.STRONGER
    if arrived.usage_source == beside.usage_source or arrived.content_digest == beside.content_digest:
        return _judge_equal_source(beside, arrived)
    return Verdict.WEAKER


def compared_with(stored: Sequence[Version], arrived: Version) -> Version:
    """The version that an arrival is compared with: its own source's, else the one in force."""
    same_source = [version for version in stored if version.usage_source == arrived.usage_source]
    return same_source[0] if same_source else in_force(stored)


def why_conflict(stored: Version, arrived: Version) -> str:
    """What makes two versions of equal source a conflict, for a person."""
    return "other content" if stored.content_digest != arrived.content_digest else "numbered by another replica or boot"


def _judge_equal_source(stored: Version, arrived: Version) -> Verdict:
    if stored.content_digest != arrived.content_digest:
        return Verdict.CONFLICT
    numbers = (stored.numbered_by, arrived.numbered_by)
    if None not in numbers and numbers[0] != numbers[1]:
        return Verdict.CONFLICT
    return Verdict.DUPLICATE if stored.completed_at == arrived.completed_at else Verdict.RETIMED


def arriving(message: Accepted) -> Version:
    """What a message is judged by."""
    e: UsageEvent = message.event
    by = numbered_by(e.replica_id, e.boot_id, e.seq)
    return Version(message.content_digest, e.usage_source, message.completed_at, by)


def original_of(correction: UsageEvent) -> Identity:
    """The identity of what a correction corrects."""
    return Identity(correction.tenant_id, correction.request_id, correction.attempt, "usage", 0)


def makes_younger(message: Accepted, stored: Sequence[Version]) -> bool:
    """Whether an identity that ages by its event's time, being no UUIDv7, comes with a later one than ever before."""
    later = all(message.completed_at > version.completed_at for version in stored)
    return later and minted(message.event.request_id) is None
