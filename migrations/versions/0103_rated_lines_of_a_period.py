"""What was rated of a period is found without reading what was rated of all others.

Revision ID: 0103
"""

from __future__ import annotations

from alembic import op

revision = "0103"
down_revision = "0102"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A close asks for a period's lines of all accounts."""
    op.execute("create index rated_lines_of_a_period on ledger.rated_lines (period_start, period_end, tenant_id)")


def downgrade() -> None:
    """They are found by account alone."""
    op.execute("drop index ledger.rated_lines_of_a_period")
