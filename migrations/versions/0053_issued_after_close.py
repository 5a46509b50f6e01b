"""What a close has begun with is issued after its approval alone, whoever sends it.

Revision ID: 0053
"""

from __future__ import annotations

from alembic import op

revision = "0053"
down_revision = "0052"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
create index on ledger.close_transitions (billing_account, month, step)
--;
-- The month whose close an account's draft waits for, null if for none: of usage the one that its period ends in, until
-- it is approved; of an adjustment any that is under way while none is approved, or the last one where it was left.
create function ledger.close_that_holds(account text, of_kind text, service_end timestamptz) returns text
language sql stable as $$
    with stands as (
        select distinct on (month) month, to_state as state from ledger.close_transitions
        where billing_account = account and account <> ''
        order by month, step desc
    )
    select min(month) from stands where case of_kind
        when 'usage' then state not in ('approved', 'finalized', 'closed')
            and month = to_char((service_end - interval '1 microsecond') at time zone 'UTC', 'YYYY-MM')
        when 'adjustment' then state not in ('approved', 'finalized', 'closed')
            and (state <> 'parked' or month = (select max(month) from stands))
            and not exists (select from stands where state in ('approved', 'finalized'))
        else false
    end
$$
--;
create function ledger.guard_issuing() returns trigger language plpgsql as $$
declare
    holding text := ledger.close_that_holds(new.billing_account, new.kind, new.service_end);
begin
    if holding is not null then
        raise exception 'the close of % for % is not approved: its invoices are not issued', holding,
            new.billing_account using errcode = 'TB023';
    end if;
    return new;
end $$
--;
create trigger guard_issuing before update on ledger.invoices for each row
    when (old.state = 'draft' and new.state <> 'draft') execute function ledger.guard_issuing()
"""


def upgrade() -> None:
    """Add the guard."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop it."""
    op.execute("drop trigger guard_issuing on ledger.invoices")
    op.execute("drop function ledger.guard_issuing()")
    op.execute("drop function ledger.close_that_holds(text, text, timestamptz)")
    op.execute("drop index ledger.close_transitions_billing_account_month_step_idx")
