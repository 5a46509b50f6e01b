"""What an edit by hand must not reach either, and the way from a request to its attempts.

Revision ID: 0007
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- Requests that were dispatched more than once: few, and all that `bill_attempts = delivered` has to look at
-- (docs/spec/money.md 2).
create index event_identities_retried on usage.event_identities (tenant_id, request_id) where attempt > 1
--;
-- A tenant is never forgotten, and its id is what usage and money are booked under.
create function usage.guard_tenant() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' or to_jsonb(new) - array['name', 'state'] is distinct from to_jsonb(old) - array['name', 'state']
    then
        raise exception 'of a tenant only name and state change: % refused', lower(tg_op) using errcode = 'TB001';
    end if;
    return new;
end $$
--;
create trigger guard_tenant before update or delete on usage.tenants
    for each row execute function usage.guard_tenant()
--;
create trigger append_only_truncate before truncate on usage.tenants
    for each statement execute function usage.refuse_change()
--;
-- Rows of events stay as they were counted. Dropping whole chunks by age is DDL and not touched by this.
create trigger append_only before update or delete on usage.events
    for each row execute function usage.refuse_change()
--;
create trigger append_only before update or delete on ledger.stripe_customers
    for each row execute function ledger.refuse_change()
--;
create trigger append_only_truncate before truncate on ledger.stripe_customers
    for each statement execute function ledger.refuse_change()
--;
create trigger append_only_truncate before truncate on ledger.number_series
    for each statement execute function ledger.refuse_change()
--;
-- The moves of billing/invoices.py (`after`), and the dates that an issued document bears.
create function ledger.guard_invoice_life() returns trigger language plpgsql as $$
begin
    if new.state <> old.state and (old.state, new.state) not in (
        ('draft', 'approved'), ('draft', 'zero'), ('draft', 'carried_below_minimum'), ('approved', 'finalized'),
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
--;
create trigger guard_invoice_life before update on ledger.invoices
    for each row execute function ledger.guard_invoice_life()
"""


def upgrade() -> None:
    """Create the index and the guards."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop them."""
    op.execute("drop trigger guard_invoice_life on ledger.invoices")
    op.execute("drop function ledger.guard_invoice_life()")
    for table in ("ledger.number_series", "ledger.stripe_customers", "usage.tenants"):
        op.execute(f"drop trigger append_only_truncate on {table}")
    op.execute("drop trigger append_only on ledger.stripe_customers")
    op.execute("drop trigger append_only on usage.events")
    op.execute("drop trigger guard_tenant on usage.tenants")
    op.execute("drop function usage.guard_tenant()")
    op.execute("drop index usage.event_identities_retried")
