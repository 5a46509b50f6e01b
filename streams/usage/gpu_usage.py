"""GPU time and traffic by the hour, from the hourly windows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final, NamedTuple

import psycopg

_GPU_TIME: Final = """
    select bucket, pool, tenant_id, model, adapter, purpose = 'tenant' and not starts_with(tenant_id, '_'),
        sum(gpu_us)::int8
    from usage.windows_1h where bucket >= %s and bucket < %s
    group by 1, 2, 3, 4, 5, 6 having sum(gpu_us) <> 0 order by 2, 1, 3, 4, 5, 6
"""
_TRAFFIC: Final = """
    select tenant_id, model, adapter, sum(requests)::int8, sum(input_tokens)::int8, sum(cache_hit_tokens)::int8,
        sum(output_tokens)::int8, sum(gpu_us)::int8
    from usage.windows_1h where bucket >= %s and bucket < %s and purpose = 'tenant' and not starts_with(tenant_id, '_')
    group by 1, 2, 3 order by 1, 2, 3
"""
_PLACES: Final = """
    select tenant_id, model, adapter, region, tier, sum(requests)::int8, sum(input_tokens)::int8,
        sum(cache_hit_tokens)::int8, sum(output_tokens)::int8, sum(gpu_us)::int8
    from usage.windows_1h where bucket >= %s and bucket < %s and purpose = 'tenant' and not starts_with(tenant_id, '_')
        and status in ('ok', 'aborted') and fault <> 'platform'
    group by 1, 2, 3, 4, 5 order by 1, 2, 3, 4, 5
"""


class GpuHour(NamedTuple):
    """Microseconds of GPU time in an hour of a pool; `is_tenants` if it was for a tenant's own requests."""

    hour: datetime
    pool: str
    tenant_id: str
    model: str
    adapter: str
    is_tenants: bool
    gpu_us: int


def gpu_time(connection: psycopg.Connection, start: datetime, end: datetime) -> Iterator[GpuHour]:
    """Everything that took GPU time and completed in [start, end), whole hours."""
    with connection.cursor() as cursor:
        for row in cursor.execute(_GPU_TIME, (start, end)):
            yield GpuHour(*row)


def tenants_traffic(
    connection: psycopg.Connection, start: datetime, end: datetime
) -> Iterator[tuple[tuple[str, str, str], tuple[int, ...]]]:
    """(tenant, model, adapter) → requests, input, cached, output tokens, GPU microseconds, in [start, end)."""
    with connection.cursor() as cursor:
        for row in cursor.execute(_TRAFFIC, (start, end)):
            yield row[:3], row[3:]


def tenants_places(
    connection: psycopg.Connection, start: datetime, end: datetime
) -> Iterator[tuple[tuple[str, str, str, str, str], tuple[int, ...]]]:
    """(tenant, model, adapter, region, tier) → the same sums in [start, end), of what bills by default."""
    with connection.cursor() as cursor:
        for row in cursor.execute(_PLACES, (start, end)):
            yield row[:5], row[5:]
