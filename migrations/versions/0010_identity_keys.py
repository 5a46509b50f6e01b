"""Identities under a key of 16 bytes, in a partition for each week that ids were minted; windows that update in place.

Revision ID: 0010
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

GUARDED = ("event_identities", "event_versions")

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- Four bytes in place of a name, for what is stored with every event.
alter table usage.sources add column source_no integer generated always as identity unique
--;
-- What streams/rules/identity_keys.py computes: the time inside a UUIDv7, or a mark for other ids, before a hash.
create function usage.identity_key(tenant_id text, request_id text, attempt integer, kind text, correction_no integer)
returns uuid language sql immutable strict parallel safe as $$
    select encode(
        case when request_id ~* '^[0-7][0-9a-f]{7}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$'
             then decode(replace(left(request_id, 13), '-', ''), 'hex') || substr(hash, 1, 10)
             else set_byte(substr(hash, 1, 16), 0, get_byte(hash, 0) | 128) end, 'hex')::uuid
    from sha256(convert_to(request_id, 'UTF8') || '\x00' || convert_to(tenant_id, 'UTF8') || '\x00'
        || convert_to(attempt::text, 'UTF8') || '\x00' || convert_to(kind, 'UTF8') || '\x00'
        || convert_to(correction_no::text, 'UTF8')) as hash
$$
--;
drop index usage.event_identities_retried
--;
alter table usage.event_identities rename to event_identities_by_name
--;
alter table usage.event_identities_by_name rename constraint event_identities_pkey to event_identities_by_name_pkey
--;
alter table usage.event_versions rename to event_versions_by_name
--;
alter table usage.event_versions_by_name rename constraint event_versions_pkey to event_versions_by_name_pkey
--;
-- The key by which an event counts once. No time of the event is in it; its partitions are a function of the identity.
create table usage.event_identities (
    key            uuid        primary key,
    completed_at   timestamptz not null,
    position       bigint      not null,
    source_no      integer     not null,
    usage_source   text        not null,
    content_digest bytea       not null,
    numbered_by    bytea
) partition by range (key)
--;
-- Ids that are no UUIDv7.
create table usage.event_identities_other partition of usage.event_identities
    for values from ('80000000-0000-0000-0000-000000000000') to (maxvalue)
--;
-- UUIDv7 of weeks that have no partition: long ago, or in the future.
create table usage.event_identities_rest partition of usage.event_identities default
--;
create table usage.event_versions (
    key            uuid        not null,
    usage_source   text        not null,
    completed_at   timestamptz not null,
    position       bigint      not null,
    source_no      integer     not null,
    content_digest bytea       not null,
    numbered_by    bytea,
    primary key (key, usage_source)
)
--;
create function usage.first_key_of(day date) returns uuid language sql immutable strict parallel safe as $$
    select rpad(lpad(to_hex((extract(epoch from day::timestamp) * 1000)::bigint), 12, '0'), 32, '0')::uuid
$$
--;
-- The time by which an identity ages: when its UUIDv7 was minted, else the event's completion (streams/rules/horizon.py).
create function usage.identified_at(key uuid, completed_at timestamptz) returns timestamptz
    language sql immutable parallel safe as $$
    select case when ms < 140737488355328 then timestamptz '1970-01-01 00:00:00Z' + ms * interval '1 millisecond'
           else completed_at end
    from (select ('x' || left(replace(key::text, '-', ''), 12))::bit(48)::bigint as ms) as minted
$$
--;
create or replace function usage.refuse_early_forgetting() returns trigger language plpgsql as $$
declare bound timestamptz := (select forgotten_before from usage.ingest_rules);
begin
    if exists (select from forgotten where bound is null or usage.identified_at(key, completed_at) >= bound) then
        raise exception '% is append-only, an identity is forgotten by its age alone: delete refused',
            tg_table_schema || '.' || tg_table_name using errcode = 'TB001';
    end if;
    return null;
end $$
--;
-- A partition for each week (of Monday) from `first` to `last` that has none and whose ids are not in the rest already;
-- returns how many.
create function usage.add_identity_weeks(first date, last date) returns integer
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
--;
-- Drop the partitions of weeks that end before, or with `dry_run` only count them. Never what is not to be forgotten yet.
create function usage.forget_identity_weeks(before timestamptz, dry_run boolean) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    told  timestamptz := (select forgotten_before from usage.ingest_rules);
    bound timestamptz := case when dry_run then before when told is not null then least(before, told) end;
    name  text;
    found integer := 0;
begin
    for name in select c.relname from pg_inherits as i join pg_class as c on c.oid = i.inhrelid
                where i.inhparent = 'usage.event_identities'::regclass and c.relname ~ '^event_identities_[0-9]{8}$'
                  and to_date(right(c.relname, 8), 'YYYYMMDD') + 7 <= (bound at time zone 'UTC')::date
    loop
        if not dry_run then
            execute format('drop table usage.%I', name);
        end if;
        found := found + 1;
    end loop;
    return found;
end $$
--;
-- The application may not drop what it does not own: of the feed it lets go through this.
create function usage.drop_feed_before(before timestamptz) returns integer
language sql security definer set search_path = pg_catalog, pg_temp as $$
    select count(*)::integer from public.drop_chunks('usage.quota_feed', older_than => before)
$$
--;
select usage.add_identity_weeks(current_date - 50, current_date + 14)
--;
insert into usage.event_identities
select usage.identity_key(tenant_id, request_id, attempt, kind, correction_no), completed_at, position, source_no,
    usage_source, content_digest, case when replica_id <> '' and boot_id <> ''
        then substr(sha256(convert_to(replica_id, 'UTF8') || '\x00' || convert_to(boot_id, 'UTF8')), 1, 8) end
from usage.event_identities_by_name join usage.sources using (source)
--;
insert into usage.event_versions
select usage.identity_key(tenant_id, request_id, attempt, kind, correction_no), usage_source, completed_at, position,
    source_no, content_digest, case when replica_id <> '' and boot_id <> ''
        then substr(sha256(convert_to(replica_id, 'UTF8') || '\x00' || convert_to(boot_id, 'UTF8')), 1, 8) end
from usage.event_versions_by_name join usage.sources using (source)
--;
drop table usage.event_identities_by_name
--;
drop table usage.event_versions_by_name
--;
drop function usage.identified_at(text, timestamptz)
--;
delete from usage.identity_sweeps
--;
-- Requests that were dispatched more than once: few, and all that `bill_attempts = delivered` has to look at
-- (docs/spec/money.md 2).
create index events_retried on usage.events (tenant_id, request_id) where attempt > 1
--;
-- A window's row is updated by each chunk that adds to it. With room on its page, and no index but the key, the new
-- version stays on the page and no index is touched. Ranges of time are found by the hypertable's chunks.
drop index usage.windows_1m_bucket_idx
--;
drop index usage.windows_1h_bucket_idx
--;
alter table usage.windows_1m set (fillfactor = 60)
--;
alter table usage.windows_1h set (fillfactor = 60)
"""


def upgrade() -> None:
    """Give every identity its key."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)
    for table in GUARDED:
        op.execute(
            f"create trigger append_only before update on usage.{table}"
            " for each row execute function usage.refuse_change()"
        )
    for table in (*GUARDED, "event_identities_other", "event_identities_rest"):
        op.execute(
            f"create trigger forgotten_by_age after delete on usage.{table} referencing old table as forgotten"
            " for each statement execute function usage.refuse_early_forgetting()"
        )
        op.execute(
            f"create trigger append_only_truncate before truncate on usage.{table}"
            " for each statement execute function usage.refuse_change()"
        )


def downgrade() -> None:
    """There is no way from a key back to an identity."""
    raise NotImplementedError("restore a backup from before 0010: the identities by name are gone")
