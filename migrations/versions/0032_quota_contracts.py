"""What quotas take from contracts: anchors hold from a time on, and changes of prices are numbered.

Revision ID: 0032
"""

from __future__ import annotations

from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = """
-- Anchors that are there have always held.
alter table usage.billing_anchors add column starts_at timestamptz not null default 'epoch'
--;
alter table usage.billing_anchors alter column starts_at drop default
--;
-- Whose highest prices were written anew, so that a running quota service reads them again.
create table usage.estimate_price_changes (
    change_no  bigint      generated always as identity primary key,
    tenant_id  text        not null references usage.tenants,
    written_at timestamptz not null default now()
)
--;
create trigger append_only before update or delete on usage.estimate_price_changes
    for each row execute function usage.refuse_change()
--;
create trigger append_only_truncate before truncate on usage.estimate_price_changes
    for each statement execute function usage.refuse_change()
"""


def upgrade() -> None:
    """Add both."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """Take them away."""
    op.execute("drop table usage.estimate_price_changes")
    op.execute("alter table usage.billing_anchors drop column starts_at")
