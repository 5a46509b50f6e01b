"""Completeness: received numbers, boots, gaps, cumulative counts, engine counters, alerts (docs/spec/metering.md 6).

Revision ID: 0006
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- What a source brings: usage events, or what replicas say about themselves.
alter table usage.sources add column feed text not null default 'usage' check (feed in ('usage', 'replicas'))
--;
-- The numbers that a chunk brought, written in its transaction. Only added to there, so that workers that apply
-- events of the same replica never wait for each other; the completeness check takes the rows out and folds them into ranges.
create table usage.number_fills (
    replica_id text     not null,
    boot_id    text     not null,
    numbers    bigint[] not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)
--;
-- What a chunk counted, by who numbered it ('' for unnumbered events). Folded into replica_usage in the same way.
create table usage.replica_usage_fills (
    replica_id       text   not null,
    boot_id          text   not null,
    tenant_id        text   not null,
    model            text   not null,
    events           bigint not null,
    input_tokens     bigint not null,
    output_tokens    bigint not null,
    cache_hit_tokens bigint not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000)
--;
-- What was counted of each boot's events: one of the two sides of the comparison with its heartbeats.
create table usage.replica_usage (
    replica_id       text   collate "C" not null,
    boot_id          text   collate "C" not null,
    tenant_id        text   collate "C" not null,
    model            text   collate "C" not null,
    events           bigint not null,
    input_tokens     bigint not null,
    output_tokens    bigint not null,
    cache_hit_tokens bigint not null,
    primary key (replica_id, boot_id, tenant_id, model),
    check ((replica_id = '') = (boot_id = ''))
)
--;
-- How far the numbers of a boot have arrived. All up to received_through are here; what is beyond is in
-- received_numbers. Numbers up to named_through have been looked at for gaps; those up to due_through are next.
create table usage.boot_numbers (
    replica_id       text        collate "C" not null,
    boot_id          text        collate "C" not null,
    received_through bigint      not null default 0 check (received_through >= 0),
    highest          bigint      not null default 0 check (highest >= received_through),
    named_through    bigint      not null default 0,
    due_through      bigint      check (due_through > named_through),
    due_at           timestamptz,
    proven_to        timestamptz,
    first_filled_at  timestamptz not null,
    primary key (replica_id, boot_id),
    check ((due_through is null) = (due_at is null))
)
--;
-- Numbers beyond received_through, as ranges; a row holds those of one segment, so that it stays small to rewrite.
create table usage.received_numbers (
    replica_id text           collate "C" not null,
    boot_id    text           collate "C" not null,
    segment    bigint         not null check (segment >= 0),
    numbers    int8multirange not null check (not isempty(numbers)),
    primary key (replica_id, boot_id, segment)
)
--;
-- What boots say about themselves. `*_at` are the replica's clock, `*_received_at` the broker's.
create table usage.boots (
    replica_id            text        collate "C" not null,
    boot_id               text        collate "C" not null,
    first_received_at     timestamptz not null,
    last_received_at      timestamptz not null,
    begun_at              timestamptz,
    heartbeat_at          timestamptz,
    last_seq              bigint      not null default 0 check (last_seq >= 0),
    started               bigint,
    ended                 bigint,
    open                  bigint,
    clock_offset_ms       bigint,
    farewell_at           timestamptz,
    primary key (replica_id, boot_id)
)
--;
-- Heartbeats whose numbers have not all arrived yet: each is a time that can be proven later.
create table usage.heartbeat_marks (
    replica_id  text        not null,
    boot_id     text        not null,
    reported_at timestamptz not null,
    last_seq    bigint      not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)
--;
-- Cumulative counts as the heartbeats say: the other side of the comparison.
create table usage.replica_reported (
    replica_id       text   collate "C" not null,
    boot_id          text   collate "C" not null,
    tenant_id        text   collate "C" not null,
    model            text   collate "C" not null,
    events           bigint not null,
    input_tokens     bigint not null,
    output_tokens    bigint not null,
    cache_hit_tokens bigint not null,
    primary key (replica_id, boot_id, tenant_id, model)
)
--;
-- Cumulative tokens as the engine counted them, scraped by a process of its own.
create table usage.engine_counters (
    replica_id        text        collate "C" not null,
    boot_id           text        collate "C" not null,
    model             text        collate "C" not null,
    prompt_tokens     bigint      not null,
    generation_tokens bigint      not null,
    cached_tokens     bigint      not null,
    scraped_at        timestamptz not null,
    primary key (replica_id, boot_id, model)
)
--;
-- Numbers that are missing although higher ones are known. A gap keeps its first number, which is its name; its last
-- may move up while it is open; it is closed once, when nothing is missing of it.
create table usage.gaps (
    replica_id   text        collate "C" not null,
    boot_id      text        collate "C" not null,
    first_number bigint      not null check (first_number >= 1),
    last_number  bigint      not null check (last_number >= first_number),
    missing      bigint      not null check (missing between 0 and last_number - first_number + 1),
    since        timestamptz not null,
    alerted_at   timestamptz,
    closed_at    timestamptz,
    primary key (replica_id, boot_id, first_number),
    check ((missing = 0) = (closed_at is not null))
)
--;
create index on usage.gaps (replica_id, boot_id) where closed_at is null
--;
-- What was found about a boot, once each.
create table usage.boot_findings (
    replica_id text        collate "C" not null,
    boot_id    text        collate "C" not null,
    finding    text        not null check (finding in ('no_farewell', 'clock_offset')),
    alert_id   uuid        not null,
    found_at   timestamptz not null,
    primary key (replica_id, boot_id, finding)
)
--;
-- A person's word that nothing more will come of a boot.
create table usage.boot_write_offs (
    replica_id     text        collate "C" not null,
    boot_id        text        collate "C" not null,
    actor          text        not null,
    reason         text        not null check (reason <> ''),
    written_off_at timestamptz not null default now(),
    primary key (replica_id, boot_id)
)
--;
-- The outbox of alerts. A row's id is derived from what it is about: the same thing is raised once.
create table usage.alerts (
    alert_id     uuid        primary key,
    kind         text        not null,
    key          text        not null,
    subject      jsonb       not null,
    detail       text        not null,
    raised_at    timestamptz not null,
    delivered_at timestamptz
)
--;
create index on usage.alerts (raised_at) where delivered_at is null
--;
-- Since when the checks go on without a pause: silence from before it says nothing about a replica.
create table usage.completeness_watch (
    only_row        boolean     primary key default true check (only_row),
    watching_since  timestamptz not null,
    checked_at      timestamptz not null
)
--;
create function usage.refuse_change_of_closed_gap() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' or old.closed_at is not null or new.first_number <> old.first_number or new.since <> old.since
        or new.last_number < old.last_number or (old.alerted_at is not null and new.alerted_at is distinct from old.alerted_at)
    then
        raise exception 'usage.gaps keeps its history: % refused', lower(tg_op) using errcode = 'TB001';
    end if;
    return new;
end $$
--;
create trigger keeps_history before update or delete on usage.gaps
    for each row execute function usage.refuse_change_of_closed_gap()
--;
create function usage.refuse_change_of_alert() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' or old.delivered_at is not null
        or (new.alert_id, new.kind, new.key, new.subject, new.detail, new.raised_at)
            is distinct from (old.alert_id, old.kind, old.key, old.subject, old.detail, old.raised_at)
    then
        raise exception 'usage.alerts keeps what was raised: % refused', lower(tg_op) using errcode = 'TB001';
    end if;
    return new;
end $$
--;
create trigger keeps_what_was_raised before update or delete on usage.alerts
    for each row execute function usage.refuse_change_of_alert()
"""

APPEND_ONLY = ("boot_findings", "boot_write_offs")
NEVER_EMPTIED = ("gaps", "alerts")


def upgrade() -> None:
    """Create the tables with their guards."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)
    for table in APPEND_ONLY:
        op.execute(
            f"create trigger append_only before update or delete on usage.{table}"
            " for each row execute function usage.refuse_change()"
        )
    for table in (*APPEND_ONLY, *NEVER_EMPTIED):
        op.execute(
            f"create trigger append_only_truncate before truncate on usage.{table}"
            " for each statement execute function usage.refuse_change()"
        )


def downgrade() -> None:
    """Drop what this revision made."""
    for table in (
        "completeness_watch", "alerts", "boot_write_offs", "boot_findings", "gaps", "engine_counters",
        "replica_reported", "heartbeat_marks", "boots", "received_numbers", "boot_numbers", "replica_usage",
        "replica_usage_fills", "number_fills",
    ):  # fmt: skip
        op.execute(f"drop table usage.{table}")
    op.execute("drop function usage.refuse_change_of_closed_gap()")
    op.execute("drop function usage.refuse_change_of_alert()")
    op.execute("alter table usage.sources drop column feed")
