"""A top-up that is paid has an invoice of its own, which is issued here.

Revision ID: 0049
"""

from __future__ import annotations

from alembic import op

revision = "0049"
down_revision = "0048"
branch_labels = None
depends_on = None

# The check of 0023 has no name of its own, and stays where 0023 is taken back: there may be two of it.
REPLACED = """
do $$
declare found text;
begin
    for found in select conname from pg_constraint
        where conrelid = 'ledger.invoices'::regclass and contype = 'c'
          and pg_get_constraintdef(oid) like '%issued_locally%issue_date%'
    loop
        execute format('alter table ledger.invoices drop constraint %I', found);
    end loop;
    alter table ledger.invoices add constraint invoices_issued_locally_check check (
        state <> 'issued_locally' or (kind in ({kinds}) and number is not null and issue_date is not null));
end $$
"""


def upgrade() -> None:
    """Let invoices for top-ups be issued here, as credit notes are."""
    op.execute(REPLACED.format(kinds="'credit_note', 'top_up'"))


def downgrade() -> None:
    """Credit notes alone again. Refused by the constraint where a top-up was invoiced."""
    op.execute(REPLACED.format(kinds="'credit_note'"))
