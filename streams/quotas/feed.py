"""Confirmed usage in the order of commit, and the windows that it adds up to: read in one snapshot of the database.

Each source counts its commits (`ingest_no`), so that what is new is exactly what lies between the position read last
and the one of the snapshot. A tenant's budgets are loaded from the windows of the same snapshot: what the windows hold
and what the feed brings later meet without a gap and without an overlap (docs/spec/metering.md 7.5).
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

import psycopg
from psycopg import IsolationLevel
from psycopg.types.json import Jsonb

from serving_adapter.identity import Identity
from streams.quotas import definition_store
from streams.quotas.amounts import Counts, PriceList, amount
from streams.quotas.calendar import microseconds, moment
from streams.quotas.decisions import Row
from streams.quotas.definition_store import Definitions, Marks
from streams.quotas.definitions import Quota
from streams.rules import estimates
from streams.rules.identity_keys import identity_key

ROWS_AT_MOST: Final = 20_000
"""In one look: what is more is read in the next."""
_HOUR_US: Final = 3_600_000_000
NOT_BILLED_SOURCES: Final = "('estimate')"
BILLS: Final = (
    f"(status = any(coalesce(billed.statuses, array{list(estimates.BILL_STATUSES)})) and status <> 'lost'"
    f" and fault <> 'platform' and usage_source not in {NOT_BILLED_SOURCES})"
)
"""What counts as spend: what bills (docs/spec/money.md 2)."""

_NEW_CHUNKS: Final = """
    select source, ingest_no from usage.sources
    where ingest_no > coalesce((%(at)s ->> source)::bigint, 0) and feed = 'usage' and source !~ '^(release|moved):'
    union all
    select name, ingest_no from usage.release_feeds where ingest_no > coalesce((%(at)s ->> name)::bigint, 0)
"""
"""Not of those that hold one chunk: what they come to is fed under other names (`ingest/quota_feed.py`)."""
_ROWS: Final = f"""
    with {estimates.BILL_STATUSES_BY_TENANT}
    select f.tenant_id, f.request_id, f.attempt, f.completed_at, f.model, f.adapter, {BILLS} as bills, f.kind,
        f.requests, f.input_tokens, f.cache_hit_tokens, f.output_tokens, f.gpu_us
    from unnest(%(sources)s::text[], %(from)s::bigint[], %(to)s::bigint[]) as due (source, after, through)
    join usage.quota_feed as f on f.source = due.source and f.ingest_no > due.after and f.ingest_no <= due.through
    left join billed on billed.tenant_id = f.tenant_id
    where usage.quota_group(f.tenant_id) %% %(of)s = %(shard)s
    order by f.source, f.ingest_no, f.requests
"""
_WINDOWS: Final = f"""
    with {estimates.BILL_STATUSES_BY_TENANT},
    w as (
        select * from usage.windows_1h
        where tenant_id = any(%(tenants)s) and bucket >= %(start)s and bucket <> all(%(parted)s::timestamptz[])
        union all
        select windows_1m.* from unnest(%(parted)s::timestamptz[]) as hour
        join usage.windows_1m on bucket >= hour and bucket < hour + interval '1 hour'
        where tenant_id = any(%(tenants)s) and bucket >= %(start)s
    )
    select w.tenant_id, w.model, w.adapter, {BILLS} as bills, w.bucket >= %(end)s as ahead,
        (select max(c) from unnest(%(changes)s::timestamptz[]) as c where c <= w.bucket) as priced_from,
        sum(w.requests)::int8, sum(w.input_tokens)::int8, sum(w.cache_hit_tokens)::int8, sum(w.output_tokens)::int8,
        sum(w.gpu_us)::int8
    from w
    left join billed on billed.tenant_id = w.tenant_id
    where w.purpose = 'tenant'
    group by 1, 2, 3, 4, 5, 6
"""


@dataclass(frozen=True, slots=True)
class Span:
    """A period whose usage is asked for: [start, end) in microseconds since 1970."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Used:
    """Some usage of a model in a span, or `ahead` of it, at one price."""

    model: str
    adapter: str
    bills: bool
    ahead: bool
    priced_at: int
    counts: Counts


@dataclass(slots=True)
class Wanted:
    """What is to be looked up beside what is new."""

    spans: Mapping[str, Sequence[Span]] = field(default_factory=dict)
    """By tenant: periods to load."""
    attempts: Sequence[tuple[str, str, int]] = ()
    """(tenant, request, attempt) of which it is not known whether their usage was counted."""
    tenants: Sequence[str] = ()
    """Whose registration is not known."""
    tenants_since: int = 0
    """`tenants_through` of the look before: only tenants that are new or changed since are told; 0: all."""


