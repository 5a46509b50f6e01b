"""Cuts of the usage of billing periods that go on.

Revision ID: 0104
"""

from __future__ import annotations

from alembic import op

revision = "0104"
down_revision = "0103"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """`accrued_to`: up to when usage of a period that goes on was cut; null of a cut that bills its period."""
    op.execute(
        "alter table ledger.close_cuts add column accrued_to timestamptz"
        " check (accrued_to > period_start and accrued_to < period_end)"
    )


def downgrade() -> None:
    """Every cut bills its period."""
    op.execute("alter table ledger.close_cuts drop column accrued_to")
