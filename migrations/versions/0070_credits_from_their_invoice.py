"""Paid credits that count from their invoice, where the contract says so (docs/decisions/0034).

Revision ID: 0070
"""

from __future__ import annotations

from alembic import op

revision = "0070"
down_revision = "0069"
branch_labels = None
depends_on = None

# The checks of 0017 have no names of their own.
MOVEMENTS = """
do $$
declare found text;
begin
    for found in select conname from pg_constraint
        where conrelid = 'ledger.credit_movements'::regclass and contype = 'c'
          and pg_get_constraintdef(oid) like '%settled%'
    loop
        execute format('alter table ledger.credit_movements drop constraint %I', found);
    end loop;
    for found in select indexname from pg_indexes
        where schemaname = 'ledger' and tablename = 'credit_movements' and indexdef like '%settled%'
    loop
        execute format('drop index ledger.%I', found);
    end loop;
    alter table ledger.credit_movements add constraint credit_movements_kind_check check (
        case when kind in ({owed}) then amount = 0
             when kind in ('drawn', 'expired', 'voided', 'refunded') then amount < 0
             when kind in ('restored', 'reinstated') then amount > 0
             else false end);
    create unique index credit_movements_once on ledger.credit_movements (grant_id, kind)
        where kind in ({owed}, 'voided');
end $$
"""

# Of a grant never more than it has is taken, and nothing of a paid one that is not owed. What is owed and was not paid
# can be voided (its invoice is credited); what was paid is refunded.
GUARD = """
create or replace function ledger.guard_credit_movement() returns trigger language plpgsql as $$
declare given ledger.credit_grants; moved numeric;
begin
    perform pg_advisory_xact_lock(hashtextextended('credit/' || new.grant_id, 0));
    select * into given from ledger.credit_grants where grant_id = new.grant_id;
    select coalesce(sum(amount), 0) into moved from ledger.credit_movements where grant_id = new.grant_id;
    if given.amount + moved + new.amount not between 0 and given.amount then
        raise exception 'of credit % are left % of %: % refused', new.grant_id, given.amount + moved, given.amount,
            new.amount using errcode = 'TB014';
    end if;
    if (new.kind in ({owed}) and given.kind <> 'paid')
       or (new.kind not in ({owed}, 'voided') and given.kind = 'paid' and not exists
           (select from ledger.credit_movements where grant_id = new.grant_id and kind in ({owed}))) then
        raise exception 'credit % is % and not settled: % refused', new.grant_id, given.kind, new.kind
            using errcode = 'TB014';
    end if;
    return new;
end $$
"""


def upgrade() -> None:
    """Let a paid credit be owed from its invoice on."""
    for statement in (MOVEMENTS, GUARD):
        op.execute(statement.replace("{owed}", "'settled', 'invoiced'"))


def downgrade() -> None:
    """From its payment alone again. Refused by the constraint where a credit was invoiced."""
    for statement in (MOVEMENTS, GUARD):
        op.execute(statement.replace("{owed}", "'settled'"))
