"""Schema `ledger`: accounts, plans, subscriptions, rated lines, the journal, invoices, requests to Stripe.

The invariants of docs/spec/money.md that a database can hold are held here, under whatever program writes.

Revision ID: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
create schema ledger
--;
-- Keeps two subscriptions of one tenant from overlapping (exclusion constraint over text and range).
create extension if not exists btree_gist
--;
-- Bare numeric: numeric(38,12) would round silently on insert. NaN has no scale, so it is named.
create domain ledger.amount as numeric check (
    value not in ('NaN', 'Infinity', '-Infinity') and scale(trim_scale(value)) <= 12)
--;
create domain ledger.quantity as numeric check (
    value not in ('NaN', 'Infinity', '-Infinity') and scale(trim_scale(value)) <= 12)
--;
create domain ledger.price as numeric check (
    value not in ('NaN', 'Infinity', '-Infinity') and scale(trim_scale(value)) <= 18)
--;
create domain ledger.currency as text check (value ~ '^[A-Z]{3}$')
--;
create function ledger.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '%.% is append-only: % refused', tg_table_schema, tg_table_name, lower(tg_op)
        using errcode = 'TB001';
end $$
--;
-- Who invoices: number series, one Stripe account.
create table ledger.legal_entities (
    legal_entity        text            primary key check (legal_entity ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$'),
    name                text            not null,
    functional_currency ledger.currency not null
)
--;
insert into ledger.legal_entities values ('default', 'Default', 'USD')
--;
-- Who pays: one currency, for 1…n tenants.
create table ledger.billing_accounts (
    billing_account    text            primary key check (billing_account ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,126}$'),
    legal_entity       text            not null references ledger.legal_entities,
    name               text            not null,
    currency           ledger.currency not null,
    rounding           text            not null default 'half_even' check (rounding in ('half_even', 'half_up')),
    payment_terms_days integer         not null default 30 check (payment_terms_days between 0 and 365),
    recorded_at        timestamptz     not null default clock_timestamp(),
    unique (billing_account, currency)
)
--;
create table ledger.price_plans (
    plan        text            primary key check (plan ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
    currency    ledger.currency not null,
    recorded_at timestamptz     not null default clock_timestamp(),
    unique (plan, currency)
)
--;
create table ledger.plan_versions (
    plan        text        not null references ledger.price_plans,
    version     text        not null,
    valid_from  timestamptz not null,
    content     jsonb       not null,
    recorded_at timestamptz not null default clock_timestamp(),
    recorded_by text        not null,
    primary key (plan, version),
    unique (plan, valid_from)
)
--;
-- Bitemporal: [starts_at, ends_at) is when it holds, [recorded_at, superseded_at) when we thought so.
create table ledger.subscriptions (
    subscription_row bigint      generated always as identity primary key,
    subscription_id  uuid        not null,
    tenant_id        text        not null references usage.tenants,
    billing_account  text        not null references ledger.billing_accounts,
    plan             text        not null references ledger.price_plans,
    starts_at        timestamptz not null,
    ends_at          timestamptz check (ends_at > starts_at),
    bill_statuses    text[]      not null check (bill_statuses <@ array['ok', 'aborted', 'error', 'rejected']),
    recorded_at      timestamptz not null default clock_timestamp(),
    recorded_by      text        not null,
    superseded_at    timestamptz check (superseded_at >= recorded_at),
    exclude using gist (tenant_id with =, tstzrange(starts_at, ends_at) with &&) where (superseded_at is null)
)
--;
create unique index on ledger.subscriptions (subscription_id) where superseded_at is null
--;
create index on ledger.subscriptions (billing_account)
--;
create function ledger.only_supersede() returns trigger language plpgsql as $$
begin
    if old.superseded_at is not null or new.superseded_at is null
       or to_jsonb(new) - 'superseded_at' is distinct from to_jsonb(old) - 'superseded_at' then
        raise exception 'a row of %.% may only be superseded, once', tg_table_schema, tg_table_name
            using errcode = 'TB001';
    end if;
    return new;
end $$
--;
create trigger only_supersede before update on ledger.subscriptions
    for each row execute function ledger.only_supersede()
--;
-- The book of a legal entity, one row per UTC calendar month ('2026-10').
create table ledger.accounting_periods (
    legal_entity text not null references ledger.legal_entities,
    month        text not null check (month ~ '^\d{4}-(0[1-9]|1[0-2])$'),
    state        text not null default 'open' check (state in ('open', 'closed')),
    primary key (legal_entity, month)
)
--;
-- `subledger` tells the accounts of one code apart (a tenant, a billing account, a grant); '' stands for none.
-- Receivables and cash come in whole quanta of their currency.
create table ledger.accounts (
    account_id   bigint          generated always as identity primary key,
    legal_entity text            not null references ledger.legal_entities,
    code         smallint        not null check (code between 1000 and 5999),
    currency     ledger.currency not null,
    subledger    text            not null default '',
    quantum      numeric         check (quantum > 0),
    unique (legal_entity, code, currency, subledger),
    unique (account_id, currency)
)
--;
create table ledger.journal_entries (
    entry_id          bigint      generated always as identity primary key,
    idempotency_key   text        not null unique,
    input_hash        bytea       not null check (length(input_hash) = 32),
    kind              text        not null,
    legal_entity      text        not null,
    accounting_period text        not null,
    original_period   text,
    effective_at      timestamptz not null,
    recorded_at       timestamptz not null,
    transaction_id    xid8        not null,
    legs              smallint    not null check (legs >= 2),
    reverses          bigint      unique references ledger.journal_entries,
    source            jsonb       not null default '{}',
    foreign key (legal_entity, accounting_period) references ledger.accounting_periods
)
--;
create index on ledger.journal_entries (legal_entity, accounting_period)
--;
create table ledger.postings (
    entry_id   bigint          not null references ledger.journal_entries,
    seq        smallint        not null check (seq >= 1),
    account_id bigint          not null,
    currency   ledger.currency not null,
    amount     ledger.amount   not null check (amount <> 0),
    primary key (entry_id, seq),
    foreign key (account_id, currency) references ledger.accounts (account_id, currency)
)
--;
create index on ledger.postings (account_id)
--;
-- A header is stamped with its transaction, and refused where its period is closed. The shared lock
-- lets postings run beside each other; whoever closes takes it exclusively and so waits for them.
create function ledger.open_entry() returns trigger language plpgsql as $$
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
--;
create trigger open_entry before insert on ledger.journal_entries
    for each row execute function ledger.open_entry()
--;
-- Legs belong to the transaction of their header, and there are exactly as many as it says: with the
-- count fixed, no leg can follow once the balance was checked (not even after `set constraints`).
create function ledger.seal_posting() returns trigger language plpgsql as $$
declare header record;
begin
    select j.transaction_id, j.legs, j.legal_entity, a.quantum, a.legal_entity as book into header
        from ledger.journal_entries j, ledger.accounts a
        where j.entry_id = new.entry_id and a.account_id = new.account_id;
    if header.transaction_id is distinct from pg_current_xact_id() then
        raise exception 'journal entry % is sealed', new.entry_id using errcode = 'TB002';
    end if;
    if new.seq > header.legs then
        raise exception 'journal entry % has % legs', new.entry_id, header.legs using errcode = 'TB002';
    end if;
    if header.legal_entity is distinct from header.book then
        raise exception 'journal entry % is of another legal entity than its account', new.entry_id
            using errcode = 'TB006';
    end if;
    if header.quantum is not null and new.amount % header.quantum <> 0 then
        raise exception 'account % takes whole multiples of %, not %', new.account_id, header.quantum, new.amount
            using errcode = 'TB007';
    end if;
    return new;
end $$
--;
create trigger seal_posting before insert on ledger.postings
    for each row execute function ledger.seal_posting()
--;
-- One check per header at COMMIT: cheaper than one per leg, and safe with several INSERT statements.
create function ledger.check_balance() returns trigger language plpgsql as $$
declare found integer; wrong text;
begin
    select count(*) into found from ledger.postings where entry_id = new.entry_id;
    if found <> new.legs then
        raise exception 'journal entry % has % of its % legs', new.idempotency_key, found, new.legs
            using errcode = 'TB003';
    end if;
    select string_agg(currency || ' ' || total, ', ') into wrong from (
        select currency, sum(amount) as total from ledger.postings
        where entry_id = new.entry_id group by currency having sum(amount) <> 0) q;
    if wrong is not null then
        raise exception 'journal entry % is unbalanced by %', new.idempotency_key, wrong using errcode = 'TB004';
    end if;
    return null;
end $$
--;
create constraint trigger check_balance after insert on ledger.journal_entries
    deferrable initially deferred for each row execute function ledger.check_balance()
--;
-- Where the rating of a tenant's period stands. Its row lock puts the ratings of a period one after another.
create table ledger.tenant_periods (
    tenant_id    text        not null references usage.tenants,
    period_start timestamptz not null,
    period_end   timestamptz not null check (period_end > period_start),
    rating_no    integer     not null default 0 check (rating_no >= 0),
    rated_at     timestamptz,
    problem      text,
    primary key (tenant_id, period_start, period_end)
)
--;
-- What usage costs, exactly. A later rating appends the difference; the sum of the rows is the price.
create table ledger.rated_lines (
    rated_line_no   bigint          generated always as identity primary key,
    tenant_id       text            not null,
    billing_account text            not null,
    period_start    timestamptz     not null,
    period_end      timestamptz     not null,
    rating_no       integer         not null check (rating_no >= 1),
    subscription_id uuid            not null,
    segment_no      smallint        not null check (segment_no >= 1),
    service_start   timestamptz     not null,
    service_end     timestamptz     not null check (service_end > service_start),
    plan            text            not null,
    version         text            not null,
    charge_key      text            not null,
    tier_no         smallint        not null default 0 check (tier_no >= 0),
    kind            text            not null,
    metric          text            not null,
    model           text            not null,
    adapter         text            not null,
    region          text            not null,
    tier            text            not null,
    currency        ledger.currency not null,
    unit_price      ledger.price    not null check (unit_price >= 0),
    quantity        ledger.quantity not null,
    amount          ledger.amount   not null,
    reason          text            not null,
    entry_id        bigint          references ledger.journal_entries,
    recorded_at     timestamptz     not null default clock_timestamp(),
    unique (tenant_id, period_start, period_end, rating_no, subscription_id, segment_no, plan, version,
            charge_key, tier_no, kind, unit_price),
    foreign key (plan, version) references ledger.plan_versions,
    foreign key (plan, currency) references ledger.price_plans (plan, currency),
    foreign key (billing_account, currency) references ledger.billing_accounts (billing_account, currency),
    foreign key (tenant_id, period_start, period_end) references ledger.tenant_periods
)
--;
create index on ledger.rated_lines (billing_account, period_start, period_end)
--;
-- One row per invoice identity, ever (docs/spec/money.md 1). Its content is fixed once `frozen_at` is set.
create table ledger.invoices (
    invoice_id         uuid            primary key,
    legal_entity       text            not null references ledger.legal_entities,
    billing_account    text            not null,
    kind               text            not null check (kind in ('usage', 'advance', 'top_up', 'one_off', 'final', 'adjustment')),
    service_start      timestamptz     not null,
    service_end        timestamptz     not null check (service_end > service_start),
    currency           ledger.currency not null,
    revision           smallint        not null check (revision >= 0),
    state              text            not null check (state in ('draft', 'approved', 'finalized', 'paid', 'void',
                                                  'uncollectible', 'zero', 'carried_below_minimum')),
    exact_total        ledger.amount   not null,
    rounding           ledger.amount   not null,
    net_minor          bigint          not null,
    tax_minor          bigint          not null default 0,
    total_minor        bigint          not null,
    amount_due_minor   bigint          not null,
    lines_hash         text            not null,
    drafted_at         timestamptz     not null,
    frozen_at          timestamptz,
    sending_step       text            not null default 'not_begun' check (sending_step in ('not_begun', 'frozen',
                           'customer_known', 'draft_created', 'lines_added', 'compared', 'released', 'numbered', 'finalized')),
    parked_because     text,
    number             text,
    issue_date         date,
    due_date           date,
    stripe_customer_id text,
    stripe_invoice_id  text            unique,
    hosted_invoice_url text,
    invoice_pdf_url    text,
    entry_id           bigint          unique references ledger.journal_entries,
    unique (legal_entity, billing_account, kind, service_start, service_end, currency, revision),
    foreign key (billing_account, currency) references ledger.billing_accounts (billing_account, currency),
    check (total_minor = net_minor + tax_minor),
    check (state <> 'finalized' or (number is not null and stripe_invoice_id is not null and issue_date is not null)),
    check (state = 'draft' or frozen_at is not null)
)
--;
create index on ledger.invoices (service_start, service_end)
--;
create table ledger.invoice_lines (
    invoice_id      uuid            not null references ledger.invoices,
    line_key        text            not null,
    kind            text            not null,
    tenant_id       text            not null,
    subscription_id uuid            not null,
    segment_no      smallint        not null,
    service_start   timestamptz     not null,
    service_end     timestamptz     not null,
    original_period text,
    plan            text            not null,
    version         text            not null,
    charge_key      text            not null,
    tier_no         smallint        not null,
    metric          text            not null,
    model           text            not null,
    adapter         text            not null,
    region          text            not null,
    tier            text            not null,
    unit_price      ledger.price    not null,
    quantity        ledger.quantity not null,
    amount_exact    ledger.amount   not null,
    amount_minor    bigint          not null,
    tax_group       text            not null default 'std',
    primary key (invoice_id, line_key)
)
--;
create function ledger.guard_invoice() returns trigger language plpgsql as $$
declare
    mutable constant text[] := array['state', 'sending_step', 'parked_because', 'number', 'issue_date', 'due_date',
        'stripe_customer_id', 'stripe_invoice_id', 'hosted_invoice_url', 'invoice_pdf_url', 'entry_id'];
begin
    if tg_op = 'DELETE' then
        raise exception 'an invoice is never deleted' using errcode = 'TB001';
    end if;
    if old.frozen_at is not null and to_jsonb(new) - mutable is distinct from to_jsonb(old) - mutable then
        raise exception 'invoice % is frozen', old.invoice_id using errcode = 'TB008';
    end if;
    if (new.invoice_id, new.legal_entity, new.billing_account, new.kind, new.service_start, new.service_end,
        new.currency, new.revision) is distinct from (old.invoice_id, old.legal_entity, old.billing_account,
        old.kind, old.service_start, old.service_end, old.currency, old.revision) then
        raise exception 'the identity of invoice % cannot change', old.invoice_id using errcode = 'TB008';
    end if;
    if (old.number is not null and new.number is distinct from old.number)
       or (old.stripe_invoice_id is not null and new.stripe_invoice_id is distinct from old.stripe_invoice_id)
       or (old.entry_id is not null and new.entry_id is distinct from old.entry_id) then
        raise exception 'number, Stripe invoice and journal entry of invoice % stay', old.invoice_id
            using errcode = 'TB008';
    end if;
    return new;
end $$
--;
create trigger guard_invoice before update or delete on ledger.invoices
    for each row execute function ledger.guard_invoice()
--;
create function ledger.guard_invoice_line() returns trigger language plpgsql as $$
begin
    if exists (select from ledger.invoices where frozen_at is not null and invoice_id in
               (case when tg_op <> 'INSERT' then old.invoice_id end, case when tg_op <> 'DELETE' then new.invoice_id end))
    then
        raise exception 'the invoice of this line is frozen' using errcode = 'TB008';
    end if;
    return coalesce(new, old);
end $$
--;
create trigger guard_invoice_line before insert or update or delete on ledger.invoice_lines
    for each row execute function ledger.guard_invoice_line()
--;
create table ledger.invoice_transitions (
    transition_no bigint      generated always as identity primary key,
    invoice_id    uuid        not null references ledger.invoices,
    from_state    text,
    to_state      text        not null,
    at            timestamptz not null,
    actor         text        not null,
    recorded_at   timestamptz not null default clock_timestamp()
)
--;
create index on ledger.invoice_transitions (invoice_id)
--;
-- The locked counter of a series: numbers without gaps (docs/spec/money.md 8).
create table ledger.number_series (
    legal_entity text    not null references ledger.legal_entities,
    series       text    not null,
    prefix       text    not null,
    last_number  integer not null default 0 check (last_number >= 0),
    primary key (legal_entity, series)
)
--;
insert into ledger.number_series (legal_entity, series, prefix) values ('default', 'invoice', 'INV-')
--;
create table ledger.issued_numbers (
    legal_entity text        not null,
    series       text        not null,
    number       integer     not null check (number >= 1),
    written      text        not null,
    invoice_id   uuid        not null unique references ledger.invoices,
    issued_at    timestamptz not null default clock_timestamp(),
    primary key (legal_entity, series, number),
    unique (legal_entity, written),
    foreign key (legal_entity, series) references ledger.number_series
)
--;
create function ledger.guard_number_series() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' or new.last_number <> old.last_number + 1
       or to_jsonb(new) - 'last_number' is distinct from to_jsonb(old) - 'last_number' then
        raise exception 'series % of % only counts up, one by one', old.series, old.legal_entity
            using errcode = 'TB009';
    end if;
    return new;
end $$
--;
create trigger guard_number_series before update or delete on ledger.number_series
    for each row execute function ledger.guard_number_series()
--;
create table ledger.stripe_customers (
    billing_account    text        primary key references ledger.billing_accounts,
    stripe_customer_id text        not null unique,
    recorded_at        timestamptz not null default clock_timestamp()
)
--;
-- Requests to Stripe, frozen before they are first sent: a retry sends the same key and the same parameters.
create table ledger.stripe_requests (
    idempotency_key text        primary key check (length(idempotency_key) <= 255),
    billing_account text        not null references ledger.billing_accounts,
    invoice_id      uuid        references ledger.invoices,
    step            text        not null,
    chunk           smallint    not null,
    epoch           smallint    not null,
    target          text        not null,
    parameters      text        not null,
    frozen_at       timestamptz not null default clock_timestamp(),
    reply_id        text,
    replied_at      timestamptz,
    check ((reply_id is null) = (replied_at is null))
)
--;
create index on ledger.stripe_requests (invoice_id)
--;
create function ledger.guard_stripe_request() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' or old.reply_id is not null
       or to_jsonb(new) - array['reply_id', 'replied_at'] is distinct from to_jsonb(old) - array['reply_id', 'replied_at']
    then
        raise exception 'request % to Stripe is frozen', old.idempotency_key using errcode = 'TB001';
    end if;
    return new;
end $$
--;
create trigger guard_stripe_request before update or delete on ledger.stripe_requests
    for each row execute function ledger.guard_stripe_request()
"""

APPEND_ONLY = (
    "accounts",
    "invoice_transitions",
    "issued_numbers",
    "journal_entries",
    "plan_versions",
    "postings",
    "price_plans",
    "rated_lines",
)
NEVER_EMPTIED = ("billing_accounts", "invoices", "invoice_lines", "stripe_requests", "subscriptions")


def upgrade() -> None:
    """Create the schema with its guards."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)
    for table in APPEND_ONLY:
        op.execute(
            f"create trigger append_only before update or delete on ledger.{table}"
            " for each row execute function ledger.refuse_change()"
        )
    for table in ("subscriptions", "billing_accounts"):
        op.execute(
            f"create trigger never_deleted before delete on ledger.{table}"
            " for each row execute function ledger.refuse_change()"
        )
    for table in (*APPEND_ONLY, *NEVER_EMPTIED):
        op.execute(
            f"create trigger append_only_truncate before truncate on ledger.{table}"
            " for each statement execute function ledger.refuse_change()"
        )


def downgrade() -> None:
    """Drop the schema with everything in it."""
    op.execute("drop schema ledger cascade")
