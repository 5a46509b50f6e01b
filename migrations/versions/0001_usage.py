"""Schema `usage`: tenants, events, identities, windows, sources, quarantine, audit log.

Revision ID: 0001
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

WINDOW = """
    bucket           timestamptz not null,
    tenant_id        text        not null,
    model            text        not null,
    adapter          text        not null,
    region           text        not null,
    tier             text        not null,
    pool             text        not null,
    status           text        not null,
    fault            text        not null,
    purpose          text        not null,
    usage_source     text        not null,
    rating_band      text        not null,
    events           bigint      not null,
    requests         bigint      not null,
    input_tokens     bigint      not null,
    cache_hit_tokens bigint      not null,
    output_tokens    bigint      not null,
    gpu_us           bigint      not null,
    primary key (tenant_id, bucket, model, adapter, region, tier, pool, status, fault, purpose, usage_source, rating_band)
"""

STATEMENTS = f"""
create schema usage;

create table usage.tenants (
    tenant_id     text        primary key check (tenant_id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{{0,126}}$'),
    name          text        not null,
    state         text        not null default 'active' check (state in ('active', 'suspended', 'closed')),
    registered_at timestamptz not null default now()
);

-- One row per source of events: a Kafka partition, and later a release from quarantine or a replay.
-- Whoever applies a chunk holds this row's lock: it fences late workers and orders `ingest_no` by commit.
create table usage.sources (
    source        text        primary key,
    cluster_id    text        not null,
    topic_id      text        not null,
    leader_epoch  integer     not null,
    first_position bigint     not null check (first_position >= 0),
    next_position bigint      not null check (next_position >= first_position),
    ingest_no     bigint      not null default 0,
    stopped_because text,
    changed_at    timestamptz not null default now()
);

-- What each committed chunk held: the proof of completeness when Kafka no longer has the messages.
create table usage.applied_chunks (
    source         text        not null references usage.sources,
    first_position bigint      not null,
    next_position  bigint      not null,
    applied        integer     not null,
    duplicates     integer     not null,
    retimed        integer     not null,
    quarantined    integer     not null,
    content_digest bytea       not null,
    applied_at     timestamptz not null default now(),
    primary key (source, first_position),
    check (next_position - first_position = applied + duplicates + quarantined)
);

-- The key by which an event counts once. A plain table: a hypertable's unique index would have to contain the time.
-- request_id leads, because a UUIDv7 keeps the inserts at the index's end.
create table usage.event_identities (
    request_id     text        collate "C" not null,
    tenant_id      text        collate "C" not null,
    attempt        integer     not null,
    kind           text        collate "C" not null,
    correction_no  integer     not null,
    content_digest bytea       not null,
    usage_source   text        not null,
    replica_id     text,
    boot_id        text,
    completed_at   timestamptz not null,
    source         text        not null,
    position       bigint      not null,
    primary key (request_id, tenant_id, attempt, kind, correction_no)
);

create table usage.events (
    completed_at     timestamptz not null,
    tenant_id        text        not null,
    request_id       text        not null,
    attempt          integer     not null,
    kind             text        not null,
    correction_no    integer     not null,
    model            text        not null,
    adapter          text        not null,
    region           text        not null,
    tier             text        not null,
    pool             text        not null,
    status           text        not null,
    fault            text        not null,
    purpose          text        not null,
    usage_source     text        not null,
    rating_band      text        not null,
    input_tokens     bigint      not null,
    cache_hit_tokens bigint      not null,
    output_tokens    bigint      not null,
    gpu_us           bigint      not null,
    source           text        not null,
    position         bigint      not null,
    ingested_at      timestamptz not null,
    raw              bytea       not null
);

create table usage.windows_1m ({WINDOW});
create table usage.windows_1h ({WINDOW});

-- A day to a chunk: a transaction locks every chunk it touches with its indexes, and a backfill touches all hours it is of.
select create_hypertable('usage.events', 'completed_at', chunk_time_interval => interval '1 day', create_default_indexes => false);
create index on usage.events (tenant_id, completed_at);
select create_hypertable('usage.windows_1m', 'bucket', chunk_time_interval => interval '1 day', create_default_indexes => false);
create index on usage.windows_1m (bucket);
select create_hypertable('usage.windows_1h', 'bucket', chunk_time_interval => interval '7 days', create_default_indexes => false);
create index on usage.windows_1h (bucket);

-- Refused messages, whole. Nothing that arrived is dropped.
create table usage.quarantine (
    quarantine_id bigint      generated always as identity primary key,
    source        text        not null references usage.sources,
    position      bigint      not null,
    reason        text        not null check (reason in
        ('torn', 'invalid', 'unsupported', 'unknown_tenant', 'conflict', 'orphan', 'future', 'bad_time', 'too_old', 'too_large')),
    detail        text        not null,
    tenant_id     text,
    message_key   bytea,
    message       bytea       not null,
    appended_at   timestamptz not null,
    quarantined_at timestamptz not null default now(),
    unique (source, position)
);
create index on usage.quarantine (tenant_id);

create table usage.audit_log (
    audit_no  bigint      generated always as identity primary key,
    at        timestamptz not null default clock_timestamp(),
    actor     text        not null,
    action    text        not null,
    subject   text        not null,
    detail    jsonb       not null default '{{}}'
);

create function usage.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% is append-only: % refused', tg_table_schema || '.' || tg_table_name, lower(tg_op) using errcode = 'TB001';
end $$;
"""

APPEND_ONLY = ("applied_chunks", "audit_log", "event_identities", "quarantine")


def upgrade() -> None:
    """Create the schema. Facts are guarded against edits by trigger."""
    for statement in STATEMENTS.split(";\n\n"):
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
    """Drop the schema with everything in it."""
    op.execute("drop schema usage cascade")
