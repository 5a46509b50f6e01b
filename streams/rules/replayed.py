"""Events behind the horizon: what a replay may do with them, beside what is held of them (docs/retention.md).

Their identities may be forgotten, so that what was counted is looked for among the events themselves: in the database,
in the archive, and among the identities of what was replayed before, which are kept. Values in, values out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Final, NamedTuple

from streams.rules.chunks import Accepted, Refused
from streams.rules.duplicates import Verdict, Version, arriving, compared_with, judge, why_conflict


class Held(NamedTuple):
    """A telling of an event that is stored, and where."""

    version: Version
    where: str


@dataclass(frozen=True, slots=True)
class Compared:
    """Which identities were looked for, and what was found of them.

    Whoever is in `keys` and not in `held` was never counted, or is known by its identity, as long as no more identities
    are forgotten than were: from before `forgotten_before`.
    """

    forgotten_before: datetime | None = None
    keys: frozenset[bytes] = frozenset()
    held: Mapping[bytes, Sequence[Held]] = field(default_factory=dict)

    def covers(self, keys: Sequence[bytes], forgotten_before: datetime | None) -> bool:
        """Whether it still says of all of these identities what is held of them."""
        return forgotten_before == self.forgotten_before and self.keys.issuperset(keys)


class Standing(Enum):
    """What an event behind the horizon is, beside what is held of it."""

    NEW = "new"
    THERE = "there"
    """Counted already, or a better telling of it is."""
    CONFLICT = "conflict"
    SETTLED = "settled"
    """Of a stronger source than what counts, whose place nothing takes any more."""


_REASONS: Final = {Standing.CONFLICT: "conflict", Standing.SETTLED: "too_old"}


def standing(message: Accepted, held: Sequence[Held]) -> tuple[Standing, str]:
    """What an event behind the horizon is, and in words why it may not enter, if it may not."""
    if not held:
        return Standing.NEW, ""
    versions, arrived = [each.version for each in held], arriving(message)
    verdict = judge(versions, arrived)
    beside = compared_with(versions, arrived)
    where = f"of {beside.completed_at.isoformat()} {held[versions.index(beside)].where}"
    if verdict is Verdict.CONFLICT:
        return Standing.CONFLICT, f"{why_conflict(beside, arrived)} than the one {where}"
    if verdict is Verdict.STRONGER:
        return Standing.SETTLED, f"the telling {where} counts: behind the horizon nothing takes its place"
    return Standing.THERE, ""


def refused(message: Accepted, what: Standing, why: str) -> Refused | None:
    """The message for the quarantine; None for one that is new or there."""
    if what not in _REASONS:
        return None
    return Refused(message.record, _REASONS[what], why, message.event.tenant_id, message.event)
