"""What people take back of invoices in Stripe by hand; lists of Stripe are read page by page.

Revision ID: 0064
"""

from __future__ import annotations

from alembic import op

revision = "0064"
down_revision = "0063"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, and where a pass over a list stands."""
    op.execute(
        "create table ledger.stripe_by_hand ("
        " object_id text primary key,"
        " invoice_id uuid not null references ledger.invoices,"
        " kind text not null check (kind in ('refund', 'credit_note')),"
        " amount bigint not null check (amount >= 0),"
        " over boolean not null,"
        " seen_at timestamptz not null default clock_timestamp())"
    )
    op.execute("create index on ledger.stripe_by_hand (invoice_id)")
    # Lists go from the newest to the oldest: as long as one is not read to its end, where it is.
    op.execute(
        "create table ledger.stripe_passes ("
        " name text primary key check (name in ('events', 'balance_transactions')),"
        " page_after text not null, newest timestamptz not null)"
    )


def downgrade() -> None:
    """Take them away; a pass that was broken off begins again."""
    op.execute("drop table ledger.stripe_passes")
    op.execute("drop table ledger.stripe_by_hand")
