"""Who a pool's bill is for: shares of GPU time, idle time and overhead as lines of their own. Pure.

Between two changes of a pool's price each GPU-microsecond that was used costs the same; what was not used is idle.
Shares are exact fractions until all are known, and rounded together: they add up to the pool's bill to the last digit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from itertools import pairwise
from typing import Final, NamedTuple

from billing.costs.pools import Pool, PoolVersion
from billing.money import quantise_pieces

_HOUR: Final = timedelta(hours=1)
_GPU_HOUR_US: Final = 3_600_000_000


class CostKind(StrEnum):
    """What a part of a pool's bill is for."""

    USAGE = "usage"
    """GPU time of a tenant's own requests."""
    PLATFORM = "platform"
    """GPU time of smoke tests, shadow traffic and evaluations, and of what belongs to no request."""
    IDLE = "idle"
    OVERHEAD = "overhead"


class Consumer(NamedTuple):
    """Whose GPU time it was. `tenant_id` '' is nobody's."""

    tenant_id: str = ""
    model: str = ""
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class GpuTime:
    """GPU time that requests took which completed in an hour."""

    hour: datetime
    pool: str
    consumer: Consumer
    is_tenants: bool
    gpu_us: int


@dataclass(frozen=True, slots=True)
class CostLine:
    """A part of a pool's bill, in major units of its currency, to 12 decimals."""

    pool: str
    currency: str
    kind: CostKind
    consumer: Consumer
    gpu_us: int
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Allocation:
    """The lines of all pools. `problems`: GPU time that no price is known for, or that a pool cannot have had."""

    lines: tuple[CostLine, ...]
    problems: tuple[str, ...]


def allocate(pools: Sequence[Pool], used: Iterable[GpuTime], start: datetime, end: datetime) -> Allocation:
    """Divide what the pools cost in [start, end), whole hours, among those who used them."""
    by_pool: dict[str, list[GpuTime]] = defaultdict(list)
    for time in used:
        if time.gpu_us:
            by_pool[time.pool].append(time)
    lines: list[CostLine] = []
    problems: list[str] = []
    for pool in sorted(pools, key=lambda pool: pool.name):
        found, wrong = _allocate(pool, by_pool.pop(pool.name, []), start, end)
        lines += found
        problems += wrong
    for name, times in sorted(by_pool.items()):
        seconds = sum(time.gpu_us for time in times) / Decimal(1_000_000)
        told = f"pool {name!r}" if name else "events that name no pool"
        problems.append(f"{told}: {seconds:.6f} GPU-seconds without a price: `tollbook cost pools apply FILE`")
    return Allocation(tuple(lines), tuple(problems))


def _allocate(
    pool: Pool, times: Sequence[GpuTime], start: datetime, end: datetime
) -> tuple[list[CostLine], list[str]]:  # fmt: skip
    shares: dict[tuple[CostKind, Consumer], Fraction] = defaultdict(Fraction)
    spent: dict[tuple[CostKind, Consumer], int] = defaultdict(int)
    problems = []
    for version, begin, until in _spans(pool, start, end):
        mine = [time for time in times if begin <= time.hour < until]
        busy, hours = sum(time.gpu_us for time in mine), (until - begin) // _HOUR
        capacity = hours * (version.gpus if version else 0) * _GPU_HOUR_US
        if busy > capacity:
            spent_hours = (
                f"pool {pool.name!r}: {busy / Decimal(_GPU_HOUR_US):.6f} GPU-hours from {begin:%Y-%m-%d %H:%M} on"
            )
            problems.append(
                f"{spent_hours} are without a price: its first version is later"
                if version is None
                else f"{spent_hours}, and it had {capacity // _GPU_HOUR_US}: its bill is divided by what was used"
            )
        if version is None:
            continue
        bill = Fraction(version.gpu_hour) * version.gpus * hours
        whole = max(busy, capacity)
        for time in mine:
            key = CostKind.USAGE if time.is_tenants else CostKind.PLATFORM, time.consumer
            shares[key] += bill * time.gpu_us / whole
            spent[key] += time.gpu_us
        if whole:
            shares[CostKind.IDLE, Consumer()] += bill * (whole - busy) / whole
            spent[CostKind.IDLE, Consumer()] += whole - busy
        shares[CostKind.OVERHEAD, Consumer()] += Fraction(version.overhead_hour) * hours
    keys = sorted(shares)
    amounts = quantise_pieces([shares[key] for key in keys])
    lines = [
        CostLine(pool.name, pool.currency, kind, consumer, spent[kind, consumer], amount)
        for (kind, consumer), amount in zip(keys, amounts, strict=True)
    ]
    return lines, problems


def _spans(
    pool: Pool, start: datetime, end: datetime
) -> Iterable[tuple[PoolVersion | None, datetime, datetime]]:  # fmt: skip
    """The times between two changes of a pool, cut off at [start, end); without a version before its first."""
    changes = [each.since for each in pool.versions if start < each.since < end]
    bounds = [start, *changes, end]
    for begin, until in pairwise(bounds):
        in_force = [each for each in pool.versions if each.since <= begin]
        yield (in_force[-1] if in_force else None), begin, until
