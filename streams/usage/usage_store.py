"""Reading usage: windows for people, quantities for rating, totals for reconciliation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, LiteralString

import psycopg
from psycopg import sql

from streams.retention.archive_store import gone_days, require_present
from streams.rules.horizon import ATTEMPTS_APART
from streams.rules.windows import AttemptUsage, UsageQuantity

Width = Literal["minute", "hour"]
BY: Final[dict[str, LiteralString]] = {
    "model": "model",
    "adapter": "adapter",
    "region": "region",
    "tier": "tier",
    "status": "status",
    "hour": "bucket",
    "day": "time_bucket('1 day', bucket)",
}
"""What usage can be broken down by: the name for people, and the window's expression."""


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """Sums over windows. Tokens in tokens, `gpu_us` in microseconds; input includes cached."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_hit_tokens: int = 0
    gpu_us: int = 0


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Totals for one combination of the things asked for, in their order."""

    by: tuple[str | datetime, ...]
    totals: UsageTotals


def usage_of(
    connection: psycopg.Connection, tenant_id: str, start: datetime, end: datetime, by: Sequence[str]
) -> list[UsageRow]:
    """A tenant's usage in [start, end), whole hours, broken down by names from BY. Only `purpose = tenant`."""
    columns = [sql.SQL(BY[name]) for name in by]
    query = sql.SQL(
        "select {by} sum(requests)::int8, sum(input_tokens)::int8, sum(output_tokens)::int8,"
        " sum(cache_hit_tokens)::int8, sum(gpu_us)::int8 from usage.windows_1h"
        " where tenant_id = %s and bucket >= %s and bucket < %s and purpose = 'tenant' {group}"
    ).format(
        by=sql.SQL("").join(column + sql.SQL(", ") for column in columns),
        group=sql.SQL("group by {0} order by {0}").format(sql.SQL(", ").join(columns)) if columns else sql.SQL(""),
    )
    rows = connection.execute(query, (tenant_id, start, end)).fetchall()
    return [UsageRow(tuple(row[: len(by)]), UsageTotals(*(value or 0 for value in row[len(by) :]))) for row in rows]


def last_ingested(connection: psycopg.Connection) -> datetime | None:
    """When the last chunk of usage was applied: what a listing of usage is as of."""
    row = connection.execute("select max(last_applied_at) from usage.sources where feed = 'usage'").fetchone()
    return row[0] if row else None


_KEYS: Final = sql.SQL("tenant_id, model, adapter, region, tier, status, fault, usage_source, rating_band")
_REQUESTS_OF_EVENTS: Final = "count(*) filter (where kind = 'usage')"
_REQUESTS_OF_WINDOWS: Final = "sum(requests)::int8"


def rating_quantities(
    connection: psycopg.Connection, start: datetime, end: datetime, tenant_id: str | None = None
) -> Iterator[UsageQuantity]:
    """What is to be rated in [start, end), whole hours: sums of the hourly windows, tenants' own traffic only.

    Statuses, faults and sources are kept apart: which of them bill is billing's rule (docs/spec/money.md 2).
    """
    return _quantities(connection, "windows_1h", "bucket", _REQUESTS_OF_WINDOWS, start, end, tenant_id)


def minute_quantities(
    connection: psycopg.Connection, start: datetime, end: datetime, tenant_id: str | None = None
) -> Iterator[UsageQuantity]:
    """The same from the 1-minute windows. Raises EventsArchived: they go and come back with their raw events."""
    require_present(connection, start, end)
    return _quantities(connection, "windows_1m", "bucket", _REQUESTS_OF_WINDOWS, start, end, tenant_id)


def raw_quantities(
    connection: psycopg.Connection, start: datetime, end: datetime, tenant_id: str | None = None
) -> Iterator[UsageQuantity]:
    """The same from the raw events: the windows' independent witness. Any bounds. Raises EventsArchived."""
    require_present(connection, start, end)
    return _quantities(connection, "counting_events", "completed_at", _REQUESTS_OF_EVENTS, start, end, tenant_id)


