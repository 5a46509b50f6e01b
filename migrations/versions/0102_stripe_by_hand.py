"""A number that is on somebody's own invoice in Stripe; what gates have read there; from when on books follow it.

Revision ID: 0102
"""

from __future__ import annotations

from alembic import op

revision = "0102"
down_revision = "0101"
branch_labels = None
depends_on = None

KINDS = "alter table ledger.close_stripe_objects add constraint close_stripe_objects_kind_check check (kind in ({}))"
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
    if (old.number is not null and new.number is distinct from old.number
           {but_taken})
       or (old.stripe_invoice_id is not null and new.stripe_invoice_id is distinct from old.stripe_invoice_id
           and not (new.stripe_invoice_id is null and new.state in ('draft', 'approved') and exists (
               select from ledger.sending_restarts r
               where r.invoice_id = old.invoice_id and r.stripe_invoice_id = old.stripe_invoice_id)))
       or (old.entry_id is not null and new.entry_id is distinct from old.entry_id) then
        raise exception 'number, Stripe invoice and journal entry of invoice % stay', old.invoice_id
            using errcode = 'TB008';
    end if;
    return new;
end $$
"""
TAKEN = """and not (new.number is not null and new.state in ('draft', 'approved') and exists (
               select from ledger.sending_restarts r
               where r.invoice_id = old.invoice_id and r.number_gone = old.number))"""


def upgrade() -> None:
    """An invoice may get another number, once a person has said which invoice in Stripe has its own."""
    op.execute("alter table ledger.close_stripe_objects drop constraint close_stripe_objects_kind_check")
    op.execute(KINDS.format("'invoice', 'line_item', 'balance_transaction', 'credit_note', 'balance'"))
    op.execute(
        "alter table ledger.sending_restarts add column number_gone text, add column number_taken_by text,"
        " add check ((number_gone is null) = (number_taken_by is null))"
    )
    op.execute("alter table ledger.issued_numbers drop constraint issued_numbers_invoice_id_key")
    op.execute("create index issued_numbers_invoice_id on ledger.issued_numbers (invoice_id)")
    op.execute(GUARD.format(but_taken=TAKEN))
    op.execute(
        "create table ledger.stripe_openings ("
        " legal_entity text primary key references ledger.legal_entities,"
        " opens_at timestamptz not null,"
        " actor text not null,"
        " recorded_at timestamptz not null default clock_timestamp())"
    )
    for name, when, each in (("", "update or delete", "row"), ("_truncate", "truncate", "statement")):
        op.execute(
            f"create trigger append_only{name} before {when} on ledger.stripe_openings"
            f" for each {each} execute function ledger.refuse_change()"
        )


def downgrade() -> None:
    """Take it away; refused where an invoice has had two numbers. Objects of the new kinds stay."""
    op.execute("drop table ledger.stripe_openings")
    op.execute(GUARD.format(but_taken=""))
    op.execute("drop index ledger.issued_numbers_invoice_id")
    op.execute("alter table ledger.issued_numbers add constraint issued_numbers_invoice_id_key unique (invoice_id)")
    op.execute("alter table ledger.sending_restarts drop column number_taken_by, drop column number_gone")
    op.execute("alter table ledger.close_stripe_objects drop constraint close_stripe_objects_kind_check")
    op.execute(KINDS.format("'invoice', 'line_item', 'balance_transaction'") + " not valid")
