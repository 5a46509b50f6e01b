"""How many of a chunk's events came late, so that `streams status` can say so without reading the events.

Revision ID: 0013
"""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of older chunks it says 0."""
    op.execute(
        "alter table usage.applied_chunks add column late integer not null default 0 check (late between 0 and applied)"
    )


def downgrade() -> None:
    """Drop it."""
    op.execute("alter table usage.applied_chunks drop column late")
