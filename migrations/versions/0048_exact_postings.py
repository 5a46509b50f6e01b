"""Postings are added by a function alone: it takes no float, which a plain insert would turn into a number.

Revision ID: 0048
"""

from __future__ import annotations

from alembic import op

revision = "0048"
down_revision = "0047"
branch_labels = None
depends_on = None

# PostgreSQL casts a float to numeric wherever it is assigned to a column, never where a function is called: of a call
# with a float there is no such function. The application's role has no right to insert (migrations/privileges.py).
FUNCTION = """
create function ledger.add_postings(
    entries bigint[], seqs smallint[], accounts bigint[], currencies text[], amounts numeric[]
) returns void language sql security definer set search_path = pg_catalog, pg_temp as $$
    insert into ledger.postings (entry_id, seq, account_id, currency, amount)
    select entry, seq, account, currency, amount
    from unnest(entries, seqs, accounts, currencies, amounts) as given (entry, seq, account, currency, amount)
$$
"""


def upgrade() -> None:
    """Add the function."""
    op.execute(FUNCTION)


def downgrade() -> None:
    """Drop it: rows are inserted again."""
    op.execute("drop function ledger.add_postings(bigint[], smallint[], bigint[], text[], numeric[])")
