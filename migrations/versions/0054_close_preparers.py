"""Nobody approves what they have prepared: whoever took a step of it, not the last one alone.

Revision ID: 0054
"""

from __future__ import annotations

from alembic import op

revision = "0054"
down_revision = "0053"
branch_labels = None
depends_on = None

APPROVAL = """
create or replace function ledger.guard_close_approval() returns trigger language plpgsql as $$
declare
    own boolean;
begin
    select {own} into strict own from ledger.close_contents as c where c.content_no = new.content_no;
    if new.alone is distinct from own then
        raise exception 'content % is approved by who prepared it, or said so wrongly', new.content_no
            using errcode = 'TB022';
    end if;
    return new;
end $$
"""
LAST = "new.approved_by = c.prepared_by"
ANY = f"""{LAST} or exists (
        select from ledger.close_transitions as t
        where t.month = c.month and t.billing_account = c.billing_account and t.actor = new.approved_by
            and t.event in ('collect', 'freeze', 'draft', 'reconcile')
            and t.step > coalesce((select max(r.step) from ledger.close_transitions as r
                where r.month = c.month and r.billing_account = c.billing_account and r.event = 'reopen'), 0))"""


def upgrade() -> None:
    """Ask for every step since the account was reopened last."""
    op.execute(APPROVAL.format(own=ANY))


def downgrade() -> None:
    """Ask for the last one."""
    op.execute(APPROVAL.format(own=LAST))
