"""Signs other than missing numbers, and what they mean: clocks, twins, counters, reports, conflicts. Values only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from reconciliation.findings.finding import Finding, Interval, Kind, Share
from streams.completeness.completeness_store import BootDifference
from streams.completeness.engine_witness import EngineComparison, EngineTokens, Standing
from streams.completeness.witnesses import Comparable, Counts

CLOCK_OFF: Final = timedelta(seconds=60)
"""Beyond this a replica is not ready (docs/spec/metering.md 3): whatever it sends is off."""
_TAKE_BACK: Final = "`tollbook replay plan --take-back` and this finding's number propose them"
AT_LEAST: Final = 5
"""Fewer may be chance: two equal requests that ended in the same microsecond, or the rest of an old boot."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Events of a tenant and model: how many, and their tokens."""

    tenant_id: str
    model: str
    counts: Counts

    def share(self) -> Share:
        """As a part of a finding whose size is known."""
        return Share(self.tenant_id, self.model, *map(Interval.exactly, self.counts))


@dataclass(frozen=True, slots=True)
class BootClock:
    """How long after their timestamps a boot's events came, at least and at most; `ahead`: refused as `future`."""

    replica_id: str
    boot_id: str
    least: timedelta
    most: timedelta
    seen: tuple[Seen, ...]
    begins: datetime
    ends: datetime
    heartbeat_offset_ms: int | None = None
    ahead: bool = False


def clock_skew(clock: BootClock) -> Finding | None:
    """Whether it is the clock. A backlog comes late too, but the later the less: here all are late alike.

    Heartbeats that came in time, by the same clock, speak against it.
    """
    if clock.ahead:
        how = f"its events lie {_told(-clock.most)} to {_told(-clock.least)} after they were received"
    else:
        if sum(seen.counts.events for seen in clock.seen) < AT_LEAST:
            return None
        in_time = clock.heartbeat_offset_ms is not None and abs(clock.heartbeat_offset_ms) < 1000
        if in_time or clock.least < CLOCK_OFF or clock.most - clock.least > clock.least / 2:
            return None
        how = f"all its events came {_told(clock.least)} to {_told(clock.most)} after their own timestamps"
    return Finding(
        Kind.CLOCK_SKEW,
        {"replica_id": clock.replica_id, "boot_id": clock.boot_id},
        f"the clock of replica {clock.replica_id} is off: {how}",
        tuple(seen.share() for seen in clock.seen),
        clock.begins,
        clock.ends,
    )


@dataclass(frozen=True, slots=True)
class Twins:
    """Events of one emitter that another one sent too, under other ids, with equal content and the same time.

    `beside`: where their times agree to the millisecond alone, how many events `of` has of that time, twins or not.
    """

    emitter: str
    of: str
    seen: tuple[Seen, ...]
    begins: datetime
    ends: datetime
    beside: int | None = None


def duplicate_emitter(twins: Twins) -> Finding | None:
    """Whether they are too many for chance: to the millisecond, at least half of what the other one sent."""
    again = sum(seen.counts.events for seen in twins.seen)
    if again < AT_LEAST or (twins.beside is not None and again * 2 < twins.beside):
        return None
    return Finding(
        Kind.DUPLICATE_EMITTER,
        {"emitter": twins.emitter, "of": twins.of},
        f"{twins.emitter} sends under ids of its own what {twins.of} sends: a second shipper, or a sender that makes up"
        f" ids anew; stop it, and take back what it was counted for by corrections: {_TAKE_BACK}",
        tuple(seen.share() for seen in twins.seen),
        twins.begins,
        twins.ends,
    )


