"""Each legal entity has an account of Stripe's: what is read there is kept with whose account it was read of.

Revision ID: 0097
"""

from __future__ import annotations

from alembic import op

revision = "0097"
down_revision = "0094"
branch_labels = None
depends_on = None

READ = ("stripe_events", "stripe_balance_transactions", "stripe_unbooked", "stripe_cursors", "stripe_passes")
"""What is read of an account. All that is there was read with the one key that there was: the entity `default`'s."""
LISTS = ("stripe_cursors", "stripe_passes")


def upgrade() -> None:
    """Add whose account it is; an entity that has none of its own names the one whose account it shares."""
    op.execute(
        "alter table ledger.stripe_account drop column the_only,"
        " add column legal_entity text not null default 'default' primary key references ledger.legal_entities,"
        " add column shares_with text references ledger.stripe_account check (shares_with <> legal_entity)"
    )
    op.execute("alter table ledger.stripe_account alter column legal_entity drop default")
    op.execute("create unique index on ledger.stripe_account (account_id) where shares_with is null")
    # Who was billed by the one key that there was shares its account
    op.execute(
        "insert into ledger.stripe_account (account_id, live, legal_entity, shares_with)"
        " select distinct on (b.legal_entity) a.account_id, a.live, b.legal_entity, a.legal_entity"
        " from ledger.stripe_account a, ledger.billing_accounts b join ledger.stripe_customers using (billing_account)"
        " where b.legal_entity <> a.legal_entity"
    )
    for table in READ:
        op.execute(
            f"alter table ledger.{table} add column legal_entity text not null default 'default'"
            " references ledger.legal_entities"
        )
    for table in LISTS:
        op.execute(f"alter table ledger.{table} drop constraint {table}_pkey, add primary key (legal_entity, name)")


def downgrade() -> None:
    """Keep the account of the entity `default` alone. Fails where there is another, which one key cannot read."""
    op.execute("""
do $$ begin
    if exists (select from ledger.stripe_account where shares_with is null and legal_entity <> 'default') then
        raise exception 'several accounts of Stripe''s are followed: one key cannot read them';
    end if;
end $$
""")
    for table in LISTS:
        op.execute(f"alter table ledger.{table} drop constraint {table}_pkey, add primary key (name)")
    for table in READ:
        op.execute(f"alter table ledger.{table} drop column legal_entity")
    op.execute("alter table ledger.stripe_account disable trigger append_only")
    op.execute("delete from ledger.stripe_account where shares_with is not null")
    op.execute("alter table ledger.stripe_account enable trigger append_only")
    op.execute(
        "alter table ledger.stripe_account drop column shares_with, drop column legal_entity,"
        " add column the_only boolean not null default true primary key check (the_only)"
    )
