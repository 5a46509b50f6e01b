"""The book of a month whose close has begun is closed by that close alone.

Revision ID: 0062
"""

from __future__ import annotations

from alembic import op

revision = "0062"
down_revision = "0061"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Refuse, at the end of the transaction, a book that is closed without the close's own step."""
    op.execute("""
create function ledger.guard_book_closed() returns trigger language plpgsql as $$
begin
    if exists (select from ledger.close_transitions as t
            where t.month = new.month and t.legal_entity = new.legal_entity and t.billing_account <> '')
        and not exists (select from ledger.close_transitions as t
            where t.month = new.month and t.legal_entity = new.legal_entity and t.billing_account = '') then
        raise exception 'the close of % has begun: it closes the book of % itself', new.month, new.legal_entity
            using errcode = 'TB024';
    end if;
    return null;
end $$
""")
    op.execute("""
create constraint trigger guard_book_closed after insert or update on ledger.accounting_periods
    deferrable initially deferred for each row when (new.state = 'closed')
    execute function ledger.guard_book_closed()
""")


def downgrade() -> None:
    """Let a book be closed beside its close."""
    op.execute("drop trigger guard_book_closed on ledger.accounting_periods")
    op.execute("drop function ledger.guard_book_closed()")
