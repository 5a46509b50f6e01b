"""What is done to an invoice after it was finalized, told to Stripe once; how payers stand; disputes.

Revision ID: 0050
"""

from __future__ import annotations

from importlib import import_module

from alembic import op

revision = "0050"
down_revision = "0049"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
alter table ledger.invoices
    drop constraint invoices_state_check,
    add constraint invoices_state_check check (state in ('draft', 'approved', 'finalized', 'paid', 'void',
        'uncollectible', 'zero', 'carried_below_minimum', 'issued_locally', 'issued')),
    add constraint invoices_issued_check check (state <> 'issued' or (kind = 'credit_note' and number is not null
        and issue_date is not null and stripe_invoice_id is not null))
--;
alter table ledger.proposals
    drop constraint proposals_kind_check,
    add constraint proposals_kind_check check (kind in ('credit.settle', 'credit.refund', 'ledger.post', 'ledger.close',
        'invoice.write_off', 'invoice.pay'))
--;
-- One row for each thing that is done to an invoice that Stripe has. What it says stays; its state goes forward once.
create table ledger.corrections (
    correction_no bigint      generated always as identity primary key,
    invoice_id    uuid        not null references ledger.invoices,
    kind          text        not null check (kind in ('credit_note', 'void', 'write_off', 'recovery', 'paid_elsewhere',
                                  'refund', 'overpayment', 'evidence')),
    note_id       uuid        references ledger.invoices,
    content       jsonb       not null default '{}' check (jsonb_typeof(content) = 'object'),
    reason        text        not null,
    made_by       text        not null,
    made_at       timestamptz not null default clock_timestamp(),
    state         text        not null default 'open' check (state in ('open', 'done', 'refused')),
    told_because  text,
    stripe_id     text,
    entry_id      bigint      unique references ledger.journal_entries,
    ended_at      timestamptz,
    check ((state = 'open') = (ended_at is null)),
    check (kind <> 'credit_note' or note_id is not null)
)
--;
create index on ledger.corrections (invoice_id)
--;
create unique index corrections_one_note on ledger.corrections (note_id) where kind = 'credit_note'
--;
create unique index corrections_one_overpayment on ledger.corrections (invoice_id) where kind = 'overpayment'
--;
create unique index corrections_one_end on ledger.corrections (invoice_id)
    where kind in ('void', 'write_off', 'paid_elsewhere') and state = 'open'
--;
create function ledger.guard_correction() returns trigger language plpgsql as $$
declare
    mutable constant text[] := array['state', 'told_because', 'stripe_id', 'entry_id', 'ended_at'];
begin
    if tg_op = 'DELETE' or old.state <> 'open'
       or to_jsonb(new) - mutable is distinct from to_jsonb(old) - mutable then
        raise exception 'correction % stays as it is', old.correction_no using errcode = 'TB001';
    end if;
    return new;
end $$
--;
create trigger guard_correction before update or delete on ledger.corrections
    for each row execute function ledger.guard_correction()
--;
create trigger append_only_truncate before truncate on ledger.corrections
    for each statement execute function ledger.refuse_change()
--;
-- Credit notes from before Stripe was told of them.
insert into ledger.corrections (invoice_id, kind, note_id, reason, made_by)
    select original.invoice_id, 'credit_note', note.invoice_id, 'credit note ' || note.number, 'migration'
    from ledger.invoices as note join ledger.invoices as original on original.invoice_id = note.credits_invoice_id
    where note.state = 'issued_locally' and original.stripe_invoice_id is not null
    order by note.issue_date, note.number
--;
-- How an invoice stood in Stripe when it was looked at last: Stripe's integers.
create table ledger.stripe_standings (
    invoice_id      uuid        primary key references ledger.invoices,
    status          text        not null,
    amount_paid     bigint      not null,
    amount_remaining bigint     not null,
    attempts        integer     not null,
    next_attempt_at timestamptz,
    failed_at       timestamptz,
    seen_at         timestamptz not null default clock_timestamp()
)
--;
create table ledger.stripe_disputes (
    dispute_id      text        primary key,
    charge_id       text        not null,
    billing_account text        references ledger.billing_accounts,
    invoice_id      uuid        references ledger.invoices,
    status          text        not null,
    reason          text        not null,
    amount          bigint      not null,
    currency        text        not null,
    created_at      timestamptz not null,
    evidence_due_at timestamptz,
    submissions     integer     not null,
    seen_at         timestamptz not null default clock_timestamp()
)
"""
WAS = "('draft', 'issued_locally'), "
NOW = WAS + "('issued_locally', 'issued'), "


def upgrade() -> None:
    """Add the tables, and the state of a credit note that Stripe has."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)
    op.execute(life())


def downgrade() -> None:
    """Take them away, as long as nothing was corrected."""
    for table in ("corrections", "stripe_standings", "stripe_disputes"):
        if op.get_bind().exec_driver_sql(f"select exists (select from ledger.{table})").scalar():
            raise NotImplementedError("invoices were corrected in Stripe: restore a backup from before 0046")
        op.execute(f"drop table ledger.{table}")
    op.execute("drop function ledger.guard_correction()")
    op.execute(life(WAS))
    op.execute(
        "alter table ledger.invoices drop constraint invoices_issued_check, drop constraint invoices_state_check,"
        " add constraint invoices_state_check check (state in ('draft', 'approved', 'finalized', 'paid', 'void',"
        " 'uncollectible', 'zero', 'carried_below_minimum', 'issued_locally'))"
    )
    op.execute(
        "alter table ledger.proposals drop constraint proposals_kind_check, add constraint proposals_kind_check"
        " check (kind in ('credit.settle', 'credit.refund', 'ledger.post', 'ledger.close'))"
    )


def life(issued: str = NOW) -> str:
    """The guard of the moves of billing/invoicing/invoice_states.py."""
    return str(import_module("migrations.versions.0023_adjustments").LIFE.format(issued=issued))
