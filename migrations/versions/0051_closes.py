"""Closes: the states of accounts and books, cuts with the usage that is rated, gates, waivers, what is approved.

Revision ID: 0051
"""

from __future__ import annotations

from alembic import op

revision = "0051"
down_revision = "0050"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- Where the month of a billing account ('' : the book of the legal entity) went, step by step.
create table ledger.close_transitions (
    transition_no   bigint      generated always as identity primary key,
    month           text        not null check (month ~ '^\d{4}-\d{2}$'),
    legal_entity    text        not null references ledger.legal_entities,
    billing_account text        not null,
    step            integer     not null check (step >= 1),
    from_state      text        not null,
    event           text        not null,
    to_state        text        not null,
    actor           text        not null check (actor <> ''),
    reason          text        not null,
    detail          jsonb       not null check (jsonb_typeof(detail) = 'object'),
    at              timestamptz not null default clock_timestamp(),
    recorded_by     text        not null default current_user,
    unique (month, legal_entity, billing_account, step),
    check (event not in ('park', 'release', 'reopen') or reason <> ''),
    check (case
        when billing_account = '' then (from_state, event, to_state) = ('open', 'close', 'closed')
        when event = 'park' then to_state = 'parked'
            and from_state in ('collecting', 'frozen', 'drafted', 'reconciled', 'approved', 'finalized')
        when event = 'release' then from_state = 'parked'
            and to_state in ('collecting', 'frozen', 'drafted', 'reconciled', 'approved', 'finalized')
        when event = 'reopen' then to_state = 'collecting'
            and from_state in ('frozen', 'drafted', 'reconciled', 'approved', 'closed', 'parked')
        else (from_state, event, to_state) in (
            ('open', 'collect', 'collecting'), ('collecting', 'freeze', 'frozen'), ('frozen', 'draft', 'drafted'),
            ('drafted', 'reconcile', 'reconciled'), ('reconciled', 'approve', 'approved'),
            ('approved', 'finalize', 'finalized'), ('finalized', 'close', 'closed'),
            ('reconciled', 'return', 'drafted'), ('approved', 'return', 'drafted'))
    end)
)
--;
create function ledger.guard_close_transition() returns trigger language plpgsql as $$
declare
    before record;
begin
    select step, to_state into before from ledger.close_transitions as t
        where t.month = new.month and t.legal_entity = new.legal_entity and t.billing_account = new.billing_account
        order by step desc limit 1;
    if new.step <> coalesce(before.step, 0) + 1 or new.from_state <> coalesce(before.to_state, 'open') then
        raise exception 'the close of % for % is not where step % begins', new.month, new.billing_account, new.step
            using errcode = 'TB021';
    end if;
    new.at := clock_timestamp();
    new.recorded_by := current_user;
    return new;
end $$
--;
create trigger guard_close_transition before insert on ledger.close_transitions
    for each row execute function ledger.guard_close_transition()
