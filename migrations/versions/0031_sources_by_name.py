"""The sources of a topic are found by their name.

Revision ID: 0031
"""

from __future__ import annotations

from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Each release from quarantine is a source as well: of partitions there are few, and they are asked for often."""
    op.execute('create index sources_by_name on usage.sources (source collate "C")')


def downgrade() -> None:
    """Drop it."""
    op.execute("drop index usage.sources_by_name")
