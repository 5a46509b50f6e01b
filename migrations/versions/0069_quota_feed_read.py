"""Quotas: up to where a shard has read the feed, so that usage that nobody had reserved is told apart over restarts.

Revision ID: 0069
"""

from __future__ import annotations

from alembic import op

revision = "0069"
down_revision = "0068"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """`feed_read`: `ingest_no` by source; null where nobody knows (streams/quotas/journal.py)."""
    op.execute("alter table usage.quota_shards add feed_read jsonb")


def downgrade() -> None:
    """Drop it."""
    op.execute("alter table usage.quota_shards drop feed_read")
