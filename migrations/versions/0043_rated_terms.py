"""By which subscriptions and prices a tenant's period was rated.

Revision ID: 0043
"""

from __future__ import annotations

from alembic import op

revision = "0043"
down_revision = "0042"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a digest of them. What was rated without it is rated again before it is sent."""
    op.execute("alter table ledger.tenant_periods add column terms text")


def downgrade() -> None:
    """Drop it: a change between rating and sending is not noticed."""
    op.execute("alter table ledger.tenant_periods drop column terms")
