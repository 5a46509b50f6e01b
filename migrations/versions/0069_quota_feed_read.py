"""Quotas: up to where a shard has read the feed, so that usage that nobody had reserved is told apart over restarts; and
what of a tenant's usage bills, so that quotas in money count that.

Revision ID: 0069
"""

from __future__ import annotations

from alembic import op

revision = "0069"
down_revision = "0068"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """`feed_read`: `ingest_no` by source; null where nobody knows (streams/quotas/journal.py). `bill_statuses`, sorted:
    null as by default (streams/rules/estimates.py)."""
    op.execute("alter table usage.quota_shards add feed_read jsonb")
    op.execute("alter table usage.estimate_price_changes add bill_statuses text[]")
    op.execute("create index on usage.estimate_price_changes (tenant_id, change_no)")
    op.execute("create index on usage.estimate_price_changes (tenant_id) where bill_statuses is not null")


def downgrade() -> None:
    """Drop them."""
    op.execute("alter table usage.quota_shards drop feed_read")
    op.execute("drop index usage.estimate_price_changes_tenant_id_change_no_idx")
    op.execute("alter table usage.estimate_price_changes drop bill_statuses")
