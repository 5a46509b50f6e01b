"""The memo register of credits: each grant, and all that moved it, as it was written; what there is by now is taken in.

Revision ID: 0099
"""

from __future__ import annotations

from alembic import op

revision = "0099"
down_revision = "0098"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- What a grant (`movement_no` null) or a movement said when it was added. Nobody pays for a promotional credit, so that
-- no account of the ledger has it: this is the record that it is held against (docs/spec/money.md 6, 11.3).
create table ledger.credit_register (
    register_no bigint      generated always as identity primary key,
    grant_id    text        not null,
    movement_no bigint,
    said        jsonb       not null check (jsonb_typeof(said) = 'object'),
    at          timestamptz not null default clock_timestamp()
)
--;
create unique index on ledger.credit_register (grant_id, coalesce(movement_no, 0))
--;
create function ledger.register_grant() returns trigger language plpgsql set timezone = 'UTC' as $$
begin
    insert into ledger.credit_register (grant_id, said) values (new.grant_id, to_jsonb(new));
    return new;
end $$
--;
create function ledger.register_credit_movement() returns trigger language plpgsql set timezone = 'UTC' as $$
begin
    insert into ledger.credit_register (grant_id, movement_no, said)
    values (new.grant_id, new.movement_no, to_jsonb(new));
    return new;
end $$
--;
set local timezone = 'UTC'
--;
insert into ledger.credit_register (grant_id, said)
select grant_id, to_jsonb(g) from ledger.credit_grants as g order by granted_at, grant_id
--;
insert into ledger.credit_register (grant_id, movement_no, said)
select grant_id, movement_no, to_jsonb(m) from ledger.credit_movements as m order by movement_no
--;
create trigger register after insert on ledger.credit_grants
    for each row execute function ledger.register_grant()
--;
create trigger register after insert on ledger.credit_movements
    for each row execute function ledger.register_credit_movement()
--;
create trigger append_only before update or delete on ledger.credit_register
    for each row execute function ledger.refuse_change()
--;
create trigger append_only_truncate before truncate on ledger.credit_register
    for each statement execute function ledger.refuse_change()
"""


def upgrade() -> None:
    """Add the register, and what is there."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop it."""
    for table, function in (("credit_movements", "register_credit_movement"), ("credit_grants", "register_grant")):
        op.execute(f"drop trigger register on ledger.{table}")
        op.execute(f"drop function ledger.{function}()")
    op.execute("drop table ledger.credit_register")
