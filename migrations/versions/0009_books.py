"""The books: the chart of accounts, a close that stays, seals and their hash chain, balances kept at a moment.

Revision ID: 0009
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- docs/spec/money.md 9. `in_quanta`: takes only whole quanta of its currency. `subledger`: what tells the accounts of
-- one code apart. billing/ledger.py has the same rows; a test compares them.
create table ledger.chart_of_accounts (
    code        smallint primary key check (code between 1000 and 5999),
    name        text     not null unique,
    type        text     not null check (type in ('asset', 'liability', 'income', 'contra_income', 'expense')),
    normal_side text     not null generated always as
                    (case when type in ('liability', 'income') then 'credit' else 'debit' end) stored,
    subledger   text     not null check (subledger in ('none', 'tenant', 'billing_account', 'grant')),
    in_quanta   boolean  not null
)
--;
insert into ledger.chart_of_accounts (code, name, type, subledger, in_quanta) values
    (1010, 'stripe_balance_clearing',    'asset',         'none',            true),
    (1020, 'bank',                       'asset',         'none',            true),
    (1090, 'suspense',                   'asset',         'none',            false),
    (1100, 'accounts_receivable',        'asset',         'billing_account', true),
    (1150, 'unbilled_receivable',        'asset',         'tenant',          false),
    (1180, 'dispute_receivable',         'asset',         'billing_account', true),
    (1190, 'fx_clearing',                'asset',         'none',            false),
    (2100, 'deferred_revenue_prepaid',   'liability',     'grant',           false),
    (2110, 'deferred_fees',              'liability',     'tenant',          false),
    (2150, 'customer_credit_balance',    'liability',     'billing_account', true),
    (2200, 'tax_payable',                'liability',     'none',            true),
    (2300, 'refunds_payable',            'liability',     'none',            true),
    (4000, 'usage_revenue',              'income',        'none',            false),
    (4010, 'fee_revenue',                'income',        'none',            false),
    (4050, 'commitment_true_up_revenue', 'income',        'none',            false),
    (4100, 'breakage_revenue',           'income',        'none',            false),
    (4900, 'promo_credits',              'contra_income', 'none',            false),
    (4910, 'sla_credits',                'contra_income', 'none',            false),
    (4920, 'refunds',                    'contra_income', 'none',            false),
    (4930, 'disputes_lost',              'contra_income', 'none',            false),
    (5100, 'stripe_fees',                'expense',       'none',            true),
    (5110, 'dispute_fees',               'expense',       'none',            true),
    (5200, 'bad_debt',                   'expense',       'none',            false),
    (5300, 'fx_gain_loss',               'expense',       'none',            false),
    (5900, 'rounding_difference',        'expense',       'none',            false)
--;
alter table ledger.accounts add foreign key (code) references ledger.chart_of_accounts
--;
create function ledger.guard_account() returns trigger language plpgsql as $$
declare chart ledger.chart_of_accounts;
begin
    select * into chart from ledger.chart_of_accounts where code = new.code;
    if (chart.subledger = 'none') <> (new.subledger = '') then
        raise exception 'account % is kept per %, not as %', new.code, chart.subledger, quote_literal(new.subledger)
            using errcode = 'TB013';
    end if;
    if chart.in_quanta <> (new.quantum is not null) then
        raise exception 'account % % a quantum', new.code, case when chart.in_quanta then 'needs' else 'has not' end
            using errcode = 'TB013';
    end if;
    return new;
end $$
--;
create trigger guard_account before insert on ledger.accounts
    for each row execute function ledger.guard_account()
--;
-- A book is closed once and stays closed. Closing waits for the postings under way: the lock is open_entry's.
create function ledger.guard_accounting_period() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' or old.state = 'closed'
       or (new.legal_entity, new.month) is distinct from (old.legal_entity, old.month) then
        raise exception 'accounting period % of % is % and stays', old.month, old.legal_entity, old.state
            using errcode = 'TB012';
    end if;
    perform pg_advisory_xact_lock(hashtextextended('ledger/' || old.legal_entity || '/' || old.month, 0));
    return new;
end $$
--;
create trigger guard_accounting_period before update or delete on ledger.accounting_periods
    for each row execute function ledger.guard_accounting_period()
--;
create trigger append_only_truncate before truncate on ledger.accounting_periods
    for each statement execute function ledger.refuse_change()
--;
-- As before, and the period's row is read with a lock: a transaction that began before the close, and looks at the
-- database as it was then (repeatable read), fails to serialise instead of posting into a closed book.
create or replace function ledger.open_entry() returns trigger language plpgsql as $$
declare found text;
begin
    new.transaction_id := pg_current_xact_id();
    new.recorded_at := clock_timestamp();
    perform pg_advisory_xact_lock_shared(
        hashtextextended('ledger/' || new.legal_entity || '/' || new.accounting_period, 0));
    select state into found from ledger.accounting_periods
        where legal_entity = new.legal_entity and month = new.accounting_period for share;
    if found is distinct from 'open' and new.kind <> 'prior_period_adjustment' then
        raise exception 'accounting period % of % is %', new.accounting_period, new.legal_entity,
            coalesce(found, 'unknown') using errcode = 'TB005';
    end if;
    return new;
end $$
--;
-- Sealing goes by (transaction, entry): ids are not in commit order. Balances as of a moment go by effective time.
create index on ledger.journal_entries (legal_entity, transaction_id, entry_id)
--;
create index on ledger.journal_entries (legal_entity, effective_at)
--;
-- What was booked by which moment: a seal covers all entries of transactions that were over when it was made.
-- `last_position`, `chain_hash`: how far the chain goes. `server`: whose transaction ids `upto_transaction` counts in.
create table ledger.seals (
    legal_entity     text        not null references ledger.legal_entities,
    seal_no          integer     not null check (seal_no >= 1),
    last_position    bigint      not null check (last_position >= 1),
    chain_hash       bytea       not null check (length(chain_hash) = 32),
    upto_transaction xid8        not null,
    upto_entry       bigint      not null,
    server           bigint      not null,
    sealed_at        timestamptz not null default clock_timestamp(),
    primary key (legal_entity, seal_no)
)
--;
create table ledger.sealed_entries (
    entry_id     bigint  primary key references ledger.journal_entries,
    legal_entity text    not null,
    position     bigint  not null check (position >= 1),
    seal_no      integer not null,
    chain_hash   bytea   not null check (length(chain_hash) = 32),
    unique (legal_entity, position),
    foreign key (legal_entity, seal_no) references ledger.seals
)
--;
-- One sealer at a time, seals without gaps, and their times in their order: a balance asked for as of a seal's time
-- is the same for ever.
create function ledger.guard_seal() returns trigger language plpgsql as $$
declare before ledger.seals;
begin
    perform pg_advisory_xact_lock(hashtextextended('ledger-seal/' || new.legal_entity, 0));
    select * into before from ledger.seals where legal_entity = new.legal_entity order by seal_no desc limit 1;
    if new.seal_no <> coalesce(before.seal_no, 0) + 1 or new.last_position <= coalesce(before.last_position, 0) then
        raise exception 'seal % of % does not follow seal %', new.seal_no, new.legal_entity, coalesce(before.seal_no, 0)
            using errcode = 'TB011';
    end if;
    new.sealed_at := greatest(clock_timestamp(), before.sealed_at + interval '1 microsecond');
    return new;
end $$
--;
create trigger guard_seal before insert on ledger.seals
    for each row execute function ledger.guard_seal()
--;
-- Sums kept for speed: of all entries effective before a moment, among those of the seals up to one.
create table ledger.balance_snapshots (
    legal_entity     text        not null,
    snapshot_no      integer     not null check (snapshot_no >= 1),
    effective_before timestamptz not null,
    seal_no          integer     not null,
    taken_at         timestamptz not null default clock_timestamp(),
    primary key (legal_entity, snapshot_no),
    unique (legal_entity, effective_before, seal_no),
    foreign key (legal_entity, seal_no) references ledger.seals
)
--;
create table ledger.snapshot_balances (
    legal_entity text          not null,
    snapshot_no  integer       not null,
    account_id   bigint        not null references ledger.accounts,
    amount       ledger.amount not null check (amount <> 0),
    primary key (legal_entity, snapshot_no, account_id),
    foreign key (legal_entity, snapshot_no) references ledger.balance_snapshots
)
"""

