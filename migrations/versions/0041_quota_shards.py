"""Quotas: what is not known of a shard's promises survives its owner, and so do batches that other shards need.

Revision ID: 0041
"""

from __future__ import annotations

from alembic import op

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """`learning_until`: until then only a share is promised. `divided_after`: the last batch from before tenants were
    divided as they are; `stored_through`: the last one that a rebuild of the shard does not need (streams/quotas)."""
    op.execute(
        "alter table usage.quota_shards add learning_until timestamptz,"
        " add divided_after bigint not null default 0 check (divided_after >= 0),"
        " add stored_through bigint not null default 0 check (stored_through >= 0)"
    )


def downgrade() -> None:
    """Drop them."""
    op.execute("alter table usage.quota_shards drop learning_until, drop divided_after, drop stored_through")