def windows_that_differ(
    connection: psycopg.Connection, width: Width, tenant_id: str, start: datetime, end: datetime, *, at_most: int
) -> list[datetime]:
    """When windows of a tenant in [start, end) begin that are not the sums of its events. Raises EventsArchived."""
    require_present(connection, start, end)
    sums = sql.SQL("sum(input_tokens)::int8, sum(cache_hit_tokens)::int8, sum(output_tokens)::int8, sum(gpu_us)::int8")
    side = sql.SQL(
        "select {bucket} as bucket, {keys}, {requests}, {sums} from usage.{table} where {time} >= %(start)s and"
        " {time} < %(end)s and purpose = 'tenant' and tenant_id = %(tenant)s group by 1, {keys}"
    )
    time = sql.Identifier("completed_at")
    bucket = sql.SQL("date_trunc({}, completed_at, 'UTC')").format(sql.Literal(width))
    events = side.format(
        bucket=bucket, keys=_KEYS, requests=sql.SQL(_REQUESTS_OF_EVENTS), sums=sums,
        table=sql.Identifier("counting_events"), time=time,
    )  # fmt: skip
    windows = side.format(
        bucket=sql.Identifier("bucket"), keys=_KEYS, requests=sql.SQL(_REQUESTS_OF_WINDOWS), sums=sums,
        table=sql.Identifier("windows_1m" if width == "minute" else "windows_1h"), time=sql.Identifier("bucket"),
    )  # fmt: skip
    query = sql.SQL(
        "with events as ({events}), windows as ({windows}) select distinct bucket from"
        " ((table events except table windows) union all (table windows except table events)) as differing"
        " order by 1 limit %(at_most)s"
    ).format(events=events, windows=windows)
    given = {"tenant": tenant_id, "start": start, "end": end, "at_most": at_most}
    return [row[0] for row in connection.execute(query, given)]


# Requests with an attempt > 1 that have any attempt in the period, and all their attempts, in whatever period: the
# later ones by a partial index, the first by its identity's key, or, where that may be forgotten, among the events of
# the period and of the days around it; read from the events by tenant and time.
_RETRIED: Final = """
    with cut as (
        select * from unnest(%(sources)s::text[], %(positions)s::int8[]) as positions (source, below)
    ), retried as (
        select tenant_id, request_id, attempt, completed_at from usage.events where attempt > 1
        union select tenant_id, request_id, attempt, completed_at from usage.recalled_events where attempt > 1
    ), first_key as materialized (
        select tenant_id, request_id, usage.identity_key(tenant_id, request_id, 1, 'usage', 0) as key,
            min(completed_at) as earliest
        from retried group by tenant_id, request_id
    ), forgotten as materialized (
        select tenant_id, request_id from first_key
        where usage.identified_at(key, earliest) < (select forgotten_before + interval '1 day' from usage.ingest_rules)
    ), known as materialized (
        select tenant_id, request_id, attempt, completed_at from retried
        union
        select tenant_id, request_id, 1, completed_at from first_key join usage.event_identities using (key)
        union
        select tenant_id, request_id, 1, completed_at from first_key join usage.event_versions using (key)
        union
        select tenant_id, request_id, 1, completed_at from first_key join usage.replayed_identities using (key)
        union
        select tenant_id, request_id, 1, e.completed_at
        from forgotten join usage.events as e using (tenant_id, request_id)
        where e.attempt = 1 and e.completed_at >= %(start)s - %(apart)s and e.completed_at < %(end)s + %(apart)s
        union
        select r.tenant_id, r.request_id, r.attempt, r.completed_at
        from usage.recalled_events as r join retried using (tenant_id, request_id)
    ), concerned as (
        select distinct request_id, tenant_id from known where completed_at >= %(start)s and completed_at < %(end)s
    )
    select e.request_id, e.attempt, e.completed_at, e.tenant_id, e.model, e.adapter, e.region, e.tier, e.status,
        e.fault, e.usage_source, e.rating_band, (e.kind = 'usage')::int, e.input_tokens, e.cache_hit_tokens,
        e.output_tokens, e.gpu_us
    from known as k join concerned using (request_id, tenant_id)
    join {events} as e
        on e.tenant_id = k.tenant_id and e.completed_at = k.completed_at
        and e.request_id = k.request_id and e.attempt = k.attempt
    where e.purpose = 'tenant' and not starts_with(e.tenant_id, '_')
    order by e.tenant_id, e.request_id, e.attempt, e.kind desc, e.correction_no
"""


_COUNTED_THEN: Final = """(
        select e.* from usage.present_events as e
        join cut on cut.source = e.source and e.position < cut.below
        where not exists (
            select from usage.superseded_events as s join cut as by on by.source = s.by_source
            where s.source = e.source and s.position = e.position and s.by_position < by.below)
    )"""


def retried_usage(
    connection: psycopg.Connection, start: datetime, end: datetime, below: Mapping[str, int] | None = None
) -> Iterator[AttemptUsage]:
    """Every event of the requests with more than one attempt of which any completed in [start, end).

    Also their events outside of it: which attempt bills is decided over all of them (docs/spec/money.md 2). `below`:
    what counted when each source was applied up to there, and nothing that came since. Raises EventsArchived, also
    where an earlier attempt may be in the days before, and these are only in the archive.
    """
    require_present(connection, start, end)
    since = start - ATTEMPTS_APART
    is_gone, request = bool(gone_days(connection, since, start)), ("", "")
    with connection.cursor() as cursor:
        cursor.execute(
            sql.SQL(_RETRIED).format(events=sql.SQL("usage.counting_events" if below is None else _COUNTED_THEN)),
            {"start": start, "end": end, "apart": ATTEMPTS_APART, "sources": list(below or ()),
             "positions": list((below or {}).values())},
        )  # fmt: skip
        for request_id, attempt, completed_at, *quantity in cursor:
            before, request = request, (quantity[0], request_id)
            if is_gone and before != request and attempt > 1 and completed_at < start + ATTEMPTS_APART:
                require_present(connection, since, start)
            yield AttemptUsage(request_id, attempt, completed_at, UsageQuantity(*quantity))


