"""An identity is as young as the latest time it was ever seen with.

The ids of UUIDv7 say when they were minted. Any other identity ages by its event's completion, and a stronger source, or
a resend, may have come with a later one: with the first alone it would be forgotten while the later is still accepted,
and count twice.

Revision ID: 0016
"""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- Of identities that are no UUIDv7: the latest completion they came with, where it is later than the first one's.
create table usage.identity_ages (
    key          uuid        primary key check (key >= '80000000-0000-0000-0000-000000000000'),
    completed_at timestamptz not null
)
--;
insert into usage.identity_ages
select key, max(v.completed_at) from usage.event_versions as v join usage.event_identities as i using (key)
where key >= '80000000-0000-0000-0000-000000000000' and v.completed_at > i.completed_at group by key
--;
create function usage.only_younger() returns trigger language plpgsql as $$
begin
    if new.key <> old.key or new.completed_at < old.completed_at then
        raise exception 'usage.identity_ages only grow younger: update refused' using errcode = 'TB001';
    end if;
    return new;
end $$
--;
create trigger only_younger before update on usage.identity_ages
    for each row execute function usage.only_younger()
--;
create trigger append_only_truncate before truncate on usage.identity_ages
    for each statement execute function usage.refuse_change()
--;
create or replace function usage.refuse_early_forgetting() returns trigger language plpgsql as $$
declare bound timestamptz := (select forgotten_before from usage.ingest_rules);
begin
    if exists (select from forgotten as f where bound is null or usage.identified_at(f.key, f.completed_at) >= bound
               or exists (select from usage.identity_ages as a where a.key = f.key and a.completed_at >= bound)) then
        raise exception '% is append-only, an identity is forgotten by its age alone: delete refused',
            tg_table_schema || '.' || tg_table_name using errcode = 'TB001';
    end if;
    return null;
end $$
--;
create trigger forgotten_by_age after delete on usage.identity_ages referencing old table as forgotten
    for each statement execute function usage.refuse_early_forgetting()
"""


def upgrade() -> None:
    """Add the table, and let forgetting heed it."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """There is no way back: identities that are kept by their later time alone would be forgotten too early."""
    raise NotImplementedError("restore a backup from before 0016")
