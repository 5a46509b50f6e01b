"""The horizon, rating bands, ended boots, and the archive of raw events (docs/spec/metering.md 4.2, 4.3; docs/retention.md).

Revision ID: 0008
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- What every chunk is judged by (streams/rules/ingest_rules.py). One row.
create table usage.ingest_rules (
    only_row             boolean     primary key default true check (only_row),
    horizon              interval    not null default interval '45 days' check (horizon >= interval '45 days'),
    closed_before        timestamptz,
    forgotten_before     timestamptz,
    sealed_before        timestamptz check (sealed_before <= forgotten_before),
    rating_bands_version bigint      not null default 0,
    check (sealed_before is null or forgotten_before is not null)
)
--;
insert into usage.ingest_rules default values
--;
create function usage.guard_ingest_rules() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' or new.forgotten_before is distinct from greatest(new.forgotten_before, old.forgotten_before)
        or new.sealed_before is distinct from greatest(new.sealed_before, old.sealed_before)
        or new.rating_bands_version < old.rating_bands_version
    then
        raise exception 'usage.ingest_rules only moves forward: % refused', lower(tg_op) using errcode = 'TB001';
    end if;
    return new;
end $$
--;
create trigger only_forward before update or delete on usage.ingest_rules
    for each row execute function usage.guard_ingest_rules()
--;
-- The time by which an identity ages, as streams/rules/horizon.py says it.
create function usage.identified_at(request_id text, completed_at timestamptz) returns timestamptz
    language sql immutable parallel safe as $$
    select coalesce(
        (select case when ms <= 253402300799999 then timestamptz '1970-01-01 00:00:00Z' + ms * interval '1 millisecond' end
         from (select ('x' || left(request_id, 8) || substr(request_id, 10, 4))::bit(48)::bigint as ms
               where request_id ~* '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$') as minted),
        completed_at)
$$
--;
-- Identities are forgotten by age, and in no other way.
create function usage.refuse_early_forgetting() returns trigger language plpgsql as $$
declare bound timestamptz := (select forgotten_before from usage.ingest_rules);
begin
    if exists (select from forgotten
               where bound is null or usage.identified_at(request_id, completed_at) >= bound) then
        raise exception '% is append-only, an identity is forgotten by its age alone: delete refused',
            tg_table_schema || '.' || tg_table_name using errcode = 'TB001';
    end if;
    return null;
end $$
--;
-- Prices that depend on a single request: context-length steps; the price version when priced by the start.
-- Billing writes, streams only reads. '' stands for any model.
create table usage.rating_bands (
    tenant_id     text        not null references usage.tenants,
    model         text        not null,
    kind          text        not null check (kind in ('context', 'started')),
    valid_from    timestamptz not null,
    steps         bigint[]    not null default '{}' check (kind = 'context' or steps = '{}'),
    price_version text        not null default '' check (kind = 'started' or price_version = ''),
    primary key (tenant_id, model, kind, valid_from),
    check (price_version ~ '^[A-Za-z0-9._:-]{0,64}$')
)
--;
create function usage.guard_steps() returns trigger language plpgsql as $$
begin
    if exists (select from unnest(new.steps) with ordinality as s (step, at)
               where step is null or step <= 0 or step <= coalesce(new.steps[at - 1], 0)) then
        raise exception 'steps % must ascend from above 0', new.steps using errcode = 'check_violation';
    end if;
    return new;
end $$
--;
create trigger guard_steps before insert or update on usage.rating_bands
    for each row execute function usage.guard_steps()
--;
create function usage.count_rating_bands_version() returns trigger language plpgsql as $$
begin
    update usage.ingest_rules set rating_bands_version = rating_bands_version + 1;
    return null;
end $$
--;
create trigger count_version after insert or update or delete or truncate on usage.rating_bands
    for each statement execute function usage.count_rating_bands_version()
--;
-- Of a stored event only its band changes, when its rule was changed late (`streams rebuild`): it is derived.
create function usage.guard_event() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' or to_jsonb(new) - 'rating_band' is distinct from to_jsonb(old) - 'rating_band' then
        raise exception 'usage.events is append-only: % refused', lower(tg_op) using errcode = 'TB001';
    end if;
    return new;
end $$
--;
drop trigger append_only on usage.events
--;
create trigger append_only before update or delete on usage.events
    for each row execute function usage.guard_event()
--;
-- Boots whose end is long ago: what is left of them once their numbers and counts were forgotten. What still arrives
-- of them fills nothing.
create table usage.ended_boots (
    replica_id       text        collate "C" not null,
    boot_id          text        collate "C" not null,
    received_through bigint      not null,
    events           bigint      not null,
    last_received_at timestamptz not null,
    ended_at         timestamptz not null default now(),
    primary key (replica_id, boot_id)
)
--;
-- Where the sweep for identities that may be forgotten stands, per table (streams/retention/retention_store.py).
create table usage.identity_sweeps (
    table_name text        primary key,
    next_block bigint      not null default 0,
    before     timestamptz not null,
    swept      timestamptz
)
--;
-- Days of raw events that are in the archive, each with its manifest's digest and a digest over its rows as they were.
create table usage.archived_days (
    day             date        primary key,
    rows            bigint      not null check (rows >= 0),
    rows_digest     numeric     not null,
    manifest_path   text        not null,
    manifest_sha256 bytea       not null check (length(manifest_sha256) = 32),
    archived_at     timestamptz not null default now(),
    dropped_at      timestamptz
)
--;
-- How many events of each source a day in the archive holds: they count as stored once the database dropped them.
create table usage.archived_counts (
    day    date   not null references usage.archived_days,
    source text   not null,
    events bigint not null check (events > 0),
    primary key (day, source)
)
--;
create function usage.guard_archived_day() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' or old.dropped_at is not null then
        raise exception 'day % is only in the archive: % refused', old.day, lower(tg_op) using errcode = 'TB001';
    end if;
    return new;
end $$
--;
create trigger only_copy before update or delete on usage.archived_days
    for each row execute function usage.guard_archived_day()
--;
create function usage.guard_archived_count() returns trigger language plpgsql as $$
begin
    if exists (select from usage.archived_days where day = old.day and dropped_at is not null) then
        raise exception 'day % is only in the archive: % refused', old.day, lower(tg_op) using errcode = 'TB001';
    end if;
    return case tg_op when 'DELETE' then old else new end;
end $$
--;
create trigger only_copy before update or delete on usage.archived_counts
    for each row execute function usage.guard_archived_count()
--;
-- Events that were read back from the archive, to be rated, rebuilt or disputed again, and the days they are of.
create table usage.recalled_events (like usage.events including defaults)
--;
create index on usage.recalled_events (tenant_id, completed_at)
--;
create table usage.recalled_days (
    day         date        primary key references usage.archived_days,
    actor       text        not null,
    recalled_at timestamptz not null default now()
)
--;
-- Every raw event that can be read now.
create view usage.present_events as
    select * from usage.events union all select * from usage.recalled_events
--;
create or replace view usage.counting_events as
    select e.* from usage.present_events as e
    where not exists (select from usage.superseded_events as s where s.source = e.source and s.position = e.position)
"""

