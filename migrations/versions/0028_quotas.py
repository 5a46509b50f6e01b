"""Quotas: definitions, tiers, the journal of reservations with its shards, and what was refused.

Revision ID: 0028
"""

from __future__ import annotations

from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = """
-- A definition is a fact: what holds at a time is the latest that has begun (streams/quotas/definitions.py).
-- Amounts are in smallest units: microseconds of GPU time, 10^-18 of the major unit of money.
create table usage.quotas (
    version             bigint      generated always as identity primary key,
    tenant_id           text        references usage.tenants,
    tier                text        check (tier <> ''),
    model               text        not null,
    adapter             text        not null,
    period              text        not null check (period in ('second', 'minute', 'hour', 'day', 'month', 'billing_period', 'none')),
    metric              text        not null check (metric in ('requests', 'input_tokens', 'cached_input_tokens', 'output_tokens', 'total_tokens', 'gpu_seconds', 'spend', 'concurrency')),
    limit_units         numeric     not null check (limit_units >= 0 and scale(limit_units) = 0),
    hard                boolean     not null,
    thresholds          integer[]   not null,
    on_shrink           text        not null check (on_shrink in ('allow', 'deny')),
    min_tokens          integer     not null check (min_tokens >= 1),
    overshoot_allowance numeric     not null check (overshoot_allowance >= 0 and scale(overshoot_allowance) = 0),
    on_unavailable      text        check (on_unavailable in ('allow', 'safe_capacity', 'deny')),
    starts_at           timestamptz not null,
    ends                boolean     not null,
    defined_by          text        not null,
    defined_at          timestamptz not null default now(),
    check ((tenant_id is null) <> (tier is null)),
    check ((metric = 'concurrency') = (period = 'none')),
    check (not hard or 100 >= all (thresholds)),
    check (overshoot_allowance = 0 or hard)
)
--;
create index on usage.quotas (tenant_id)
--;
-- Which tier's defaults hold for a tenant: the latest row that has begun.
create table usage.tenant_tiers (
    assignment_no bigint      generated always as identity primary key,
    tenant_id     text        not null references usage.tenants,
    tier          text        not null,
    starts_at     timestamptz not null,
    assigned_by   text        not null,
    assigned_at   timestamptz not null default now()
)
--;
-- When a subscription's billing periods begin: billing writes, the quota service reads. The latest row holds.
create table usage.billing_anchors (
    anchor_no  bigint      generated always as identity primary key,
    tenant_id  text        not null references usage.tenants,
    anchor_at  timestamptz not null,
    months     integer     not null check (months between 1 and 120),
    written_at timestamptz not null default now()
)
--;
-- Who answers for which part of the tenants. `epoch` grows with each new owner; writes of an older one are refused.
create table usage.quota_shards (
    shard    integer     primary key check (shard >= 0),
    of       integer     not null check (of between 1 and 64),
    epoch    bigint      not null check (epoch >= 1),
    next_seq bigint      not null check (next_seq >= 0),
    owner    text        not null,
    address  text        not null,
    taken_at timestamptz not null default now()
)
--;
-- What happened to reservations since the stored states: batches of entries (streams/quotas/entries.py), in order of `no`.
create table usage.quota_journal (
    no         bigint      generated always as identity primary key,
    shard      integer     not null,
    epoch      bigint      not null,
    seq        bigint      not null,
    entries    bytea       not null,
    written_at timestamptz not null default now(),
    unique (shard, seq)
)
--;
-- The books of a group of tenants as of a batch: what a rebuild begins with.
create table usage.quota_states (
    tenant_group integer not null primary key check (tenant_group between 0 and 511),
    no           bigint  not null,
    state        bytea   not null
)
--;
-- Refusals, and decisions that callers made without the service: with the numbers they were based on.
create table usage.quota_decisions (
    decided_at timestamptz not null,
    tenant_id  text        not null,
    request_id text        not null,
    attempt    integer     not null,
    kind       text        not null check (kind in ('refused', 'unasked')),
    detail     bytea       not null
)
--;
select create_hypertable('usage.quota_decisions', 'decided_at', chunk_time_interval => interval '1 day', create_default_indexes => false)
--;
create index on usage.quota_decisions (tenant_id, request_id)
--;
-- Which group a tenant is of; serving_adapter/quota/groups.py has the same.
create function usage.quota_group(tenant_id text) returns integer language sql immutable strict parallel safe as $$
    select ((('x' || left(md5(tenant_id), 8))::bit(32)::bigint) % 512)::integer
$$
--;
create function usage.drop_quota_decisions_before(before timestamptz) returns integer
language sql security definer set search_path = pg_catalog, pg_temp as $$
    select count(*)::integer from public.drop_chunks('usage.quota_decisions', older_than => before)
$$
"""

APPEND_ONLY = ("quotas", "tenant_tiers", "billing_anchors")


def upgrade() -> None:
    """Create the tables; definitions are guarded against edits by trigger."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)
    for table in APPEND_ONLY:
        op.execute(
            f"create trigger append_only before update or delete on usage.{table}"
            " for each row execute function usage.refuse_change()"
        )
        op.execute(
            f"create trigger append_only_truncate before truncate on usage.{table}"
            " for each statement execute function usage.refuse_change()"
        )


def downgrade() -> None:
    """Drop them."""
    op.execute("drop function usage.drop_quota_decisions_before(timestamptz)")
    op.execute("drop function usage.quota_group(text)")
    for table in (
        "quota_decisions", "quota_states", "quota_journal", "quota_shards", "billing_anchors", "tenant_tiers", "quotas",
    ):  # fmt: skip
        op.execute(f"drop table usage.{table}")
