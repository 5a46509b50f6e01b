"""Replays: a plan with its records, what it would do and what it depends on, and what became of it.

Revision ID: 0039
"""

from __future__ import annotations

from alembic import op

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
create table usage.replay_plans (
    plan_id        text        primary key check (plan_id ~ '^rp-[0-9a-f]{12}$'),
    plan_no        bigint      generated always as identity unique,
    made_at        timestamptz not null,
    actor          text        not null,
    origin         jsonb       not null,
    counts         jsonb       not null,
    effects        jsonb       not null,
    content_digest bytea       not null
)
--;
-- What a plan would apply: message by message, in the parts that are applied as sources of their own,
-- `replay:<plan>/<part>`. Written before the plan's row, in its transaction.
create table usage.replay_records (
    plan_id     text   not null references usage.replay_plans deferrable initially deferred,
    part        integer not null check (part >= 0),
    position    bigint not null check (position >= 0),
    key         uuid   not null,
    message_key bytea,
    message     bytea  not null,
    primary key (plan_id, part, position)
)
--;
-- What it would not, and why; duplicates are only counted.
create table usage.replay_left_out (
    plan_id   text   not null references usage.replay_plans deferrable initially deferred,
    no        bigint not null check (no >= 1),
    fate      text   not null check (fate in ('conflict', 'refused', 'not_mappable')),
    reason    text   not null,
    detail    text   not null,
    tenant_id text,
    origin    text   not null,
    message   bytea  not null,
    primary key (plan_id, no)
)
--;
-- What a plan's answers depend on, and its effect in money: written once it is known; without it nothing is applied.
create table usage.replay_worlds (
    plan_id text  primary key references usage.replay_plans,
    world   jsonb not null,
    money   jsonb not null
)
--;
create table usage.replay_runs (
    plan_id text        not null references usage.replay_plans,
    what    text        not null check (what in ('begun', 'ended')),
    at      timestamptz not null default clock_timestamp(),
    actor   text        not null,
    detail  jsonb       not null,
    primary key (plan_id, what)
)
"""

TABLES = ("replay_plans", "replay_records", "replay_left_out", "replay_worlds", "replay_runs")


def upgrade() -> None:
    """Add the tables, all of them append-only."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)
    for table in TABLES:
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
    for table in reversed(TABLES):
        op.execute(f"drop table usage.{table}")
