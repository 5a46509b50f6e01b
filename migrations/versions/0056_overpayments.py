"""An invoice can be overpaid more than once: each time, what is more than before becomes unapplied cash.

Revision ID: 0056
"""

from __future__ import annotations

from alembic import op

revision = "0056"
down_revision = "0055"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One correction for each amount up to which an invoice was overpaid; the first ones name it as their own."""
    op.execute("drop index ledger.corrections_one_overpayment")
    op.execute(
        "create unique index corrections_one_overpayment on ledger.corrections"
        " (invoice_id, coalesce(content ->> 'up_to', content ->> 'amount')) where kind = 'overpayment'"
    )


def downgrade() -> None:
    """One for each invoice again, as long as none has two."""
    op.execute("drop index ledger.corrections_one_overpayment")
    op.execute(
        "create unique index corrections_one_overpayment on ledger.corrections (invoice_id) where kind = 'overpayment'"
    )