def unmetered(compared: EngineComparison, known_boot: bool) -> Finding | None:
    """What an engine counted beyond its events; of a boot that never reported itself this is its only trace."""
    beyond = compared.difference
    tokens = max(beyond.prompt_tokens, 0) + max(beyond.generation_tokens, 0)
    if not tokens or (known_boot and compared.standing is not Standing.DIFFERS):
        return None
    share = Share(
        "",
        compared.model,
        Interval(1, tokens),
        Interval.exactly(max(beyond.prompt_tokens, 0)),
        Interval.exactly(max(beyond.generation_tokens, 0)),
        Interval.exactly(max(beyond.cached_tokens, 0)),
    )
    subject = {"replica_id": compared.replica_id, "boot_id": compared.boot_id, "model": compared.model}
    source = "tokens: a request has one at least"
    if not known_boot:
        cause = f"the engine of replica {compared.replica_id} works, and no adapter ever reported for it"
        return Finding(Kind.UNREGISTERED_REPLICA, subject, cause, (share,), None, compared.scraped_at, source)
    cause = "the engine counted tokens that no event has, and no number is missing: requests went past the adapter"
    return Finding(Kind.UNMETERED_REQUESTS, subject, cause, (share,), None, compared.scraped_at, source)


def overmetered(compared: EngineComparison) -> Finding | None:
    """What events have beyond their engine's counters, where it stood still and all its numbers are here."""
    beyond = EngineTokens().minus(compared.difference)
    tokens = max(beyond.prompt_tokens, 0) + max(beyond.generation_tokens, 0)
    if not tokens or compared.standing is not Standing.DIFFERS:
        return None
    share = Share("", compared.model, Interval(0, tokens), *(Interval.exactly(max(size, 0)) for size in beyond))
    subject = {"replica_id": compared.replica_id, "boot_id": compared.boot_id, "model": compared.model}
    cause = f"its events have more tokens than its engine counted: {_DOUBLED}"
    source = "tokens: whose they are, and of how many events, no counter says"
    return Finding(Kind.OVERCOUNTED, subject, cause, (share,), None, compared.scraped_at, source)


def overcounted(found: Iterable[BootDifference]) -> list[Finding]:
    """Boots of which more is counted than they report to have made, all of which is here: by boot and model."""
    findings = []
    for (replica_id, boot_id, model), differing in _by_boot(found):
        more = [[c - r for r, c in zip(each.reported, each.counted, strict=True)] for each in differing]
        if not any(sum(sizes) > 0 for sizes in zip(*more, strict=True)):
            continue
        shares = [(e.tenant_id, [max(m, 0) for m in each]) for e, each in zip(differing, more, strict=True)]
        findings.append(
            Finding(
                Kind.OVERCOUNTED,
                {"replica_id": replica_id, "boot_id": boot_id, "model": model},
                f"more is counted of it than replica {replica_id} reports to have made: {_DOUBLED}",
                tuple(Share(tenant, model, *map(Interval.exactly, each)) for tenant, each in shares if any(each)),
            )
        )
    return findings


_DOUBLED: Final = (
    "events of it came twice under other ids, or with tokens that were never made, or under another tenant, and were"
    f" added to the right one since; stop what sends them, and take back by corrections what is too much: {_TAKE_BACK}"
)


def boot_of(found: Finding) -> tuple[str, str]:
    """The replica and boot that a finding is about."""
    return found.subject["replica_id"], found.subject["boot_id"]


def less(found: Finding, taken: Mapping[tuple[str, str], Counts]) -> Finding | None:
    """What is too much of a boot without the tokens that corrections have taken back of its events, by tenant and
    model; None where they took all of them. What no tenant is named of, of any."""
    shares = []
    for share in found.shares:
        mine = [counts for (tenant, model), counts in taken.items()
                if model == share.model and share.tenant_id in ("", tenant)]  # fmt: skip
        back = [sum(sizes) for sizes in zip(*mine, strict=True)] or [0] * len(Counts._fields)
        sizes = [Interval(max(size.low - less, 0), max(size.high - less, 0))
                 for size, less in zip(share.sizes, back, strict=True)]  # fmt: skip
        if any(size.high for size in sizes[1:]) or not any(size.high for size in share.sizes[1:]):
            shares.append(Share(share.tenant_id, share.model, *sizes))
    return replace(found, shares=tuple(shares)) if shares else None