@dataclass(slots=True)
class Look:
    """What was found, all of one snapshot."""

    at: int
    """The database's clock, in microseconds since 1970, and the monotonic clock at that moment, in seconds."""
    monotonic: float
    positions: dict[str, int]
    rows: list[Row]
    caught_up: bool
    """Whether `rows` is all; if not, nothing was loaded, and no attempt was looked up."""
    definitions: Definitions | None
    """If they are others than before."""
    loaded: dict[str, dict[Span, list[Used]]] = field(default_factory=dict)
    prices: dict[str, PriceList] = field(default_factory=dict)
    counted: list[tuple[str, str, int]] = field(default_factory=list)
    """Those of the attempts asked for that are among what was counted. Empty unless caught up: their rows may come."""
    states: dict[str, str] = field(default_factory=dict)
    """The states of the tenants asked for, and of those that are new or changed."""
    tenants_through: int = 0
    """Tenants that this snapshot does not show as they are to be are changed by this transaction or a later one."""


def look(
    connection: psycopg.Connection, positions: Mapping[str, int], marks: Marks, wanted: Wanted, shard: int, of: int
) -> Look:  # fmt: skip
    """Everything that is new, in one snapshot. `positions` empty: begin here, without the feed's past."""
    with one_snapshot(connection):
        return look_within(connection, positions, marks, wanted, shard, of)


def look_within(
    connection: psycopg.Connection, positions: Mapping[str, int], marks: Marks, wanted: Wanted, shard: int, of: int
) -> Look:  # fmt: skip
    """The same in a snapshot of the caller's."""
    began = time.monotonic()
    row = connection.execute("select clock_timestamp()").fetchone()
    assert row is not None, "a function always has a row"
    monotonic = (began + time.monotonic()) / 2
    newest = definition_store.marks(connection)
    definitions = definition_store.read(connection) if newest != marks else None
    found = Look(microseconds(row[0]), monotonic, dict(positions), [], True, definitions)
    if marks != definition_store.NOTHING and newest.price_no != marks.price_no:
        found.prices = definition_store.price_lists(connection, estimates.repriced_since(connection, marks.price_no))
    _read_rows(connection, found, begin_here=not positions, shard=shard, of=of)
    if found.caught_up:
        _load(connection, found, wanted)
        found.counted = counted_among(connection, wanted.attempts)
    _read_tenants(connection, found, wanted, shard, of)
    return found


@contextlib.contextmanager
def one_snapshot(connection: psycopg.Connection) -> Iterator[None]:
    """A transaction all of whose statements see the same state of the database."""
    if connection.isolation_level is not IsolationLevel.REPEATABLE_READ:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
    with connection.transaction():
        yield


