"""Billing periods other than calendar months: where anniversaries are counted from, and what was accrued by when.

Revision ID: 0030
"""

from __future__ import annotations

from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Without them an anniversary is counted from the start, and a period was accrued whole."""
    op.execute("alter table ledger.subscriptions add column anchored_at timestamptz check (anchored_at <= starts_at)")
    op.execute(
        "alter table ledger.rated_lines add column accrued_to timestamptz"
        " check (accrued_to > period_start and accrued_to <= period_end)"
    )


def downgrade() -> None:
    """Drop them."""
    op.execute("alter table ledger.rated_lines drop column accrued_to")
    op.execute("alter table ledger.subscriptions drop column anchored_at")
