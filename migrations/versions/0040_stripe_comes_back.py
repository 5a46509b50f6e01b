"""What comes back from Stripe: events as they came, money as it moved, and how far both are read.

Revision ID: 0040
"""

from __future__ import annotations

from alembic import op

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None

STATEMENTS = """
-- Each event once, whether a webhook brought it or it was asked for; what it says is asked for anew when it is handled.
create table ledger.stripe_events (
    event_id    text        primary key,
    type        text        not null,
    object_id   text        not null,
    created_at  timestamptz not null,
    body        text        not null,
    received_as text        not null check (received_as in ('webhook', 'poll')),
    received_at timestamptz not null default clock_timestamp(),
    handled_at  timestamptz,
    outcome     text,
    check ((handled_at is null) = (outcome is null))
)
---;
create index on ledger.stripe_events (created_at) where handled_at is null
---;
create function ledger.guard_stripe_event() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' or old.handled_at is not null
       or to_jsonb(new) - array['handled_at', 'outcome'] is distinct from to_jsonb(old) - array['handled_at', 'outcome']
    then
        raise exception 'event % of Stripe stays as it came', old.event_id using errcode = 'TB001';
    end if;
    return new;
end $$
---;
create trigger guard_stripe_event before update or delete on ledger.stripe_events
    for each row execute function ledger.guard_stripe_event()
---;
-- Stripe's balance transactions in Stripe's integers, each with the entry that books it.
create table ledger.stripe_balance_transactions (
    transaction_id     text        primary key,
    reporting_category text        not null,
    currency           text        not null,
    amount             bigint      not null,
    fee                bigint      not null,
    net                bigint      not null check (net = amount - fee),
    source_id          text,
    stripe_customer_id text,
    created_at         timestamptz not null,
    entry_id           bigint      references ledger.journal_entries,
    recorded_at        timestamptz not null default clock_timestamp(),
    check (entry_id is not null or (amount = 0 and fee = 0))
)
---;
create index on ledger.stripe_balance_transactions (source_id)
---;
create trigger append_only before update or delete on ledger.stripe_balance_transactions
    for each row execute function ledger.refuse_change()
---;
create table ledger.stripe_cursors (
    name    text        primary key check (name in ('events', 'balance_transactions')),
    read_to timestamptz not null
)
"""
TABLES = ("stripe_events", "stripe_balance_transactions")


def upgrade() -> None:
    """Add the tables with their guards."""
    for statement in STATEMENTS.split("\n---;\n"):
        op.execute(statement)
    for table in TABLES:
        op.execute(
            f"create trigger append_only_truncate before truncate on ledger.{table}"
            " for each statement execute function ledger.refuse_change()"
        )


def downgrade() -> None:
    """Take them away."""
    for table in (*TABLES, "stripe_cursors"):
        op.execute(f"drop table ledger.{table}")
    op.execute("drop function ledger.guard_stripe_event()")
