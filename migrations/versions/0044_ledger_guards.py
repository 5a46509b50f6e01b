"""What the ledger's database refuses further: what no book can hold, reversals that do not reverse, unfit currencies.

Revision ID: 0044
"""

from __future__ import annotations

from alembic import op

revision = "0044"
down_revision = "0043"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- As much as the code reads (`parse_decimal`): what is beyond stops whoever sums it up.
alter domain ledger.amount add constraint amount_bound check (abs(value) < 1e18)
--;
alter table ledger.journal_entries add constraint journal_entries_effective_at_bound
    check (effective_at >= '2000-01-01Z' and effective_at < '2200-01-01Z')
--;
-- A reversal takes back what it says: the legs of an earlier entry, each with its sign turned. At commit all are there.
create function ledger.check_reversal() returns trigger language plpgsql as $$
begin
    if new.reverses >= new.entry_id
       or new.legs <> (select legs from ledger.journal_entries where entry_id = new.reverses)
       or exists (
           select account_id, amount from ledger.postings where entry_id = new.entry_id
           except all
           select account_id, -amount from ledger.postings where entry_id = new.reverses)
    then
        raise exception 'journal entry % does not take back entry %', new.idempotency_key, new.reverses
            using errcode = 'TB020';
    end if;
    return null;
end $$
--;
create constraint trigger check_reversal after insert on ledger.journal_entries
    deferrable initially deferred for each row when (new.reverses is not null)
    execute function ledger.check_reversal()
--;
-- billing/money.py has the same rows; a test compares them. A change of a currency is a further row.
create table ledger.currencies (
    currency ledger.currency not null,
    since    date            not null,
    quantum  numeric         not null check (quantum > 0),
    primary key (currency, since)
)
--;
insert into ledger.currencies
    select code, date '2020-01-01', 0.01
    from unnest('{AUD,CAD,CHF,DKK,EUR,GBP,INR,NOK,NZD,PLN,SEK,SGD,USD,BHD,JOD,KWD,OMR,TND}'::text[]) as code
    union all
    select code, date '2020-01-01', 1 from unnest('{JPY,KRW,VND,ISK,UGX}'::text[]) as code
--;
create trigger append_only before update or delete on ledger.currencies
    for each row execute function ledger.refuse_change()
--;
create trigger append_only_truncate before truncate on ledger.currencies
    for each statement execute function ledger.refuse_change()
--;
create function ledger.guard_account_currency() returns trigger language plpgsql as $$
begin
    if not exists (select from ledger.currencies as c
                   where c.currency = new.currency and c.quantum = coalesce(new.quantum, c.quantum)) then
        raise exception 'account % % with quantum %: no such currency, or not its quantum', new.code, new.currency,
            coalesce(new.quantum::text, '-') using errcode = 'TB013';
    end if;
    return new;
end $$
--;
create trigger guard_account_currency before insert on ledger.accounts
    for each row execute function ledger.guard_account_currency()
"""


def upgrade() -> None:
    """Add the guards. Rows beyond the bounds make it fail: they stop the ledger's commands already."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """Take them away."""
    op.execute("drop trigger guard_account_currency on ledger.accounts")
    op.execute("drop function ledger.guard_account_currency()")
    op.execute("drop table ledger.currencies")
    op.execute("drop trigger check_reversal on ledger.journal_entries")
    op.execute("drop function ledger.check_reversal()")
    op.execute("alter table ledger.journal_entries drop constraint journal_entries_effective_at_bound")
    op.execute("alter domain ledger.amount drop constraint amount_bound")