def _by_boot(found: Iterable[BootDifference]) -> list[tuple[tuple[str, str, str], list[BootDifference]]]:
    """What is compared exactly, by (replica, boot, model)."""
    by_boot: dict[tuple[str, str, str], list[BootDifference]] = defaultdict(list)
    for each in found:
        if each.comparable == Comparable.EXACT.value:
            by_boot[each.replica_id, each.boot_id, each.model].append(each)
    return sorted(by_boot.items(), key=lambda item: item[0])


def unreported_boot(replica_id: str, boot_id: str, seen: Iterable[Seen], since: datetime | None) -> Finding:
    """A boot that is known from its events alone: what it made beyond them nobody can say."""
    return Finding(
        Kind.UNREGISTERED_REPLICA,
        {"replica_id": replica_id, "boot_id": boot_id},
        "its events come, and no heartbeat ever did: that they are all cannot be proven",
        tuple(each.share() for each in seen),
        since,
    )


def wrong_tenant(found: Iterable[BootDifference]) -> list[Finding]:
    """Boots that made as much as was counted of them, but for others: by boot and model."""
    findings = []
    for (replica_id, boot_id, model), differing in _by_boot(found):
        beyond = [[r - c for r, c in zip(each.reported, each.counted, strict=True)] for each in differing]
        if any(map(sum, zip(*beyond, strict=True))):
            continue
        # As many events of each, and not the same ones: then their tokens say whose they are
        more = [b[0] or b[1] + b[2] for b in beyond]
        made = [(e.tenant_id, b) for e, b, m in zip(differing, beyond, more, strict=True) if m > 0]
        under = sorted(e.tenant_id for e, m in zip(differing, more, strict=True) if m < 0)
        if not made or not under:
            continue
        names = ", ".join(sorted(tenant for tenant, _ in made))
        findings.append(
            Finding(
                Kind.WRONG_TENANT,
                {"replica_id": replica_id, "boot_id": boot_id, "model": model, "counted_as": ", ".join(under)},
                f"the replica made them for {names}, and they are counted as {', '.join(under)}'s",
                tuple(Share(tenant, model, *(Interval.exactly(max(size, 0)) for size in b)) for tenant, b in made),
            )
        )
    return findings


@dataclass(frozen=True, slots=True)
class Copied:
    """Events in quarantine that another boot had sent and numbered before, content and time and all."""

    emitter: str
    of: str
    seen: tuple[Seen, ...]
    begins: datetime
    ends: datetime


def copied(found: Copied) -> Finding:
    """A second shipper of the same events, with the same ids and numbers of its own: none of it is counted twice."""
    return Finding(
        Kind.DUPLICATE_EMITTER,
        {"emitter": found.emitter, "of": found.of, "held": "quarantine"},
        f"{found.emitter} numbers anew what {found.of} sends: a second shipper of the same records; stop it. None of it"
        " is counted twice: it waits in quarantine, and can be discarded",
        tuple(seen.share() for seen in found.seen),
        found.begins,
        found.ends,
    )


@dataclass(frozen=True, slots=True)
class SameAttempt:
    """Events in quarantine whose identity another replica or boot had numbered before, with another end."""

    replica_id: str
    seen: tuple[Seen, ...]
    begins: datetime
    ends: datetime


def double_attempt(found: SameAttempt) -> Finding:
    """One request went to two engines under one attempt number: who dispatches does not count attempts."""
    tenants = sorted({seen.tenant_id for seen in found.seen})
    return Finding(
        Kind.DOUBLE_ATTEMPT,
        {"replica_id": found.replica_id},
        f"replica {found.replica_id} served attempts of {', '.join(tenants[:5])} that another one had served under the"
        " same number: whoever dispatches retries does not count attempts",
        tuple(seen.share() for seen in found.seen),
        found.begins,
        found.ends,
    )


def _told(span: timedelta) -> str:
    return str(timedelta(seconds=round(span.total_seconds())))
