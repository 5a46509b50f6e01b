"""Usage that came later than its contract bills, and who approved that it stays unbilled.

Revision ID: 0029
"""

from __future__ import annotations

from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- Credits of a document may only move from one tax group to another: drawn in one what comes back in the other.
alter table ledger.invoice_credits drop constraint invoice_credits_amount_check
--;
-- Up to which position of each source the late usage of a billed period was judged: once, as of when it came.
create table ledger.late_cuts (
    late_cut_no  bigint      generated always as identity primary key,
    period_start timestamptz not null,
    period_end   timestamptz not null check (period_end > period_start),
    below        jsonb       not null check (jsonb_typeof(below) = 'object'),
    recorded_at  timestamptz not null default clock_timestamp()
)
--;
create index on ledger.late_cuts (period_start, period_end)
--;
-- Events that completed longer before the end of what was billed than the contract's horizon (docs/spec/money.md 7).
create table ledger.unbillable_usage (
    unbillable_no    bigint      generated always as identity primary key,
    tenant_id        text        not null,
    billing_account  text        not null references ledger.billing_accounts,
    request_id       text        not null,
    attempt          integer     not null,
    kind             text        not null,
    correction_no    integer     not null,
    completed_at     timestamptz not null,
    model            text        not null,
    adapter          text        not null,
    region           text        not null,
    tier             text        not null,
    status           text        not null,
    fault            text        not null,
    usage_source     text        not null,
    rating_band      text        not null,
    requests         bigint      not null,
    input_tokens     bigint      not null,
    cache_hit_tokens bigint      not null,
    output_tokens    bigint      not null,
    gpu_us           bigint      not null,
    billed_to        timestamptz not null check (billed_to > completed_at),
    horizon_days     integer     not null check (horizon_days >= 0),
    recorded_at      timestamptz not null default clock_timestamp(),
    unique (tenant_id, request_id, attempt, kind, correction_no)
)
--;
create index on ledger.unbillable_usage (completed_at)
--;
create table ledger.unbillable_approvals (
    unbillable_no bigint      primary key references ledger.unbillable_usage,
    approved_by   text        not null check (approved_by <> ''),
    reason        text        not null check (reason <> ''),
    approved_at   timestamptz not null default clock_timestamp()
)
"""

TABLES = ("late_cuts", "unbillable_usage", "unbillable_approvals")


def upgrade() -> None:
    """Create the tables. Nothing in them is changed."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)
    for table in TABLES:
        op.execute(
            f"create trigger append_only before update or delete on ledger.{table}"
            " for each row execute function ledger.refuse_change()"
        )
        op.execute(
            f"create trigger append_only_truncate before truncate on ledger.{table}"
            " for each statement execute function ledger.refuse_change()"
        )


def downgrade() -> None:
    """Drop them: what was left unbilled would be billed by the next rating."""
    op.execute("drop table ledger.unbillable_approvals, ledger.unbillable_usage, ledger.late_cuts")
    op.execute("alter table ledger.invoice_credits add constraint invoice_credits_amount_check check (amount <> 0)")
