"""What Stripe was told of a customer is looked up each time that something is billed to it.

Revision ID: 0098
"""

from __future__ import annotations

from alembic import op

revision = "0098"
down_revision = "0097"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add an index of the few requests that are about customers."""
    op.execute(
        "create index stripe_requests_of_customers on ledger.stripe_requests (billing_account)"
        " where step in ('customer', 'customer_update')"
    )


def downgrade() -> None:
    """Take it away."""
    op.execute("drop index ledger.stripe_requests_of_customers")
