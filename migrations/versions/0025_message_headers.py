"""The quarantine keeps a message's headers, and whether it had a value at all.

Revision ID: 0025
"""

from __future__ import annotations

from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns: bytes, because a name need not be text that PostgreSQL stores. What is there had none kept."""
    op.execute(
        "alter table usage.quarantine add column header_names bytea[] not null default '{}',"
        " add column header_values bytea[] not null default '{}', add column is_null boolean not null default false,"
        " add check (cardinality(header_names) = cardinality(header_values))"
    )


def downgrade() -> None:
    """Drop them."""
    op.execute("alter table usage.quarantine drop column header_names, drop column header_values, drop column is_null")
