"""Events that a replay brings in behind the horizon: their identities, kept for ever; supplements of archived days.

Revision ID: 0059
"""

from __future__ import annotations

from alembic import op

revision = "0059"
down_revision = "0058"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- The identities of events that came behind the horizon, by a replay that found them nowhere. Identities of their age are
-- forgotten; these stay, so that none counts twice whatever is replayed at once or later.
create table usage.replayed_identities (
    key            uuid        primary key,
    completed_at   timestamptz not null,
    position       bigint      not null,
    source_no      integer     not null,
    usage_source   text        not null,
    content_digest bytea       not null,
    numbered_by    bytea
)
--;
create index on usage.replayed_identities (completed_at)
--;
create trigger append_only before update or delete on usage.replayed_identities
    for each row execute function usage.refuse_change()
--;
create trigger append_only_truncate before truncate on usage.replayed_identities
    for each statement execute function usage.refuse_change()
--;
-- Part 0 is the day; what was added to it once it was dropped is in further parts, each written and dropped like a day.
alter table usage.archived_counts drop constraint archived_counts_day_fkey, drop constraint archived_counts_pkey
--;
alter table usage.recalled_days drop constraint recalled_days_day_fkey, drop constraint recalled_days_pkey
--;
alter table usage.archived_days drop constraint archived_days_pkey,
    add column part integer not null default 0 check (part >= 0), add primary key (day, part)
--;
alter table usage.archived_counts add column part integer not null default 0, add primary key (day, part, source),
    add foreign key (day, part) references usage.archived_days
--;
alter table usage.recalled_days add column part integer not null default 0, add primary key (day, part),
    add foreign key (day, part) references usage.archived_days
--;
create or replace function usage.guard_archived_count() returns trigger language plpgsql as $$
begin
    if exists (select from usage.archived_days where day = old.day and part = old.part and dropped_at is not null) then
        raise exception 'day % is only in the archive: % refused', old.day, lower(tg_op) using errcode = 'TB001';
    end if;
    return case tg_op when 'DELETE' then old else new end;
end $$
"""

# Fails where a day has supplements: they would be lost.
UNDO = r"""
drop table usage.replayed_identities
--;
alter table usage.archived_counts drop constraint archived_counts_day_part_fkey, drop constraint archived_counts_pkey
--;
alter table usage.recalled_days drop constraint recalled_days_day_part_fkey, drop constraint recalled_days_pkey
--;
alter table usage.archived_days drop constraint archived_days_pkey, drop column part, add primary key (day)
--;
alter table usage.archived_counts drop column part, add primary key (day, source),
    add foreign key (day) references usage.archived_days
--;
alter table usage.recalled_days drop column part, add primary key (day),
    add foreign key (day) references usage.archived_days
--;
create or replace function usage.guard_archived_count() returns trigger language plpgsql as $$
begin
    if exists (select from usage.archived_days where day = old.day and dropped_at is not null) then
        raise exception 'day % is only in the archive: % refused', old.day, lower(tg_op) using errcode = 'TB001';
    end if;
    return case tg_op when 'DELETE' then old else new end;
end $$
"""


def upgrade() -> None:
    """Add the table and the parts."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """Take them away; refused where a day has more than one part."""
    for statement in UNDO.split("\n--;\n"):
        op.execute(statement)