--;
-- A cut: what a billing period was rated from, taken in the transaction that rated it, and where all else stood then.
create table ledger.close_cuts (
    cut_id       bigint      generated always as identity primary key,
    month        text        not null check (month ~ '^\d{4}-\d{2}$'),
    period_start timestamptz not null,
    period_end   timestamptz not null check (period_end > period_start),
    taken_at     timestamptz not null default clock_timestamp(),
    actor        text        not null,
    tenants      text[]      not null,
    coordinates  jsonb       not null check (jsonb_typeof(coordinates) = 'object'),
    digest       text        not null
)
--;
create table ledger.frozen_usage (
    cut_id           bigint      not null references ledger.close_cuts,
    row_no           integer     not null,
    tenant_id        text        not null,
    billing_account  text        not null,
    plan             text        not null,
    version          text        not null,
    segment_no       integer     not null,
    service_start    timestamptz not null,
    service_end      timestamptz not null,
    model            text        not null,
    adapter          text        not null,
    region           text        not null,
    tier             text        not null,
    status           text        not null,
    fault            text        not null,
    usage_source     text        not null,
    rating_band      text        not null,
    requests         bigint      not null,
    input_tokens     bigint      not null,
    cache_hit_tokens bigint      not null,
    output_tokens    bigint      not null,
    gpu_us           bigint      not null,
    digest           text        not null,
    primary key (cut_id, row_no)
)
--;
create table ledger.close_gate_results (
    result_no   bigint      generated always as identity primary key,
    month       text        not null,
    gate        text        not null,
    at          timestamptz not null default clock_timestamp(),
    compared    bigint      not null,
    differences jsonb       not null check (jsonb_typeof(differences) = 'array')
)
--;
create index on ledger.close_gate_results (month, gate, result_no)
--;
-- A named person's word that a difference may stay: never of R2 to R8 and R10.
create table ledger.close_waivers (
    waiver_no bigint      generated always as identity primary key,
    month     text        not null,
    gate      text        not null check (gate in ('R1', 'R9', 'R11')),
    key       text        not null,
    actor     text        not null check (actor <> ''),
    reason    text        not null check (reason <> ''),
    low       ledger.amount,
    high      ledger.amount check (high >= low),
    currency  text,
    at        timestamptz not null default clock_timestamp(),
    unique (month, gate, key),
    check (gate = 'R11' or (low is not null and high is not null and currency is not null))
)
--;
-- What is approved: all that an account's month comes to, as canonical JSON. The hash is what a person signs.
create table ledger.close_contents (
    content_no      bigint      generated always as identity primary key,
    month           text        not null,
    billing_account text        not null references ledger.billing_accounts,
    content         text        not null,
    hash            text        not null check (hash = encode(sha256(convert_to(content, 'UTF8')), 'hex')),
    prepared_by     text        not null check (prepared_by <> ''),
    at              timestamptz not null default clock_timestamp()
)
--;
create index on ledger.close_contents (month, billing_account, content_no)
--;
create table ledger.close_approvals (
    approval_no bigint      generated always as identity primary key,
    content_no  bigint      not null unique references ledger.close_contents,
    approved_by text        not null check (approved_by <> ''),
    alone       boolean     not null,
    at          timestamptz not null default clock_timestamp()
)
--;
create function ledger.guard_close_approval() returns trigger language plpgsql as $$
begin
    if new.alone is distinct from
            (new.approved_by = (select prepared_by from ledger.close_contents where content_no = new.content_no)) then
        raise exception 'content % is approved by who prepared it, or said so wrongly', new.content_no
            using errcode = 'TB022';
    end if;
    return new;
end $$
--;
create trigger guard_close_approval before insert on ledger.close_approvals
    for each row execute function ledger.guard_close_approval()
--;
alter table ledger.proposals drop constraint proposals_kind_check, add constraint proposals_kind_check
    check (kind in ('credit.settle', 'credit.refund', 'ledger.post', 'ledger.close',
        'invoice.write_off', 'invoice.pay', 'close.reopen'))
"""

TABLES = (
    "close_transitions", "close_cuts", "frozen_usage", "close_gate_results", "close_waivers", "close_contents",
    "close_approvals",
)  # fmt: skip


def upgrade() -> None:
    """Add the tables, all of them append-only."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)
    for table in TABLES:
        op.execute(
            f"create trigger append_only before update or delete on ledger.{table}"
            " for each row execute function ledger.refuse_change()"
        )
        op.execute(
            f"create trigger append_only_truncate before truncate on ledger.{table}"
            " for each statement execute function ledger.refuse_change()"
        )


def downgrade() -> None:
    """Drop them."""
    op.execute(
        "alter table ledger.proposals drop constraint proposals_kind_check, add constraint proposals_kind_check"
        " check (kind in ('credit.settle', 'credit.refund', 'ledger.post', 'ledger.close', 'invoice.write_off',"
        " 'invoice.pay'))"
    )
    for table in reversed(TABLES):
        op.execute(f"drop table ledger.{table}")
    op.execute("drop function ledger.guard_close_approval()")
    op.execute("drop function ledger.guard_close_transition()")
