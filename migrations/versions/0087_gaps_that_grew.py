"""A gap that grew is alerted again: how much was missing when it was told last, and since when there is more.

Revision ID: 0087
"""

from __future__ import annotations

from alembic import op

revision = "0087"
down_revision = "0086"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Gaps that are open were told with what is missing now: nobody knows how much it was."""
    op.execute(
        "alter table usage.gaps add column grown_at timestamptz, add column told_at timestamptz,"
        " add column told_missing bigint"
    )
    op.execute(
        "update usage.gaps set told_at = alerted_at, told_missing = missing"
        " where alerted_at is not null and closed_at is null"
    )


def downgrade() -> None:
    """As before."""
    op.execute("alter table usage.gaps drop column grown_at, drop column told_at, drop column told_missing")
