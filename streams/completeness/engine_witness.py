"""Engine counters beside what events say of their engines (docs/spec/metering.md 6.4). Values in, values out.

Per (replica, boot, model): Σ `engine_*` of the tenants' events + the itemised `_platform` rows (orphaned, probe,
warm-up) = the engine's counters, without tolerance. Both sides move while a replica works, so that they are compared
where it stood still: a scrape after the boot's last work. A boot that was killed, or was not scraped after its last
work, cannot be equal but by chance; what it differs by is listed, and its requests must add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Final, NamedTuple

from streams.completeness.complete_to import Boot
from streams.completeness.witnesses import Requests

SETTLE: Final = timedelta(seconds=1)
"""A heartbeat may report a request's end some milliseconds before the engine's own statistics have it."""


class EngineTokens(NamedTuple):
    """Tokens as an engine counts them; the cached ones are a part of the prompt's."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    cached_tokens: int = 0

    def plus(self, other: EngineTokens) -> EngineTokens:
        """Both."""
        return EngineTokens(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: EngineTokens) -> EngineTokens:
        """What this has more; negative where it has less."""
        return EngineTokens(*(a - b for a, b in zip(self, other, strict=True)))


class RunKey(NamedTuple):
    """A stretch over which one engine's counters of one model only grow, as far as one boot is concerned."""

    replica_id: str
    boot_id: str
    model: str
    counting_since: datetime


@dataclass(frozen=True, slots=True)
class EngineRun:
    """What is known of a run: its first and its latest scrape, cached tokens 0 where they are not `cached_known`."""

    first: EngineTokens
    latest: EngineTokens
    cached_known: bool
    from_zero: bool
    first_scraped_at: datetime
    scraped_at: datetime
    finished: Mapping[str, int]

    def joined(self, other: EngineRun) -> EngineRun:
        """Both reports of one run: in any order and however often, the same comes out."""
        later = max((self, other), key=lambda run: (run.scraped_at, sorted(run.finished.items())))
        return EngineRun(
            EngineTokens(*map(min, self.first, other.first)),
            EngineTokens(*map(max, self.latest, other.latest)),
            self.cached_known and other.cached_known,
            self.from_zero or other.from_zero,
            min(self.first_scraped_at, other.first_scraped_at),
            later.scraped_at,
            later.finished,
        )


class Standing(Enum):
    """How a boot's engine counters and events stand to each other."""

    EQUAL = "equal"
    DIFFERS = "differs"
    """Nothing was under way, all numbers are here, and still they are not equal."""
    NOT_YET = "not_yet"
    """The replica works, or numbers are missing."""
    CUT_OFF = "cut_off"
    """The boot is over and not all its work was scraped, or not all its numbers came: killed, the engine restarted."""
    UNSCRAPED = "unscraped"
    """No scrape: this witness is not there."""


@dataclass(frozen=True, slots=True)
class EngineComparison:
    """One boot and model: the engine's counters, the tenants' events, the itemised `_platform` rows."""

    replica_id: str
    boot_id: str
    model: str
    standing: Standing
    counters: EngineTokens
    events: EngineTokens
    itemised: EngineTokens
    scraped_at: datetime | None

    @property
    def difference(self) -> EngineTokens:
        """Counters − (events + itemised): tokens that the engine counted and no event has."""
        return self.counters.minus(self.events.plus(self.itemised))


@dataclass(frozen=True, slots=True)
class BootRequests:
    """A boot's requests, and how many of them nobody accounts for."""

    replica_id: str
    boot_id: str
    requests: Requests


@dataclass(frozen=True, slots=True)
class EngineReport:
    """Every boot and model that numbered events or a scrape know of, in order; requests of boots that are over."""

    witnesses: str
    comparisons: tuple[EngineComparison, ...]
    requests: tuple[BootRequests, ...]

    def standing(self, *wanted: Standing) -> list[EngineComparison]:
        """Those that stand so."""
        return [found for found in self.comparisons if found.standing in wanted]

    @property
    def unexplained(self) -> list[BootRequests]:
        """Boots of whose requests not all are accounted for."""
        return [boot for boot in self.requests if boot.requests.unexplained]


def counted(runs: Sequence[EngineRun], shared: Sequence[bool]) -> EngineTokens:
    """What an engine counted for a boot over its runs.

    A run counts from zero; from its first scrape where it began before it was looked at, or another boot had a share.
    """
    sums = EngineTokens()
    for run, other in zip(runs, shared, strict=True):
        sums = sums.plus(run.latest if run.from_zero and not other else run.latest.minus(run.first))
    return sums


def compare(
    boot: Boot, over: bool, model: str, runs: Sequence[EngineRun], shared: Sequence[bool],
    events: EngineTokens, itemised: EngineTokens,
) -> EngineComparison:  # fmt: skip
    """One boot and model. `shared` says of each run whether another boot had reported it before.

    Cached tokens are left out where the engine does not tell them.
    """
    counters = counted(runs, shared)
    if not all(run.cached_known for run in runs):
        counters, events, itemised = (t._replace(cached_tokens=0) for t in (counters, events, itemised))
    scraped_at = max((run.scraped_at for run in runs), default=None)
    whole = len(runs) == 1 and runs[0].from_zero and not shared[0]
    equal = counters == events.plus(itemised)
    return EngineComparison(
        *boot.key, model, _standing(boot, over, scraped_at, whole, equal), counters, events, itemised, scraped_at
    )


def _standing(boot: Boot, over: bool, scraped_at: datetime | None, whole: bool, equal: bool) -> Standing:
    if scraped_at is None:
        return Standing.UNSCRAPED
    if not boot.all_received:
        return Standing.CUT_OFF if boot.written_off else Standing.NOT_YET
    if equal:
        return Standing.EQUAL
    if whole and _stood_still(boot, scraped_at):
        return Standing.DIFFERS
    return Standing.CUT_OFF if over else Standing.NOT_YET


def _stood_still(boot: Boot, at: datetime) -> bool:
    """Whether the boot is known to have had nothing under way at `at`, and to have done nothing since."""
    quiet_since = boot.quiet_since or boot.farewell_at
    if quiet_since is None or boot.highest > boot.last_seq or at < quiet_since + SETTLE:
        return False
    return boot.farewell_at is not None or (boot.heartbeat_at is not None and at <= boot.heartbeat_at)


def named_witnesses(scraped: bool, admission_log: bool = False) -> str:
    """Which independent records of the usage there are, in words."""
    if scraped and admission_log:
        return "three witnesses: events, engine counters, admission log"
    if scraped:
        return "two witnesses: events, engine counters; no admission log from outside the adapter"
    if admission_log:
        return "two witnesses: events, admission log; no engine counters were scraped"
    return (
        "two witnesses, not independent: events, heartbeats of the same processes;"
        " no engine counters were scraped, no admission log from outside the adapter"
    )