FORGOTTEN_BY_AGE = ("event_identities", "event_versions")
APPEND_ONLY = ("ended_boots",)
NEVER_EMPTIED = ("ingest_rules", "ended_boots", "archived_days", "archived_counts")


def upgrade() -> None:
    """Create the tables with their guards; let identities be forgotten by age."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)
    for table in FORGOTTEN_BY_AGE:
        op.execute(f"drop trigger append_only on usage.{table}")
        op.execute(
            f"create trigger append_only before update on usage.{table}"
            " for each row execute function usage.refuse_change()"
        )
        op.execute(
            f"create trigger forgotten_by_age after delete on usage.{table} referencing old table as forgotten"
            " for each statement execute function usage.refuse_early_forgetting()"
        )
    for table in APPEND_ONLY:
        op.execute(
            f"create trigger append_only before update or delete on usage.{table}"
            " for each row execute function usage.refuse_change()"
        )
    for table in NEVER_EMPTIED:
        op.execute(
            f"create trigger append_only_truncate before truncate on usage.{table}"
            " for each statement execute function usage.refuse_change()"
        )


def downgrade() -> None:
    """Drop what this revision made. What was forgotten or dropped does not come back."""
    op.execute(
        "create or replace view usage.counting_events as select e.* from usage.events as e where not exists"
        " (select from usage.superseded_events as s where s.source = e.source and s.position = e.position)"
    )
    op.execute("drop view usage.present_events")
    op.execute("drop trigger append_only on usage.events")
    op.execute(
        "create trigger append_only before update or delete on usage.events"
        " for each row execute function usage.refuse_change()"
    )
    for table in FORGOTTEN_BY_AGE:
        op.execute(f"drop trigger forgotten_by_age on usage.{table}")
        op.execute(f"drop trigger append_only on usage.{table}")
        op.execute(
            f"create trigger append_only before update or delete on usage.{table}"
            " for each row execute function usage.refuse_change()"
        )
    for table in (
        "recalled_days", "recalled_events", "archived_counts", "archived_days", "identity_sweeps", "ended_boots",
        "rating_bands", "ingest_rules",
    ):  # fmt: skip
        op.execute(f"drop table usage.{table}")
    for function in (
        "guard_archived_count()", "guard_archived_day()", "guard_event()", "count_rating_bands_version()",
        "guard_steps()", "refuse_early_forgetting()", "identified_at(text, timestamptz)", "guard_ingest_rules()",
    ):  # fmt: skip
        op.execute(f"drop function usage.{function}")