APPEND_ONLY = ("balance_snapshots", "chart_of_accounts", "sealed_entries", "seals", "snapshot_balances")

OPEN_ENTRY_BEFORE = r"""
create or replace function ledger.open_entry() returns trigger language plpgsql as $$
declare found text;
begin
    new.transaction_id := pg_current_xact_id();
    new.recorded_at := clock_timestamp();
    perform pg_advisory_xact_lock_shared(
        hashtextextended('ledger/' || new.legal_entity || '/' || new.accounting_period, 0));
    select state into found from ledger.accounting_periods
        where legal_entity = new.legal_entity and month = new.accounting_period;
    if found is distinct from 'open' and new.kind <> 'prior_period_adjustment' then
        raise exception 'accounting period % of % is %', new.accounting_period, new.legal_entity,
            coalesce(found, 'unknown') using errcode = 'TB005';
    end if;
    return new;
end $$
"""


def upgrade() -> None:
    """Create the tables with their guards."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)
    for table in APPEND_ONLY:
        op.execute(
            f"create trigger append_only before update or delete on ledger.{table}"
            " for each row execute function ledger.refuse_change()"
        )
        op.execute(
            f"create trigger append_only_truncate before truncate on ledger.{table}"
            " for each statement execute function ledger.refuse_change()"
        )


def downgrade() -> None:
    """Drop them; the journal stays. The seals are lost, and with them what was booked by which moment."""
    op.execute("drop table ledger.snapshot_balances, ledger.balance_snapshots, ledger.sealed_entries, ledger.seals")
    op.execute("drop function ledger.guard_seal()")
    op.execute("drop index ledger.journal_entries_legal_entity_transaction_id_entry_id_idx")
    op.execute("drop index ledger.journal_entries_legal_entity_effective_at_idx")
    op.execute(OPEN_ENTRY_BEFORE)
    op.execute("drop trigger append_only_truncate on ledger.accounting_periods")
    op.execute("drop trigger guard_accounting_period on ledger.accounting_periods")
    op.execute("drop function ledger.guard_accounting_period()")
    op.execute("drop trigger guard_account on ledger.accounts")
    op.execute("drop function ledger.guard_account()")
    op.execute("alter table ledger.accounts drop constraint accounts_code_fkey")
    op.execute("drop table ledger.chart_of_accounts")
