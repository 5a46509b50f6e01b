"""A gate that is asked of some accounts at a time keeps what it found of each tenant's cut.

Revision ID: 0091
"""

from __future__ import annotations

from alembic import op

revision = "0091"
down_revision = "0090"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """`part`: tenant, period and cut that a result is of; '' is all that is not told apart."""
    op.execute("alter table ledger.close_gate_results add column part text not null default ''")
    op.execute("create index on ledger.close_gate_results (month, gate, part, result_no)")
    op.execute("drop index ledger.close_gate_results_month_gate_result_no_idx")


def downgrade() -> None:
    """As before: what was found last of each gate is that of its last part."""
    op.execute("create index on ledger.close_gate_results (month, gate, result_no)")
    op.execute("alter table ledger.close_gate_results drop column part")
