"""Plan versions as they were recorded: bitemporal by addition (docs/spec/money.md 1). Values only.

At a moment holds the version with the latest `valid_from` up to it; of several with the same one the last recorded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from billing.plans.price_plans import PlanVersion


@dataclass(frozen=True, slots=True)
class RecordedVersion:
    """A version, and when and by whom it was recorded."""

    version: PlanVersion
    recorded_at: datetime
    recorded_by: str = ""


def known_versions(recorded: Iterable[RecordedVersion], as_of: datetime | None = None) -> tuple[PlanVersion, ...]:
    """One plan's versions, the earliest first, as they are known now, or were by a moment.

    `recorded` comes in the order of recording: what replaces a version comes after it.
    """
    latest = {each.version.valid_from: each.version for each in recorded if as_of is None or each.recorded_at <= as_of}
    return tuple(latest[valid_from] for valid_from in sorted(latest))
