"""What people decide where sending cannot go on: it begins anew, to another customer where Stripe's is deleted.

Revision ID: 0073
"""

from __future__ import annotations

from alembic import op

revision = "0073"
down_revision = "0072"
branch_labels = None
depends_on = None

TABLE = "ledger.sending_restarts"
GUARD = """
create or replace function ledger.guard_invoice() returns trigger language plpgsql as $$
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
       or (old.stripe_invoice_id is not null and new.stripe_invoice_id is distinct from old.stripe_invoice_id
           {unless})
       or (old.entry_id is not null and new.entry_id is distinct from old.entry_id) then
        raise exception 'number, Stripe invoice and journal entry of invoice % stay', old.invoice_id
            using errcode = 'TB008';
    end if;
    return new;
end $$
"""
BEGUN_ANEW = """and not (new.stripe_invoice_id is null and new.state in ('draft', 'approved') and exists (
               select from ledger.sending_restarts r
               where r.invoice_id = old.invoice_id and r.stripe_invoice_id = old.stripe_invoice_id))"""


def upgrade() -> None:
    """Add the table; let an account have customers one after another, and an invoice a draft in place of a lost one."""
    op.execute(
        f"create table {TABLE} ("
        " restart_no bigint generated always as identity primary key,"
        " invoice_id uuid not null references ledger.invoices,"
        " stripe_invoice_id text,"
        " customer_gone text,"
        " reason text not null check (reason <> ''),"
        " actor text not null,"
        " recorded_at timestamptz not null default clock_timestamp())"
    )
    op.execute(f"create index on {TABLE} (invoice_id)")
    op.execute(f"create index on {TABLE} (customer_gone) where customer_gone is not null")
    op.execute(
        f"create trigger append_only before update or delete on {TABLE}"
        " for each row execute function ledger.refuse_change()"
    )
    op.execute(
        f"create trigger append_only_truncate before truncate on {TABLE}"
        " for each statement execute function ledger.refuse_change()"
    )
    op.execute(
        "alter table ledger.stripe_customers drop constraint stripe_customers_pkey,"
        " add column customer_no smallint not null default 1, add primary key (billing_account, customer_no)"
    )
    op.execute(GUARD.format(unless=BEGUN_ANEW))


def downgrade() -> None:
    """Take it away; refused where an account has had two customers."""
    op.execute(GUARD.format(unless=""))
    op.execute(
        "alter table ledger.stripe_customers drop constraint stripe_customers_pkey,"
        " add primary key (billing_account), drop column customer_no"
    )
    op.execute(f"drop table {TABLE}")
