"""Credits, tax, carried amounts: grants with what moved them, tax rules by payer, and what invoices hold of the three.

Revision ID: 0017
"""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- A credit as it was given (docs/spec/money.md 6). What became of it is in credit_movements.
create table ledger.credit_grants (
    grant_id        text            primary key check (grant_id ~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$'),
    billing_account text            not null,
    currency        ledger.currency not null,
    kind            text            not null check (kind in ('paid', 'promo', 'sla', 'goodwill')),
    tax_treatment   text            not null check (tax_treatment in ('price_reduction', 'payment', 'taxed_at_sale')),
    amount          ledger.amount   not null check (amount > 0),
    charges         text[]          not null default '{}',
    fees            boolean         not null default false,
    priority        integer         not null,
    effective_at    timestamptz     not null,
    expires_at      timestamptz     check (expires_at > effective_at),
    granted_at      timestamptz     not null,
    funding_invoice text,
    reason          text            not null,
    recorded_at     timestamptz     not null default clock_timestamp(),
    recorded_by     text            not null,
    foreign key (billing_account, currency) references ledger.billing_accounts (billing_account, currency)
)
--;
create index on ledger.credit_grants (billing_account)
--;
-- `amount` is what is added to what is left of the grant, `at` when it holds for business. `settled` says that a paid
-- grant was paid, and adds nothing.
create table ledger.credit_movements (
    movement_no     bigint        generated always as identity primary key,
    idempotency_key text          not null unique,
    grant_id        text          not null references ledger.credit_grants,
    kind            text          not null,
    amount          ledger.amount not null,
    at              timestamptz   not null,
    invoice_id      uuid          references ledger.invoices,
    entry_id        bigint        references ledger.journal_entries,
    reason          text          not null default '',
    recorded_at     timestamptz   not null default clock_timestamp(),
    recorded_by     text          not null,
    check (case when kind = 'settled' then amount = 0
                when kind in ('drawn', 'expired', 'voided', 'refunded') then amount < 0
                when kind in ('restored', 'reinstated') then amount > 0
                else false end),
    check (kind not in ('drawn', 'restored') or invoice_id is not null)
)
--;
create index on ledger.credit_movements (grant_id)
--;
create index on ledger.credit_movements (invoice_id)
--;
create unique index on ledger.credit_movements (grant_id, kind) where kind in ('settled', 'voided')
--;
-- Of a grant never more than it has is taken, and nothing of a paid one that was not paid. The movements of one grant
-- go one after another.
create function ledger.guard_credit_movement() returns trigger language plpgsql as $$
declare given ledger.credit_grants; moved numeric;
begin
    perform pg_advisory_xact_lock(hashtextextended('credit/' || new.grant_id, 0));
    select * into given from ledger.credit_grants where grant_id = new.grant_id;
    select coalesce(sum(amount), 0) into moved from ledger.credit_movements where grant_id = new.grant_id;
    if given.amount + moved + new.amount not between 0 and given.amount then
        raise exception 'of credit % are left % of %: % refused', new.grant_id, given.amount + moved, given.amount,
            new.amount using errcode = 'TB014';
    end if;
    if (new.kind = 'settled' and given.kind <> 'paid')
       or (new.kind <> 'settled' and new.kind <> 'voided' and given.kind = 'paid' and not exists
           (select from ledger.credit_movements where grant_id = new.grant_id and kind = 'settled')) then
        raise exception 'credit % is % and not settled: % refused', new.grant_id, given.kind, new.kind
            using errcode = 'TB014';
    end if;
    return new;
end $$
--;
create trigger guard_credit_movement before insert on ledger.credit_movements
    for each row execute function ledger.guard_credit_movement()
--;
-- Bitemporal by addition: at a tax point holds the row with the latest valid_from up to it, of these the one recorded
-- last. `rates` by tax group, as decimal strings. `evidence`: why no tax is charged, or the payer's tax id.
create table ledger.tax_rules (
    tax_rule_no     bigint      generated always as identity primary key,
    billing_account text        not null references ledger.billing_accounts,
    mode            text        not null check (mode in ('none', 'exclusive', 'inclusive', 'reverse_charge', 'exempt')),
    rates           jsonb       not null check (jsonb_typeof(rates) = 'object'),
    rounding        text        not null check (rounding in ('half_even', 'half_up')),
    evidence        text        not null default '',
    valid_from      timestamptz not null,
    recorded_at     timestamptz not null default clock_timestamp(),
    recorded_by     text        not null,
    check (mode not in ('exempt', 'reverse_charge') or evidence <> ''),
    check ((mode in ('exclusive', 'inclusive')) = (rates <> '{}'))
)
--;
create index on ledger.tax_rules (billing_account, valid_from)
--;
alter table ledger.invoices
    add column tax_mode text not null default 'none'
        check (tax_mode in ('none', 'exclusive', 'inclusive', 'reverse_charge', 'exempt'))
--;
create table ledger.invoice_taxes (
    invoice_id uuid         not null references ledger.invoices,
    tax_group  text         not null,
    rate       ledger.price not null check (rate >= 0),
    base_minor bigint       not null,
    tax_minor  bigint       not null,
    primary key (invoice_id, tax_group)
)
--;
-- What an invoice draws of a grant, positive; a draft reserves it. `left_after`: what is left of the grant then.
create table ledger.invoice_credits (
    invoice_id    uuid          not null references ledger.invoices,
    grant_id      text          not null references ledger.credit_grants,
    kind          text          not null,
    tax_treatment text          not null,
    amount        ledger.amount not null check (amount > 0),
    amount_minor  bigint        not null,
    left_after    ledger.amount not null check (left_after >= 0),
    primary key (invoice_id, grant_id)
)
--;
create index on ledger.invoice_credits (grant_id)
--;
-- What an invoice below the minimum left to this one. It is carried once.
create table ledger.invoice_carried (
    invoice_id         uuid   not null references ledger.invoices,
    carried_invoice_id uuid   not null unique references ledger.invoices check (carried_invoice_id <> invoice_id),
    amount_minor       bigint not null,
    primary key (invoice_id, carried_invoice_id)
)
--;
-- What needs two people (docs/spec/money.md 9): one proposes, another decides, and then it happens.
create table ledger.proposals (
    proposal_no bigint      generated always as identity primary key,
    kind        text        not null check (kind in ('credit.settle', 'credit.refund', 'ledger.post', 'ledger.close')),
    subject     text        not null,
    content     jsonb       not null check (jsonb_typeof(content) = 'object'),
    document    text        not null check (document <> ''),
    proposed_by text        not null,
    proposed_at timestamptz not null default clock_timestamp()
)
--;
create table ledger.decisions (
    proposal_no bigint      primary key references ledger.proposals,
    approved    boolean     not null,
    decided_by  text        not null,
    decided_at  timestamptz not null default clock_timestamp(),
    reason      text        not null default '',
    entry_id    bigint      references ledger.journal_entries
)
--;
create function ledger.guard_decision() returns trigger language plpgsql as $$
begin
    if new.decided_by = (select proposed_by from ledger.proposals where proposal_no = new.proposal_no) then
        raise exception 'proposal % is by %: another person decides it', new.proposal_no, new.decided_by
            using errcode = 'TB015';
    end if;
    return new;
end $$
--;
create trigger guard_decision before insert on ledger.decisions
    for each row execute function ledger.guard_decision()
"""

APPEND_ONLY = ("credit_grants", "credit_movements", "tax_rules", "proposals", "decisions")
OF_INVOICES = ("invoice_taxes", "invoice_credits", "invoice_carried")


def upgrade() -> None:
    """Create the tables with their guards. What an invoice holds is fixed when the invoice is frozen."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)
    for table in APPEND_ONLY:
        op.execute(
            f"create trigger append_only before update or delete on ledger.{table}"
            " for each row execute function ledger.refuse_change()"
        )
    for table in OF_INVOICES:
        op.execute(
            f"create trigger guard_{table} before insert or update or delete on ledger.{table}"
            " for each row execute function ledger.guard_invoice_line()"
        )
    for table in (*APPEND_ONLY, *OF_INVOICES):
        op.execute(
            f"create trigger append_only_truncate before truncate on ledger.{table}"
            " for each statement execute function ledger.refuse_change()"
        )


def downgrade() -> None:
    """Drop them: who had which credit is lost, the journal stays."""
    for table in (*OF_INVOICES, "tax_rules", "credit_movements", "credit_grants", "decisions", "proposals"):
        op.execute(f"drop table ledger.{table}")
    op.execute("drop function ledger.guard_credit_movement()")
    op.execute("drop function ledger.guard_decision()")
    op.execute("alter table ledger.invoices drop column tax_mode")
