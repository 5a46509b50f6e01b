"""Exchange rates, dated and recorded: what a unit of one currency is worth in another.

Revision ID: 0035
"""

from __future__ import annotations

from alembic import op

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- Bitemporal by addition: at a moment holds the row with the latest valid_from up to it, of these the one recorded last.
-- `rate` is how much of `quote` one unit of `base` is.
create table ledger.exchange_rates (
    exchange_rate_no bigint          generated always as identity primary key,
    base             ledger.currency not null,
    quote            ledger.currency not null check (quote <> base),
    rate             ledger.price    not null check (rate > 0),
    valid_from       timestamptz     not null,
    document         text            not null check (document <> ''),
    recorded_at      timestamptz     not null default clock_timestamp(),
    recorded_by      text            not null
)
--;
create index on ledger.exchange_rates (base, quote, valid_from)
--;
-- A pair is kept one way round, so that there is one rate at a moment.
create function ledger.guard_exchange_rate() returns trigger language plpgsql as $$
begin
    perform pg_advisory_xact_lock(hashtextextended('exchange_rates', 0));
    if exists (select from ledger.exchange_rates where base = new.quote and quote = new.base) then
        raise exception 'rates of this pair are kept as % in %', new.quote, new.base using errcode = 'TB016';
    end if;
    return new;
end $$
--;
create trigger guard_exchange_rate before insert on ledger.exchange_rates
    for each row execute function ledger.guard_exchange_rate()
--;
create trigger append_only before update or delete on ledger.exchange_rates
    for each row execute function ledger.refuse_change()
--;
create trigger append_only_truncate before truncate on ledger.exchange_rates
    for each statement execute function ledger.refuse_change()
"""


def upgrade() -> None:
    """Create the table with its guards."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop it: which rates held is lost, what was booked by them stays."""
    op.execute("drop table ledger.exchange_rates")
    op.execute("drop function ledger.guard_exchange_rate()")
