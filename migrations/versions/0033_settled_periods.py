"""Which billing periods need no rating any more: nothing can come to them.

Revision ID: 0033
"""

from __future__ import annotations

from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- `terms`: a digest of the subscriptions and plans that it was rated by. Others unsettle it.
create table ledger.settled_periods (
    period_start timestamptz not null,
    period_end   timestamptz not null check (period_end > period_start),
    terms        text        not null,
    recorded_at  timestamptz not null default clock_timestamp(),
    primary key (period_start, period_end, terms)
)
--;
create trigger append_only before update or delete on ledger.settled_periods
    for each row execute function ledger.refuse_change()
--;
create trigger append_only_truncate before truncate on ledger.settled_periods
    for each statement execute function ledger.refuse_change()
"""


def upgrade() -> None:
    """Add the table. Every period is rated once more, then settled."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop it: every period is rated at each close."""
    op.execute("drop table ledger.settled_periods")
