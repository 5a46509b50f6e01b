"""What counting once needs beyond plain duplicates: versions of an event, corrections, orphans, releases, the feed.

Revision ID: 0005
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

STATEMENTS = """
-- Further arrivals of a known identity from another source, stronger or weaker than the one counted first.
create table usage.event_versions (
    request_id     text        collate "C" not null,
    tenant_id      text        collate "C" not null,
    attempt        integer     not null,
    kind           text        collate "C" not null,
    correction_no  integer     not null,
    usage_source   text        not null,
    content_digest bytea       not null,
    replica_id     text,
    boot_id        text,
    completed_at   timestamptz not null,
    source         text        not null,
    position       bigint      not null,
    primary key (request_id, tenant_id, attempt, kind, correction_no, usage_source)
);

-- Events that another one has taken the place of. They stay stored and count no more.
create table usage.superseded_events (
    source        text        not null,
    position      bigint      not null,
    by_source     text        not null,
    by_position   bigint      not null,
    superseded_at timestamptz not null default now(),
    primary key (source, position)
);

-- Every event that counts: what was superseded is left out.
create view usage.counting_events as
    select e.* from usage.events as e
    where not exists (select from usage.superseded_events as s where s.source = e.source and s.position = e.position);

alter table usage.quarantine add column estimated_value numeric, add column currency text,
    add column request_id text, add column attempt integer;
create index on usage.quarantine (tenant_id, request_id) where reason = 'orphan';

-- What became of a quarantined message: released (applied after its cause was mended) or discarded.
create table usage.quarantine_resolutions (
    quarantine_id bigint      primary key references usage.quarantine,
    outcome       text        not null check (outcome in ('released', 'discarded')),
    reason        text        not null,
    actor         text        not null,
    resolved_at   timestamptz not null default now()
);

-- Positions that a named person decided to pass over, because the log no longer has them or never had.
create table usage.position_resolutions (
    source        text        not null references usage.sources,
    from_position bigint      not null,
    to_position   bigint      not null check (to_position >= from_position),
    reason        text        not null,
    actor         text        not null,
    resolved_at   timestamptz not null default now(),
    primary key (source, from_position)
);

-- Highest prices that may apply, for estimating what a refused message is worth. Billing writes, streams only reads.
-- '' stands for any model.
create table usage.estimate_prices (
    tenant_id  text        not null references usage.tenants,
    model      text        not null,
    metric     text        not null check (metric in ('input', 'cached_input', 'output', 'request', 'gpu_second')),
    unit_price numeric     not null check (unit_price >= 0),
    currency   text        not null,
    valid_from timestamptz not null,
    primary key (tenant_id, model, metric, valid_from)
);

-- Confirmed usage in the order of commit, for the quota service. Short-lived: read once, then dropped by age.
create table usage.quota_feed (
    appended_at      timestamptz not null default now(),
    source           text        not null,
    ingest_no        bigint      not null,
    tenant_id        text        not null,
    request_id       text        not null,
    attempt          integer     not null,
    kind             text        not null,
    model            text        not null,
    adapter          text        not null,
    status           text        not null,
    fault            text        not null,
    usage_source     text        not null,
    completed_at     timestamptz not null,
    requests         bigint      not null,
    input_tokens     bigint      not null,
    cache_hit_tokens bigint      not null,
    output_tokens    bigint      not null,
    gpu_us           bigint      not null
);
select create_hypertable('usage.quota_feed', 'appended_at', chunk_time_interval => interval '10 minutes', create_default_indexes => false);
create index on usage.quota_feed (source, ingest_no);
"""

APPEND_ONLY = ("event_versions", "position_resolutions", "superseded_events", "quarantine_resolutions")


def upgrade() -> None:
    """Create the tables."""
    for statement in STATEMENTS.split(";\n"):
        if statement.strip():
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
    """Drop the tables."""
    op.execute("drop view usage.counting_events")
    for table in (
        "quota_feed",
        "position_resolutions",
        "estimate_prices",
        "quarantine_resolutions",
        "superseded_events",
        "event_versions",
    ):
        op.execute(f"drop table usage.{table}")
    op.execute(
        "alter table usage.quarantine drop column estimated_value, drop column currency, drop column request_id,"
        " drop column attempt"
    )
