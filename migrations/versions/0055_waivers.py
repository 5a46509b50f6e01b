"""A waiver holds for a difference as it was seen: what became of it since needs another one.

Revision ID: 0055
"""

from __future__ import annotations

from alembic import op

revision = "0055"
down_revision = "0054"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Keep both values. Waivers without them, of before, hold only where nothing was there on either side."""
    op.execute(
        "alter table ledger.close_waivers add column seen_left text, add column seen_right text,"
        " drop constraint close_waivers_month_gate_key_key"
    )
    op.execute("create index on ledger.close_waivers (month)")


def downgrade() -> None:
    """Take it away. Fails where one key was waived twice: that is history."""
    op.execute("drop index ledger.close_waivers_month_idx")
    op.execute(
        "alter table ledger.close_waivers drop column seen_left, drop column seen_right,"
        " add constraint close_waivers_month_gate_key_key unique (month, gate, key)"
    )