def _read_rows(connection: psycopg.Connection, found: Look, *, begin_here: bool, shard: int, of: int) -> None:
    new = connection.execute(_NEW_CHUNKS, {"at": Jsonb(found.positions)}).fetchall()
    if begin_here:
        found.positions = {"": 0} | dict(new)
        return
    if not new:
        return
    due = [(source, found.positions.get(source, 0), number) for source, number in new]
    chunks = sum(number - after for _, after, number in due)
    if chunks > ROWS_AT_MOST // 1000:  # a chunk has 2,000 messages at most, and mostly fewer
        most = max(ROWS_AT_MOST // 1000 // len(due), 1)
        due = [(source, after, min(number, after + most)) for source, after, number in due]
        found.caught_up = False
    given = {
        "sources": [source for source, _, _ in due], "from": [after for _, after, _ in due],
        "to": [number for _, _, number in due], "of": of, "shard": shard,
    }  # fmt: skip
    found.rows = [_row(*each) for each in connection.execute(_ROWS, given)]
    found.positions |= {source: number for source, _, number in due}


def rows_between(
    connection: psycopg.Connection, after: Mapping[str, int], through: Mapping[str, int], shard: int, of: int
) -> Iterator[list[Row]]:  # fmt: skip
    """What a shard's tenants used between two positions of the feed, as far as it is kept; some at a time."""
    due = [(source, after.get(source, 0), number) for source, number in through.items()]
    given = {
        "sources": [source for source, _, _ in due], "from": [at for _, at, _ in due],
        "to": [number for _, _, number in due], "of": of, "shard": shard,
    }  # fmt: skip
    with connection.cursor(name="quota_feed") as cursor:
        cursor.itersize = ROWS_AT_MOST
        cursor.execute(_ROWS, given)
        while rows := cursor.fetchmany(ROWS_AT_MOST):
            yield [_row(*each) for each in rows]


def _row(
    tenant_id: str, request_id: str, attempt: int, completed_at: datetime, model: str, adapter: str, bills: bool,
    kind: str, *counts: int,
) -> Row:  # fmt: skip
    first = kind == "usage" and counts[0] > 0
    return Row(
        tenant_id, request_id, attempt, microseconds(completed_at), model, adapter, bills, first, Counts(*counts)
    )


def _load(connection: psycopg.Connection, found: Look, wanted: Wanted) -> None:
    if not wanted.spans:
        return
    found.prices |= definition_store.price_lists(connection, wanted.spans)
    together: dict[tuple[Span, tuple[int, ...]], list[str]] = defaultdict(list)
    for tenant_id, spans in wanted.spans.items():
        found.loaded[tenant_id] = {span: [] for span in spans}
        changes = tuple(found.prices.get(tenant_id, PriceList()).changes_us)
        for span in spans:
            together[span, changes].append(tenant_id)
    for (span, changes), tenant_ids in together.items():
        for tenant_id, used in _used(connection, tenant_ids, span, changes):
            found.loaded[tenant_id][span].append(used)


def _used(
    connection: psycopg.Connection, tenant_ids: Sequence[str], span: Span, changes: Sequence[int]
) -> Iterator[tuple[str, Used]]:  # fmt: skip
    """Usage since a period's start: whole hours from the hourly windows; those in which the period begins or ends, or
    prices change, from the windows of minutes.

    What begins within a minute begins with it here, and prices that change within one change after it: a budget may
    differ by part of a minute from one that was counted as it happened.
    """
    times = [at for at in (span.start, span.end, *changes) if at >= span.start and at % _HOUR_US]
    given = {"tenants": list(tenant_ids), "start": moment(span.start - span.start % 60_000_000),
             "end": moment(span.end), "changes": list(map(moment, changes)),
             "parted": [moment(hour) for hour in sorted({at - at % _HOUR_US for at in times})]}  # fmt: skip
    for tenant_id, model, adapter, bills, ahead, priced, *counts in connection.execute(_WINDOWS, given):
        priced_at = microseconds(priced) if priced else span.start
        yield tenant_id, Used(model, adapter, bills, ahead, priced_at, Counts(*counts))


def used_of(
    connection: psycopg.Connection, tenant_id: str, quota: Quota, start: datetime, end: datetime, prices: PriceList
) -> int:  # fmt: skip
    """What is used of a budget in [start, end), in its smallest units, as the service counts it from the windows."""
    span = Span(microseconds(start), microseconds(end))
    changes = prices.changes_us if quota.metric == "spend" else ()
    return sum(
        amount(quota.metric, used.counts, prices.at(used.model, used.priced_at))
        for _, used in _used(connection, [tenant_id], span, changes)
        if not used.ahead and quota.covers(used.model, used.adapter) and (used.bills or quota.metric != "spend")
    )


def counted_among(
    connection: psycopg.Connection, attempts: Iterable[tuple[str, str, int]]
) -> list[tuple[str, str, int]]:  # fmt: skip
    """Those attempts whose usage event was counted."""
    keys: dict[UUID, tuple[str, str, int]] = {
        UUID(bytes=identity_key(Identity(tenant_id, request_id, attempt, "usage", 0))): (tenant_id, request_id, attempt)
        for tenant_id, request_id, attempt in attempts
    }
    if not keys:
        return []
    rows = connection.execute("select key from usage.event_identities where key = any(%s)", (list(keys),))
    return [keys[row[0]] for row in rows]


def _read_tenants(connection: psycopg.Connection, found: Look, wanted: Wanted, shard: int, of: int) -> None:
    row = connection.execute("select pg_snapshot_xmin(pg_current_snapshot())::text::int8").fetchone()
    assert row is not None, "a function always has a row"
    found.tenants_through = row[0]
    rows = connection.execute(
        "select tenant_id, state from usage.tenants where tenant_id = any(%s) union all"
        " select tenant_id, state from usage.tenants where changed_in >= %s::text::xid8"
        " and usage.quota_group(tenant_id) %% %s = %s",
        (list(wanted.tenants), wanted.tenants_since, of, shard),
    )
    found.states = dict(rows.fetchall())
