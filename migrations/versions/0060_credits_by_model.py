"""Credits that are for certain models alone.

Revision ID: 0060
"""

from __future__ import annotations

from alembic import op

revision = "0060"
down_revision = "0059"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Those that are there are for all models."""
    op.execute("alter table ledger.credit_grants add column models text[] not null default '{}'")


def downgrade() -> None:
    """Take the column away."""
    op.execute("alter table ledger.credit_grants drop column models")
