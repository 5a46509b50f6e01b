"""When a request to Stripe went out last, and what Stripe answered that was no yes (docs/decisions/0035-asking-anew.md).

Revision ID: 0072
"""

from __future__ import annotations

from alembic import op

revision = "0072"
down_revision = "0071"
branch_labels = None
depends_on = None

GUARD = """
create or replace function ledger.guard_stripe_request() returns trigger language plpgsql as $$
declare
    mutable constant text[] := array[{mutable}];
begin
    if tg_op = 'DELETE' or old.reply_id is not null or to_jsonb(new) - mutable is distinct from to_jsonb(old) - mutable
    then
        raise exception 'request % to Stripe is frozen', old.idempotency_key using errcode = 'TB001';
    end if;
    return new;
end $$
"""
REPLY = "'reply_id', 'replied_at'"


def upgrade() -> None:
    """Add the columns; a request of before was sent last when it was frozen, as far as is known."""
    op.execute(
        "alter table ledger.stripe_requests"
        " add column sent_at timestamptz,"
        " add column answer text check (answer in ('refused', 'failed'))"
    )
    op.execute(GUARD.format(mutable=f"{REPLY}, 'sent_at', 'answer'"))


def downgrade() -> None:
    """Take them away."""
    op.execute(GUARD.format(mutable=REPLY))
    op.execute("alter table ledger.stripe_requests drop column sent_at, drop column answer")
