"""A heartbeat proves no time from which a request that is open may yet be told as lost.

Revision ID: 0086
"""

from __future__ import annotations

from alembic import op

revision = "0086"
down_revision = "0074"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let a mark say what it proves; those before said what they were reported at."""
    op.execute("alter table usage.heartbeat_marks add column proves_to timestamptz")


def downgrade() -> None:
    """As before."""
    op.execute("alter table usage.heartbeat_marks drop column proves_to")
