"""Sums of usage between any bounds: whole hours from the hourly windows, hours that a bound cuts from raw events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import psycopg

from streams.retention.archive_store import archived_days, midnight, require_present
from streams.rules.windows import UsageQuantity

HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class UsageRange:
    """A tenant's usage that completed in [start, end), UTC."""

    tenant_id: str
    start: datetime
    end: datetime

    @property
    def whole_hours(self) -> tuple[datetime, datetime]:
        """The whole hours in it: from, to; none if to ≤ from."""
        floor = _hour(self.start)
        return (floor if floor == self.start else floor + HOUR), _hour(self.end)

    @property
    def cut_hours(self) -> list[tuple[datetime, datetime]]:
        """The rest of it: at most two parts, each within an hour."""
        since, until = self.whole_hours
        if since > until:
            return [(self.start, self.end)]
        return [(a, b) for a, b in ((self.start, since), (until, self.end)) if a < b]


_SUMS: Final = """
    with whole as (
        select * from unnest(%(whole_no)s::int[], %(whole_tenant)s::text[], %(whole_from)s::timestamptz[],
                             %(whole_to)s::timestamptz[]) as w (no, tenant_id, since, until)
    ), cut as (
        select * from unnest(%(cut_no)s::int[], %(cut_tenant)s::text[], %(cut_from)s::timestamptz[],
                             %(cut_to)s::timestamptz[]) as c (no, tenant_id, since, until)
    ), used as (
        select a.no, u.tenant_id, u.model, u.adapter, u.region, u.tier, u.status, u.fault, u.usage_source,
            u.rating_band, u.purpose, u.requests, u.input_tokens, u.cache_hit_tokens, u.output_tokens, u.gpu_us
        from whole as a join usage.windows_1h as u
            on u.tenant_id = a.tenant_id and u.bucket >= a.since and u.bucket < a.until
        union all
        select a.no, u.tenant_id, u.model, u.adapter, u.region, u.tier, u.status, u.fault, u.usage_source,
            u.rating_band, u.purpose, (u.kind = 'usage')::int, u.input_tokens, u.cache_hit_tokens, u.output_tokens,
            u.gpu_us
        from cut as a join usage.counting_events as u
            on u.tenant_id = a.tenant_id and u.completed_at >= a.since and u.completed_at < a.until
    )
    select no, tenant_id, model, adapter, region, tier, status, fault, usage_source, rating_band,
        sum(requests)::int8, sum(input_tokens)::int8, sum(cache_hit_tokens)::int8, sum(output_tokens)::int8,
        sum(gpu_us)::int8
    from used where purpose = 'tenant' and not starts_with(tenant_id, '_')
    group by no, tenant_id, model, adapter, region, tier, status, fault, usage_source, rating_band
    order by no, tenant_id, model, adapter, region, tier, status, fault, usage_source, rating_band
"""


def range_quantities(
    connection: psycopg.Connection, ranges: Iterable[UsageRange]
) -> Iterator[tuple[int, UsageQuantity]]:
    """What is to be rated in each range, by its number from 0; ranges without usage are left out.

    Raises EventsArchived where an hour that a bound cuts is only in the archive (docs/spec/money.md 2).
    """
    given = list(enumerate(ranges))
    whole = [(no, r.tenant_id, *r.whole_hours) for no, r in given if r.whole_hours[0] < r.whole_hours[1]]
    cut = [(no, r.tenant_id, since, until) for no, r in given for since, until in r.cut_hours]
    for since, until in {(since, until) for _, _, since, until in cut}:
        require_present(connection, since, until)
    with connection.cursor() as cursor:
        cursor.execute(
            _SUMS,
            {
                f"{name}_{column}": [row[at] for row in rows]
                for name, rows in (("whole", whole), ("cut", cut))
                for at, column in enumerate(("no", "tenant", "from", "to"))
            },
        )
        for no, *quantity in cursor:
            yield no, UsageQuantity(*quantity)


def archived(connection: psycopg.Connection, ranges: Iterable[UsageRange]) -> frozenset[str]:
    """Tenants with an hour that a bound cuts and whose raw events are only in the archive."""
    cut = [(r.tenant_id, since, until) for r in ranges for since, until in r.cut_hours]
    if not cut:
        return frozenset()
    bounds = min(since for _, since, _ in cut), max(until for _, _, until in cut)
    gone = [midnight(held.day) for held in archived_days(connection, *bounds) if held.is_gone]
    return frozenset(
        tenant_id for tenant_id, since, until in cut if any(day < until and since < day + DAY for day in gone)
    )


def _hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)
