"""Stripe's objects as a gate of a close has read them.

Revision ID: 0063
"""

from __future__ import annotations

from alembic import op

revision = "0063"
down_revision = "0062"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, append-only."""
    op.execute("""
create table ledger.close_stripe_objects (
    object_no bigint      generated always as identity primary key,
    month     text        not null check (month ~ '^\\d{4}-\\d{2}$'),
    kind      text        not null check (kind in ('invoice', 'line_item', 'balance_transaction')),
    stripe_id text        not null check (stripe_id <> ''),
    body      text        not null check (jsonb_typeof(body::jsonb) = 'object'),
    at        timestamptz not null default clock_timestamp()
)
""")
    op.execute("create index on ledger.close_stripe_objects (month, kind, stripe_id, object_no)")
    op.execute(
        "create trigger append_only before update or delete on ledger.close_stripe_objects"
        " for each row execute function ledger.refuse_change()"
    )
    op.execute(
        "create trigger append_only_truncate before truncate on ledger.close_stripe_objects"
        " for each statement execute function ledger.refuse_change()"
    )


def downgrade() -> None:
    """Drop it."""
    op.execute("drop table ledger.close_stripe_objects")
