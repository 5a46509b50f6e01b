"""A few ids that were minted ahead do not keep their whole week out of a partition.

Revision ID: 0026
"""

from __future__ import annotations

from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

GUARD = """
create or replace function usage.refuse_early_forgetting() returns trigger language plpgsql as $$
declare bound timestamptz := (select forgotten_before from usage.ingest_rules);
begin
{moving}    if exists (select from forgotten as f where bound is null or usage.identified_at(f.key, f.completed_at) >= bound
               or exists (select from usage.identity_ages as a where a.key = f.key and a.completed_at >= bound)) then
        raise exception '% is append-only, an identity is forgotten by its age alone: delete refused',
            tg_table_schema || '.' || tg_table_name using errcode = 'TB001';
    end if;
    return null;
end $$
"""
# Into a partition of its own, by `usage.add_identity_weeks`, which works as the owner; nobody else may say so.
MOVING = """    if tg_table_name = 'event_identities_rest' and current_setting('usage.moving_identities', true) = 'on'
        and current_user = (select pg_get_userbyid(relowner) from pg_class where oid = tg_relid)
    then
        return null;
    end if;
"""
ADD_WEEKS = """
-- A partition for each week (of Monday) from `first` to `last` that has none and of which the rest holds at most a few
-- thousand ids, which move; returns how many.
create or replace function usage.add_identity_weeks(first date, last date) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    week  date := date_trunc('week', first::timestamp);
    name  text;
    held  bigint;
    added integer := 0;
begin
    while week <= last loop
        name := 'event_identities_' || to_char(week, 'YYYYMMDD');
        select count(*) into held from (
            select from usage.event_identities_rest
            where key >= usage.first_key_of(week) and key < usage.first_key_of(week + 7) limit 5001) as few;
        if to_regclass('usage.' || name) is null and held <= 5000 then
            execute format('create table usage.%I (like usage.event_identities including all)', name);
            if held > 0 then
                lock table usage.event_identities_rest in access exclusive mode;
                perform set_config('usage.moving_identities', 'on', true);
                execute format('with moved as (delete from usage.event_identities_rest where key >= %L and key < %L'
                    ' returning *) insert into usage.%I select * from moved',
                    usage.first_key_of(week), usage.first_key_of(week + 7), name);
                perform set_config('usage.moving_identities', 'off', true);
            end if;
            execute format('alter table usage.event_identities attach partition usage.%I for values from (%L) to (%L)',
                name, usage.first_key_of(week), usage.first_key_of(week + 7));
            execute format('create trigger append_only_truncate before truncate on usage.%I'
                ' for each statement execute function usage.refuse_change()', name);
            execute format('create trigger forgotten_by_age after delete on usage.%I referencing old table as forgotten'
                ' for each statement execute function usage.refuse_early_forgetting()', name);
            added := added + 1;
        end if;
        week := week + 7;
    end loop;
    return added;
end $$
"""

ADD_EMPTY_WEEKS = """
-- A partition for each week (of Monday) from `first` to `last` that has none and whose ids are not in the rest already;
-- returns how many.
create or replace function usage.add_identity_weeks(first date, last date) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    week  date := date_trunc('week', first::timestamp);
    name  text;
    added integer := 0;
begin
    while week <= last loop
        name := 'event_identities_' || to_char(week, 'YYYYMMDD');
        if to_regclass('usage.' || name) is null and not exists (
            select from usage.event_identities_rest
            where key >= usage.first_key_of(week) and key < usage.first_key_of(week + 7))
        then
            execute format('create table usage.%I partition of usage.event_identities for values from (%L) to (%L)',
                name, usage.first_key_of(week), usage.first_key_of(week + 7));
            execute format('create trigger append_only_truncate before truncate on usage.%I'
                ' for each statement execute function usage.refuse_change()', name);
            execute format('create trigger forgotten_by_age after delete on usage.%I referencing old table as forgotten'
                ' for each statement execute function usage.refuse_early_forgetting()', name);
            added := added + 1;
        end if;
        week := week + 7;
    end loop;
    return added;
end $$
"""


def upgrade() -> None:
    """Let the weeks be added in any case but where the rest holds many of theirs."""
    op.execute(GUARD.format(moving=MOVING))
    op.execute(ADD_WEEKS)


def downgrade() -> None:
    """The functions of 0010 and 0016 again, which do no harm to what these made."""
    op.execute(GUARD.format(moving=""))
    op.execute(ADD_EMPTY_WEEKS)
