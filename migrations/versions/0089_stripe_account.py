"""Which account of Stripe's the books follow: what is read of its lists is of that one alone.

Revision ID: 0089
"""

from __future__ import annotations

from alembic import op

revision = "0089"
down_revision = "0088"
branch_labels = None
depends_on = None

TABLE = "ledger.stripe_account"


def upgrade() -> None:
    """Add the table, empty: the next run that takes in what Stripe has says which account it is."""
    op.execute(
        f"create table {TABLE} ("
        " the_only boolean primary key default true check (the_only),"
        " account_id text not null,"
        " live boolean not null,"
        " kept_at timestamptz not null default clock_timestamp())"
    )
    op.execute(
        f"create trigger append_only before update or delete on {TABLE}"
        " for each row execute function ledger.refuse_change()"
    )
    op.execute(
        f"create trigger append_only_truncate before truncate on {TABLE}"
        " for each statement execute function ledger.refuse_change()"
    )


def downgrade() -> None:
    """Take it away."""
    op.execute(f"drop table {TABLE}")
