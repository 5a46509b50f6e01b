"""Tenants that are new or have another state are found without reading all the others (streams/quotas/feed.py).

Revision ID: 0094
"""

from __future__ import annotations

from alembic import op

revision = "0094"
down_revision = "0092"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """`changed_in`: the transaction that registered or changed it last; what a snapshot does not show yet is of one from
    its `xmin` on."""
    op.execute("alter table usage.tenants add changed_in xid8 not null default pg_current_xact_id()")
    op.execute("create index on usage.tenants (changed_in)")
    op.execute(
        "create function usage.note_changed_tenant() returns trigger language plpgsql as"
        " $$ begin new.changed_in := pg_current_xact_id(); return new; end $$"
    )
    op.execute(
        "create trigger note_changed_tenant before update on usage.tenants"
        " for each row execute function usage.note_changed_tenant()"
    )


def downgrade() -> None:
    """Drop it."""
    op.execute("drop trigger note_changed_tenant on usage.tenants")
    op.execute("drop function usage.note_changed_tenant")
    op.execute("alter table usage.tenants drop changed_in")
