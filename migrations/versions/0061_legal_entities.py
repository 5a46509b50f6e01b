"""Legal entities are added by a verb; they stay as they are.

Revision ID: 0061
"""

from __future__ import annotations

from alembic import op

revision = "0061"
down_revision = "0060"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The application may add (migrations/privileges.py), nobody may change."""
    op.execute(
        "create trigger append_only before update or delete on ledger.legal_entities"
        " for each row execute function ledger.refuse_change()"
    )


def downgrade() -> None:
    """Let them be changed."""
    op.execute("drop trigger append_only on ledger.legal_entities")
