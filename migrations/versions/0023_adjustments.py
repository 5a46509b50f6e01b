"""Late usage: lines that name their original period, credit notes in a series of their own.

Revision ID: 0023
"""

from __future__ import annotations

from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

LIFE = """
create or replace function ledger.guard_invoice_life() returns trigger language plpgsql as $$
begin
    if new.state <> old.state and (old.state, new.state) not in (
        ('draft', 'approved'), ('draft', 'zero'), ('draft', 'carried_below_minimum'), {issued}('approved', 'finalized'),
        ('finalized', 'paid'), ('finalized', 'void'), ('finalized', 'uncollectible'),
        ('uncollectible', 'paid'), ('uncollectible', 'void'))
    then
        raise exception 'invoice % cannot go from % to %', old.invoice_id, old.state, new.state using errcode = 'TB010';
    end if;
    if (old.frozen_at is not null and new.frozen_at is distinct from old.frozen_at)
       or (old.state not in ('draft', 'approved')
           and (new.issue_date, new.due_date) is distinct from (old.issue_date, old.due_date)) then
        raise exception 'the dates of invoice % stay', old.invoice_id using errcode = 'TB008';
    end if;
    return new;
end $$
"""

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- A credit note is a row like an invoice's: one per identity, frozen with its lines, numbered in its own series. It
-- takes back from one invoice, and is issued in the transaction that makes it.
alter table ledger.invoices
    drop constraint invoices_kind_check,
    add constraint invoices_kind_check check (kind in ('usage', 'advance', 'top_up', 'one_off', 'final', 'adjustment',
        'credit_note')),
    drop constraint invoices_state_check,
    add constraint invoices_state_check check (state in ('draft', 'approved', 'finalized', 'paid', 'void',
        'uncollectible', 'zero', 'carried_below_minimum', 'issued_locally')),
    add column credits_invoice_id uuid references ledger.invoices check (credits_invoice_id <> invoice_id),
    add column frozen_recorded_at timestamptz,
    add check ((kind = 'credit_note') = (credits_invoice_id is not null)),
    add check (state <> 'issued_locally' or (kind = 'credit_note' and number is not null and issue_date is not null))
--;
create index on ledger.invoices (credits_invoice_id)
--;
update ledger.invoices set frozen_recorded_at = frozen_at where frozen_at is not null
--;
-- By the database's clock, as rated lines have it: what was rated before an invoice was frozen is on it.
create function ledger.stamp_frozen() returns trigger language plpgsql as $$
begin
    new.frozen_recorded_at := case
        when tg_op = 'UPDATE' and old.frozen_at is not null then old.frozen_recorded_at
        when new.frozen_at is not null then clock_timestamp() end;
    return new;
end $$
--;
create trigger stamp_frozen before insert or update on ledger.invoices
    for each row execute function ledger.stamp_frozen()
--;
-- The period that a line belongs to, where it is not its invoice's own.
alter table ledger.invoice_lines
    drop column original_period,
    add column original_start timestamptz,
    add column original_end timestamptz check (original_end > original_start),
    add check ((original_start is null) = (original_end is null))
--;
create index on ledger.invoice_lines (original_start, original_end) where original_start is not null
--;
-- What comes back to a grant is negative.
alter table ledger.invoice_credits
    drop constraint invoice_credits_amount_check,
    add constraint invoice_credits_amount_check check (amount <> 0)
--;
insert into ledger.number_series (legal_entity, series, prefix) values ('default', 'credit_note', 'CN-') on conflict do nothing
--;
-- What credits that pay of the total can still cover of a period and tax group, as an invoice or credit note left it:
-- [time, charge, exact amount as a fraction, is a fee]. Late usage is covered by what it adds to that.
create table ledger.billed_coverables (
    coverable_no bigint      generated always as identity,
    invoice_id   uuid        not null references ledger.invoices,
    period_start timestamptz not null,
    period_end   timestamptz not null check (period_end > period_start),
    tax_group    text        not null,
    content      jsonb       not null check (jsonb_typeof(content) = 'array'),
    primary key (invoice_id, period_start, period_end, tax_group)
)
"""


def upgrade() -> None:
    """Change the tables. What credits can cover follows a draft, and stays with what is frozen."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)
    op.execute(LIFE.format(issued="('draft', 'issued_locally'), "))
    op.execute(
        "create trigger guard_invoice_line before insert or update or delete on ledger.billed_coverables"
        " for each row execute function ledger.guard_invoice_line()"
    )
    op.execute(
        "create trigger append_only_truncate before truncate on ledger.billed_coverables"
        " for each statement execute function ledger.refuse_change()"
    )


def downgrade() -> None:
    """Put the columns back as they were. Refused by the constraints where a credit note was issued."""
    op.execute(LIFE.format(issued=""))
    op.execute("drop table ledger.billed_coverables")
    op.execute(
        "alter table ledger.invoice_credits drop constraint invoice_credits_amount_check,"
        " add constraint invoice_credits_amount_check check (amount > 0)"
    )
    op.execute(
        "alter table ledger.invoice_lines drop column original_start, drop column original_end,"
        " add column original_period text"
    )
    op.execute("drop trigger stamp_frozen on ledger.invoices")
    op.execute("drop function ledger.stamp_frozen()")
    op.execute(
        "alter table ledger.invoices drop column credits_invoice_id, drop column frozen_recorded_at,"
        " drop constraint invoices_kind_check, drop constraint invoices_state_check,"
        " add constraint invoices_kind_check check (kind in ('usage', 'advance', 'top_up', 'one_off', 'final',"
        " 'adjustment')), add constraint invoices_state_check check (state in ('draft', 'approved', 'finalized',"
        " 'paid', 'void', 'uncollectible', 'zero', 'carried_below_minimum'))"
    )
