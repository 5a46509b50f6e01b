"""Balance transactions that cannot be booked are kept aside, so that the list is read on.

Revision ID: 0058
"""

from __future__ import annotations

from alembic import op

revision = "0058"
down_revision = "0057"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table: what is in it waits, and goes once it is booked."""
    op.execute(
        "create table ledger.stripe_unbooked ("
        " transaction_id text primary key, created_at timestamptz not null, because text not null)"
    )


def downgrade() -> None:
    """Read the list again from the first that waits."""
    op.execute(
        "update ledger.stripe_cursors set read_to = least(read_to, (select min(created_at) from ledger.stripe_unbooked))"
        " where name = 'balance_transactions'"
    )
    op.execute("drop table ledger.stripe_unbooked")
