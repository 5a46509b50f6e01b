"""Is a worker alive, is it ready? Judged from what it does, and what was seen of database and Kafka: values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from streams.ingest.sources import Partition

SILENT_AT_MOST_S: Final = 30.0
"""A reader gives a sign each second. One that gives none for so long hangs."""
STUCK_AFTER_S: Final = 120.0
"""A chunk takes a tenth of a second. One that takes so long while the database answers will not end by itself."""

UPKEEP_AT_LEAST_EVERY_S: Final = 60.0
"""A round of upkeep is made each second. Without one for so long gaps are not named and alerts not delivered."""


@dataclass(slots=True)
class UpkeepSigns:
    """What the upkeep says of itself, from its own thread; `went_well_at` in monotonic seconds."""

    went_well_at: float
    failures: int = 0
    """Rounds that failed since the worker started."""
    because: str = ""
    """Why the last one did."""


@dataclass(slots=True)
class LifeSigns:
    """What a reader says of itself, from its own thread; times are monotonic seconds."""

    seen_at: float
    in_group: bool = False
    """Whether the group has given it its partitions; there may be none for it."""
    assigned: frozenset[Partition] = frozenset()
    upkeep: UpkeepSigns | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What was seen of database and Kafka: why they cannot be reached (None: they can), and what they hold."""

    database: str | None = "not asked yet"
    kafka: str | None = "not asked yet"
    lag: Mapping[Partition, int] = field(default_factory=dict)
    open_gaps: int | None = None


def unhealthy_because(now: float, signs: LifeSigns, trying_since: float | None, around: Surroundings) -> str | None:
    """Why a worker should be started anew; None if there is no reason.

    `trying_since` = when the transaction in hand began. One that waits for a database that is away is healthy.
    """
    silent = now - signs.seen_at
    if silent > SILENT_AT_MOST_S:
        return f"the reader gave no sign for {silent:.0f} s"
    if trying_since is not None and now - trying_since > STUCK_AFTER_S and around.database is None:
        return f"a chunk is being applied for {now - trying_since:.0f} s, and the database answers"
    return None


def readiness(
    now: float, signs: LifeSigns, stopped: Mapping[Partition, str], around: Surroundings
) -> tuple[bool, dict[str, Any]]:
    """Whether a worker does its work, and the answer's body. `stopped` = partitions that it left standing, and why."""
    mine = {p: why for p, why in stopped.items() if not signs.in_group or p in signs.assigned}
    upkeep = _upkeep_missing_because(now, signs.upkeep)
    parts = {
        "group": signs.in_group,
        "database": around.database is None,
        "kafka": around.kafka is None,
        "no_partition_stopped": not mine,
        "upkeep": upkeep is None,
    }
    ready = all(parts.values())
    return ready, {
        "ready": ready,
        **parts,
        "assigned": [f"{topic}/{number}" for topic, number in sorted(signs.assigned)],
        "stopped": {f"{topic}/{number}": why for (topic, number), why in sorted(mine.items())},
        "upkeep_missing_because": upkeep or "",
    }


def _upkeep_missing_because(now: float, upkeep: UpkeepSigns | None) -> str | None:
    """Why no round of upkeep went well for a minute; None if one did."""
    if upkeep is None or now - upkeep.went_well_at <= UPKEEP_AT_LEAST_EVERY_S:
        return None
    return f"no round went well for {now - upkeep.went_well_at:.0f} s: {upkeep.because or 'one is still running'}"
