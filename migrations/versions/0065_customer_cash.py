"""An account for what customers sent to Stripe and no payment has taken yet (docs/decisions/0029-cash-balances.md).

Revision ID: 0065
"""

from __future__ import annotations

from alembic import op

revision = "0065"
down_revision = "0064"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add 1012 to the chart."""
    op.execute(
        "insert into ledger.chart_of_accounts (code, name, type, subledger, in_quanta)"
        " values (1012, 'stripe_customer_cash', 'asset', 'billing_account', true)"
    )


def downgrade() -> None:
    """Take it away, as long as nothing was posted to it."""
    op.execute("alter table ledger.chart_of_accounts disable trigger append_only")
    op.execute("delete from ledger.chart_of_accounts where code = 1012")
    op.execute("alter table ledger.chart_of_accounts enable trigger append_only")
