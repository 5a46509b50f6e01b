"""A tenant's usage with the time it was of: sums by the hour, or by the very moment of completion."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

import psycopg
from psycopg import sql

from streams.retention.archive_store import require_present
from streams.rules.windows import UsageQuantity

_KEYS: Final = sql.SQL("tenant_id, model, adapter, region, tier, status, fault, usage_source, rating_band")
_SUMS: Final = sql.SQL(
    "sum(input_tokens)::int8, sum(cache_hit_tokens)::int8, sum(output_tokens)::int8, sum(gpu_us)::int8"
)
_BY_HOUR: Final = sql.SQL(
    "select bucket, {keys}, sum(requests)::int8, {sums} from usage.windows_1h where bucket >= %(start)s"
    " and bucket < %(end)s and purpose = 'tenant' and tenant_id = %(tenant)s group by bucket, {keys} order by bucket"
).format(keys=_KEYS, sums=_SUMS)
_BY_MOMENT: Final = sql.SQL(
    "select completed_at, {keys}, count(*) filter (where kind = 'usage'), {sums} from usage.counting_events"
    " where completed_at >= %(start)s and completed_at < %(end)s and purpose = 'tenant' and tenant_id = %(tenant)s"
    " group by completed_at, {keys} order by completed_at"
).format(keys=_KEYS, sums=_SUMS)


def timed_quantities(
    connection: psycopg.Connection, tenant_id: str, start: datetime, end: datetime, *, exact: bool
) -> Iterator[tuple[datetime, UsageQuantity]]:
    """One tenant's own traffic in [start, end), in order of time.

    By the hour from the hourly windows, bounds on the hour; `exact`: by completion from the raw events, any bounds,
    raises EventsArchived.
    """
    if exact:
        require_present(connection, start, end)
    with connection.cursor() as cursor:
        cursor.execute(_BY_MOMENT if exact else _BY_HOUR, {"tenant": tenant_id, "start": start, "end": end})
        for at, *quantity in cursor:
            yield at, UsageQuantity(*quantity)
