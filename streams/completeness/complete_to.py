"""Up to which time everything has been reported (docs/spec/metering.md 6.3). Values in, values out.

A heartbeat at time T with last number L says: what this boot completed up to T is numbered 1…L. The replica reads its
clock before it reads the number, so that this holds whatever happens in between. But what is open then, and killed
later, becomes a `lost` event with a later number and the time of its last progress on disk: of those times the
heartbeat says the earliest. Once all of 1…L have arrived, the boot is *proven to* that, to T where nothing is open.
GPU time that an engine tells after its event is a correction, and proven by nobody. All times are the replica's own
clock, the one that stamps its events; a clock that is off shifts both alike, and is an alert of its own.

- Before it begins (`boot` message) a boot has nothing to report: it is proven to that time.
- A boot that said farewell and whose numbers have all arrived holds nobody back any more.
- A boot with a gap stays proven to its last heartbeat below the gap. One that ended without a farewell stays where its
  last heartbeat left it, since nobody knows how many events it still made, until its recovery says farewell in its
  name or a person writes it off.
- A boot that is known from its numbered events alone has proven nothing. If it is an emitter's over HTTP, this holds
  back only the tenants that the emitter may speak for.
- A boot that served requests which no disk had (`not_durable`) proves nothing after the last heartbeat before that,
  also once it is over, until a person writes it off.

*Complete to* is the earliest of these times over all boots that still hold back; if none does, the latest farewell;
none at all if no replica is known. Numbers that arrive never move it back. A replica that becomes known late may: what
is not known of cannot be waited for. Unnumbered events cannot be proven; they are counted beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum

BootKey = tuple[str, str]
"""(replica_id, boot_id)."""


@dataclass(frozen=True, slots=True)
class Boot:
    """What is known of one boot of a replica. Times are its own clock, but for `*_received_at`, the broker's."""

    replica_id: str
    boot_id: str
    first_received_at: datetime | None = None
    last_received_at: datetime | None = None
    begun_at: datetime | None = None
    heartbeat_at: datetime | None = None
    last_seq: int = 0
    started: int | None = None
    ended: int | None = None
    open: int | None = None
    clock_offset_ms: int | None = None
    farewell_at: datetime | None = None
    received_through: int = 0
    highest: int = 0
    proven_to: datetime | None = None
    not_durable: bool = False
    durable_to: datetime | None = None
    """The latest heartbeat by which every request was on a disk."""
    written_off: bool = False
    quiet_since: datetime | None = None
    """The earliest report of its last number and last start with nothing open; none while something is under way."""
    settled: bool = False
    """Whether what is missing concerns nobody who asks."""

    @property
    def key(self) -> BootKey:
        """Which boot this is."""
        return self.replica_id, self.boot_id

    @property
    def known(self) -> int:
        """The highest number that is known to exist."""
        return max(self.last_seq, self.highest)

    @property
    def all_received(self) -> bool:
        """Whether no known number is missing."""
        return self.received_through >= self.known

    @property
    def finished(self) -> bool:
        """Whether nothing more is to be waited for: it said farewell and all is here, or it was written off."""
        ended = self.farewell_at is not None and not self.not_durable
        return self.written_off or (ended and (self.all_received or self.settled))

    @property
    def complete_to(self) -> datetime | None:
        """The time up to which this boot has reported everything; None if it has proven nothing."""
        proven_to = self.proven_to
        if self.not_durable and proven_to is not None:
            proven_to = min(proven_to, self.durable_to) if self.durable_to is not None else None
        return max((at for at in (self.begun_at, proven_to) if at is not None), default=None)


class BootState(Enum):
    """How a boot stands."""

    RUNNING = "running"
    FAREWELL = "farewell"
    SILENT = "silent"
    """No heartbeat for too long, and no farewell."""
    REPLACED = "replaced"
    """Another boot of its replica has begun, and it has not been heard of since; no farewell."""
    WRITTEN_OFF = "written_off"
    UNREPORTED = "unreported"
    """Known from its events alone."""

    @property
    def ended_without_farewell(self) -> bool:
        """Whether this is a boot that broke off."""
        return self in (BootState.SILENT, BootState.REPLACED)


def state_of(
    boot: Boot, others: Iterable[Boot], now: datetime, watching_since: datetime, silent_after: timedelta
) -> BootState:
    """How `boot` stands at `now`, among the `others` of its replica.

    Silence is counted from `watching_since` at the earliest: a message that nobody was there to read is no silence.
    """
    if boot.written_off:
        return BootState.WRITTEN_OFF
    if boot.farewell_at is not None:
        return BootState.FAREWELL
    if boot.first_received_at is None or boot.last_received_at is None:
        return BootState.UNREPORTED
    quiet = now - max(boot.last_received_at, watching_since) >= silent_after
    for other in others:
        if other.replica_id != boot.replica_id or other.boot_id == boot.boot_id or other.first_received_at is None:
            continue
        if boot.last_received_at < other.first_received_at <= now - silent_after:
            return BootState.REPLACED
    return BootState.SILENT if quiet else BootState.RUNNING


@dataclass(frozen=True, slots=True)
class Completeness:
    """The time up to which everything is there, and the boots that are the reason why it is no later."""

    complete_to: datetime | None
    held_back_by: tuple[BootKey, ...] = ()


def complete_to(boots: Iterable[Boot], last_farewell: datetime | None = None) -> Completeness:
    """Over `boots`, where `last_farewell` stands for finished ones that are not among them."""
    holding: list[Boot] = []
    for boot in boots:
        if not boot.finished:
            holding.append(boot)
        elif not boot.written_off and boot.farewell_at is not None:
            last_farewell = max(filter(None, (last_farewell, boot.farewell_at, boot.proven_to)))
    return _earliest([(boot.key, boot.complete_to) for boot in holding], last_farewell)


@dataclass(frozen=True, slots=True)
class TenantShare:
    """A tenant's part of one boot: events that the boot reported for it, and those that were counted."""

    reported: int = 0
    counted: int = 0
    reported_in_all: int = 0
    """Over all tenants; only where it equals `last_seq` do the reports account for every number."""


def tenant_complete_to(
    boots: Iterable[Boot], shares: Mapping[BootKey, TenantShare], last_farewell: datetime | None = None
) -> Completeness:
    """The same for one tenant: what is missing of a boot that said farewell holds back only those whose it is.

    The cumulative counts of such a boot are final. If they account for all its numbers, and all that they give the
    tenant was counted, nothing that is missing is the tenant's. While a boot still runs this would not be lasting.
    """
    return complete_to(
        [replace(boot, settled=_has_no_part(boot, shares.get(boot.key, TenantShare()))) for boot in boots],
        last_farewell,
    )


def _has_no_part(boot: Boot, share: TenantShare) -> bool:
    """Whether none of a boot's missing numbers can be the tenant's."""
    return share.reported_in_all == boot.last_seq and share.counted == share.reported


def _earliest(times: Sequence[tuple[BootKey, datetime | None]], last_farewell: datetime | None) -> Completeness:
    """The earliest of the boots' times, None before all others; `last_farewell` where no boot holds back."""
    if not times:
        return Completeness(last_farewell)
    unproven = tuple(key for key, at in times if at is None)
    if unproven:
        return Completeness(None, unproven)
    earliest = min(at for _, at in times if at is not None)
    return Completeness(earliest, tuple(key for key, at in times if at == earliest))
