"""Missing numbers: events that were lost, or numbers that nobody used; how many, whose, and why. Values only.

A replica reports in its heartbeats how many events it made of each tenant and model, straight to Kafka and not through
its shipper. Where that accounts for all its numbers, what was lost is known to the token: reported − counted. Where it
does not, the size is estimated from what else was counted, with an interval of two standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from reconciliation.findings.finding import Finding, Interval, Kind, Share
from reconciliation.findings.partitions import partition_of
from streams.completeness.witnesses import Counts, TenantModel


class Sample(NamedTuple):
    """Events of a tenant and model to estimate from: how many, and of tokens the mean and standard deviation of one."""

    events: int
    input_tokens: tuple[float, float]
    output_tokens: tuple[float, float]
    cache_hit_tokens: tuple[float, float]


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Positions of a partition that were never applied: a log was cut, or a person let it go on behind them."""

    partition: int
    partitions: int
    told: str


@dataclass(frozen=True, slots=True)
class MissingNumbers:
    """What is known of a boot of which `missing` numbers up to `known` have not come."""

    replica_id: str
    boot_id: str
    missing: int
    last_seq: int
    reported: Mapping[TenantModel, Counts]
    counted: Mapping[TenantModel, Counts]
    begins: datetime | None = None
    ends: datetime | None = None
    broke_off: bool = False
    samples: Mapping[TenantModel, Sample] | None = None
    last_missing: int = 0
    """The highest number that has not come: it stays, while a boot that works goes on to number events."""
    in_motion: int = 0
    """Numbers that are under way: made, and neither received nor missing yet."""


def judge(boot: MissingNumbers, passed: Sequence[PassedOver] = ()) -> Finding:
    """What a boot's missing numbers mean."""
    reported = sum(counts.events for counts in boot.reported.values())
    counted = sum(counts.events for counts in boot.counted.values())
    left_out = boot.last_seq - reported
    if reported <= counted + boot.in_motion and 0 <= left_out - boot.missing <= boot.in_motion and reported:
        cause = (
            f"replica {boot.replica_id} left out {boot.missing:,} numbers up to {boot.last_missing:,}: it reports fewer"
            " events than numbers by as many, and all of them are counted"
        )
        return _finding(Kind.GAP_IN_NUMBERING, boot, cause)
    if reported == boot.last_seq:
        shares, guessed = _known(boot)
        return _finding(Kind.LOST_EVENTS, boot, _cause(boot, shares, passed), shares, guessed)
    samples = boot.samples or {}
    shares = _estimated(boot.missing, samples)
    seen = sum(sample.events for sample in samples.values())
    source = f"{seen:,} events that were counted around that time" if seen else "nothing: only their number is known"
    if boot.reported:
        shares = _down_to(shares, _known(boot)[0])
        source += "; at least what heartbeats told of and is not counted, the other numbers may be of no event"
    return _finding(Kind.LOST_EVENTS, boot, _cause(boot, shares, passed), shares, source)


def _finding(
    kind: Kind, boot: MissingNumbers, cause: str, shares: tuple[Share, ...] = (), estimated_from: str = ""
) -> Finding:  # fmt: skip
    subject = {"replica_id": boot.replica_id, "boot_id": boot.boot_id}
    return Finding(kind, subject, cause, shares, boot.begins, boot.ends, estimated_from)


def _known(boot: MissingNumbers) -> tuple[tuple[Share, ...], str]:
    """Reported − counted, and what of it was estimated from.

    What is beyond the missing numbers is under way or in quarantine, nobody can tell whose: an interval. So is what is
    short of them, where events were counted that no heartbeat has reported yet: each as long as the others.
    """
    absent = {
        key: Counts(*(max(r - c, 0) for r, c in zip(said, boot.counted.get(key, Counts()), strict=True)))
        for key, said in boot.reported.items()
    }
    seen = sum(counts.events for counts in absent.values())
    beyond, short = max(seen - boot.missing, 0), max(boot.missing - seen, 0)
    shares = []
    for (tenant_id, model), counts in absent.items():
        if not (counts.events or short):
            continue
        least = max(counts.events - beyond, 0) / max(counts.events, 1)
        was = boot.counted.get((tenant_id, model), Counts())
        more = [math.ceil(short * size / max(was.events, 1)) for size in was]
        more[0] = short
        sizes = [Interval(math.floor(size * least), size + later) for size, later in zip(counts, more, strict=True)]
        shares.append(Share(tenant_id, model, *sizes))
    return tuple(shares), "what was counted of it: more than its heartbeats have told yet" if short else ""


def _estimated(missing: int, samples: Mapping[TenantModel, Sample]) -> tuple[Share, ...]:
    """`missing` events spread as the sampled ones are, each as long as those are."""
    seen = sum(sample.events for sample in samples.values())
    if not seen:
        return (Share("", "", Interval.exactly(missing)),)
    shares = []
    for (tenant_id, model), sample in samples.items():
        part = sample.events / seen
        spread = 2 * math.sqrt(missing * part * (1 - part))
        events = Interval(max(0, math.floor(missing * part - spread)), min(missing, math.ceil(missing * part + spread)))
        tokens = [_tokens(events, *of) for of in sample[1:]]
        shares.append(Share(tenant_id, model, events, *tokens))
    return tuple(shares)


def _down_to(shares: Iterable[Share], told: Collection[Share]) -> tuple[Share, ...]:
    """Estimates with what is known to be lost as their least. `told`: what heartbeats told of and is not counted."""
    known = {(each.tenant_id, each.model): each for each in told}
    anybodys = Share("", "", Interval.exactly(sum(each.events.low for each in told)))
    found = []
    for share in shares:
        least = known.get((share.tenant_id, share.model), anybodys if not share.tenant_id else Share("", ""))
        sizes = [Interval(min(size.low, at_least.low), max(size.high, at_least.low))
                 for size, at_least in zip(share.sizes, least.sizes, strict=True)]  # fmt: skip
        found.append(Share(share.tenant_id, share.model, *sizes))
    return tuple(found)


def _tokens(events: Interval, mean: float, deviation: float) -> Interval:
    """The tokens of so many events, each with this mean and deviation."""
    low = events.low * mean - 2 * deviation * math.sqrt(events.low)
    high = events.high * mean + 2 * deviation * math.sqrt(events.high)
    return Interval(max(0, math.floor(low)), math.ceil(high))


def _cause(boot: MissingNumbers, shares: Collection[Share], passed: Sequence[PassedOver]) -> str:
    tenants = {share.tenant_id for share in shares} - {""}
    for each in passed:
        if tenants and {partition_of(tenant, each.partitions) for tenant in tenants} == {each.partition}:
            return f"all of it belongs into partition {each.partition}: {each.told}"
    if boot.broke_off:
        return (
            f"boot {boot.boot_id} of replica {boot.replica_id} broke off, and its spool was not shipped to the end:"
            " if the disk is there, `tollbook adapter ship` recovers it"
        )
    return (
        f"replica {boot.replica_id} reported them, and its shipper did not deliver {boot.missing:,} of them, up to"
        f" number {boot.last_missing:,}: its spool or archive has them"
    )
