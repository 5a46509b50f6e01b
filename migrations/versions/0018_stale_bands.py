"""Times whose rating bands are older than the rules: a rebuild is due before they are rated.

Revision ID: 0018
"""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.execute(
        "create table usage.stale_bands ("
        " tenant_id text not null references usage.tenants,"
        " stale_from timestamptz not null,"
        " stale_to timestamptz not null check (stale_to > stale_from),"
        " primary key (tenant_id, stale_from))"
    )


def downgrade() -> None:
    """Drop it."""
    op.execute("drop table usage.stale_bands")