# Said in SQL over raw events, apart from billing's own way (billing/usage/attempts.py): reconciliation's witness of it.
# Outside of the period only attempts of requests that have some inside are read: later ones by the partial index of
# attempts > 1, the first by its identity's key, or among the events of a time whose identities may be forgotten.
_DELIVERED: Final = """
    with later as materialized (
        select tenant_id, request_id, attempt, completed_at from usage.events where attempt > 1
        union all select tenant_id, request_id, attempt, completed_at from usage.recalled_events where attempt > 1
    ), first_key as materialized (
        select distinct tenant_id, request_id, usage.identity_key(tenant_id, request_id, 1, 'usage', 0) as key
        from later
    ), known as materialized (
        select tenant_id, request_id, attempt, completed_at from later
        union
        select tenant_id, request_id, 1, i.completed_at from first_key join usage.event_identities as i using (key)
        union
        select tenant_id, request_id, 1, v.completed_at from first_key join usage.event_versions as v using (key)
        union
        select tenant_id, request_id, 1, e.completed_at
        from first_key join usage.present_events as e using (tenant_id, request_id)
        where e.attempt = 1
          and e.completed_at < (select forgotten_before + interval '1 day' from usage.ingest_rules)
    ), elsewhere as materialized (
        select * from known where (completed_at < %(start)s or completed_at >= %(end)s)
            and (tenant_id, request_id) in (
                select tenant_id, request_id from known where completed_at >= %(start)s and completed_at < %(end)s)
    ), attempts as (
        select e.* from usage.counting_events as e where e.completed_at >= %(start)s and e.completed_at < %(end)s
        union all
        select e.* from elsewhere as o join usage.counting_events as e on e.tenant_id = o.tenant_id
            and e.completed_at = o.completed_at and e.request_id = o.request_id and e.attempt = o.attempt
    ), ranked as (
        select a.*, first_value(attempt) over (
            partition by tenant_id, request_id
            order by (status = 'ok') desc, (status = 'aborted') desc, attempt desc) as delivered
        from attempts as a join unnest(%(tenants)s::text[], %(statuses)s::text[]) as bills (tenant_id, status)
            using (tenant_id, status)
        where purpose = 'tenant' and status <> 'lost'
    )
    select {keys}, {requests}, sum(input_tokens)::int8, sum(cache_hit_tokens)::int8, sum(output_tokens)::int8,
        sum(gpu_us)::int8
    from ranked where attempt = delivered and completed_at >= %(start)s and completed_at < %(end)s
    group by {keys} order by {keys}
"""


def delivered_quantities(
    connection: psycopg.Connection, start: datetime, end: datetime, bill_statuses: Mapping[str, Collection[str]]
) -> Iterator[UsageQuantity]:
    """Usage in [start, end) from the raw events, of the delivered attempt of each request (docs/spec/money.md 13.11).

    `bill_statuses` says, by tenant, which statuses bill; other usage and other tenants are left out. Any bounds.
    Raises EventsArchived.
    """
    require_present(connection, start, end)
    pairs = [(tenant, status) for tenant, statuses in bill_statuses.items() for status in statuses]
    query = sql.SQL(_DELIVERED).format(keys=_KEYS, requests=sql.SQL(_REQUESTS_OF_EVENTS))
    given = {"start": start, "end": end, "tenants": [t for t, _ in pairs], "statuses": [s for _, s in pairs]}
    with connection.cursor() as cursor:
        cursor.execute(query, given)
        for row in cursor:
            yield UsageQuantity(*row)


def _quantities(
    connection: psycopg.Connection,
    table: str,
    time: str,
    requests: LiteralString,
    start: datetime,
    end: datetime,
    tenant_id: str | None,
) -> Iterator[UsageQuantity]:
    query = sql.SQL(
        "select {keys}, {requests}, sum(input_tokens)::int8, sum(cache_hit_tokens)::int8,"
        " sum(output_tokens)::int8, sum(gpu_us)::int8 from usage.{table}"
        " where {time} >= %(start)s and {time} < %(end)s and purpose = 'tenant' and not starts_with(tenant_id, '_')"
        " and (%(tenant)s::text is null or tenant_id = %(tenant)s) group by {keys} order by {keys}"
    ).format(keys=_KEYS, requests=sql.SQL(requests), table=sql.Identifier(table), time=sql.Identifier(time))
    with connection.cursor() as cursor:
        cursor.execute(query, {"start": start, "end": end, "tenant": tenant_id})
        for row in cursor:
            yield UsageQuantity(*row)
