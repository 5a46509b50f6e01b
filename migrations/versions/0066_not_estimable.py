"""Why a refused message has no estimated value stands beside it (docs/spec/metering.md 2).

Revision ID: 0066
"""

from __future__ import annotations

from alembic import op

revision = "0066"
down_revision = "0065"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the reason; what is there was refused without one."""
    op.execute(
        "alter table usage.quarantine add column not_estimable text,"
        " add constraint estimated_or_not check (estimated_value is null or not_estimable is null)"
    )


def downgrade() -> None:
    """Take it away."""
    op.execute("alter table usage.quarantine drop column not_estimable")
