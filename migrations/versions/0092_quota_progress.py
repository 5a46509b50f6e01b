"""How far a shard's states and its reading of the feed have come has a row of its own: the row of the shard itself is
locked by each batch of its journal, which must not wait for anything else that is stored.

Revision ID: 0092
"""

from __future__ import annotations

from alembic import op

revision = "0092"
down_revision = "0091"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """`feed_read`: `ingest_no` by source, null where nobody knows; `stored_through`: the last batch of the journal that
    no rebuild needs (streams/quotas/journal.py)."""
    op.execute(
        "create table usage.quota_progress ("
        " shard integer primary key, feed_read jsonb, stored_through bigint not null default 0)"
    )
    op.execute(
        "insert into usage.quota_progress (shard, feed_read, stored_through)"
        " select shard, feed_read, stored_through from usage.quota_shards"
    )
    op.execute("alter table usage.quota_shards drop feed_read, drop stored_through")


def downgrade() -> None:
    """Back into the shards' rows."""
    op.execute("alter table usage.quota_shards add stored_through bigint not null default 0, add feed_read jsonb")
    op.execute(
        "update usage.quota_shards as s set feed_read = p.feed_read, stored_through = p.stored_through"
        " from usage.quota_progress as p where p.shard = s.shard"
    )
    op.execute("drop table usage.quota_progress")
