"""The digest of the events that an invoice bills.

Revision ID: 0019
"""

from __future__ import annotations

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

TABLES = ("usage_counts", "usage_digests", "passed_over_attempts")

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- The digest over all events of an invoice, and how far each source of usage was applied when they were counted.
create table ledger.usage_digests (
    invoice_id uuid  primary key references ledger.invoices,
    digest     bytea not null check (length(digest) = 32),
    below      jsonb not null check (jsonb_typeof(below) = 'object')
)
--;
-- What it bills of each tenant: sums over its events, and the root of the Merkle tree over them.
create table ledger.usage_counts (
    invoice_id       uuid   not null references ledger.invoices,
    tenant_id        text   not null,
    events           bigint not null check (events >= 0),
    requests         bigint not null check (requests between 0 and events),
    input_tokens     bigint not null,
    cache_hit_tokens bigint not null,
    output_tokens    bigint not null,
    gpu_us           bigint not null,
    root             bytea  not null check (length(root) = 32),
    primary key (invoice_id, tenant_id)
)
--;
-- Attempts completed in the period that do not bill, because another of their request does (docs/spec/money.md 13.11).
-- Kept, because the other one may lie in another period, whose raw events are in the archive when it is asked for.
create table ledger.passed_over_attempts (
    invoice_id uuid    not null references ledger.invoices,
    tenant_id  text    not null,
    request_id text    not null,
    attempt    integer not null,
    primary key (invoice_id, tenant_id, request_id, attempt)
)
"""


def upgrade() -> None:
    """Create the tables. Like an invoice's lines they follow a draft, and stay with what is frozen."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)
    for table in TABLES:
        op.execute(
            f"create trigger guard_invoice_line before insert or update or delete on ledger.{table}"
            " for each row execute function ledger.guard_invoice_line()"
        )
        op.execute(
            f"create trigger append_only_truncate before truncate on ledger.{table}"
            " for each statement execute function ledger.refuse_change()"
        )


def downgrade() -> None:
    """Drop them."""
    for table in TABLES:
        op.execute(f"drop table ledger.{table}")
