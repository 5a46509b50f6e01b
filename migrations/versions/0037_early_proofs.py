"""Proofs of chunks become ranges within hours, and stay whole until their period is closed.

A month at a thousand events a second leaves some ninety million chunks. As rows they are read by whoever compares
positions with outcomes; in a range they are a few bytes each, and read by nobody but who wants them.

Revision ID: 0037
"""

from __future__ import annotations

from importlib import import_module

from alembic import op

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None

REPLACED = ("guard_applied_range", "guard_applied_chunk", "fold_applied_chunks")

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- Each chunk's next position (8 bytes, big-endian) and digest (32), in order; null once their period is closed.
alter table usage.applied_ranges add column proofs bytea
--;
alter table usage.applied_ranges alter column proofs set storage external
--;
create function usage.proofs_of(of_source text, first bigint, after bigint) returns bytea language sql stable as $$
    select string_agg(int8send(c.next_position) || c.content_digest, ''::bytea order by c.first_position)
    from usage.applied_chunks as c
    where c.source = of_source and c.first_position >= first and c.first_position < after
$$
--;
create or replace function usage.guard_applied_range() returns trigger language plpgsql as $$
declare closed timestamptz := (select closed_before from usage.ingest_rules);
begin
    if tg_op = 'UPDATE' and new.proofs is null and old.last_applied_at < closed
        and to_jsonb(new) - 'proofs' = to_jsonb(old) - 'proofs'
    then
        return new;
    end if;
    if tg_op <> 'INSERT' then
        raise exception 'usage.applied_ranges is append-only: % refused', lower(tg_op) using errcode = 'TB001';
    end if;
    if not exists (
        select from usage.fold_of(new.source, new.first_position, new.next_position)
            as f (chunks, applied, duplicates, retimed, quarantined, late, digest, first_applied_at, last_applied_at)
        where row(f.*) is not distinct from row(new.chunks, new.applied, new.duplicates, new.retimed, new.quarantined,
            new.late, new.digest, new.first_applied_at, new.last_applied_at)
    ) or (new.proofs is distinct from usage.proofs_of(new.source, new.first_position, new.next_position)
          and not (new.proofs is null and coalesce(new.last_applied_at < closed, false)))
    then
        raise exception 'positions % to % of % are not what its chunks come to: insert refused',
            new.first_position, new.next_position, new.source using errcode = 'TB001';
    end if;
    return new;
end $$
--;
-- A chunk goes only into a range that holds it: without its proof once the period in which it was applied is closed;
-- with it after an hour, unless it is its source's last, with which the log is compared after a change of leaders.
create or replace function usage.guard_applied_chunk() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' and exists (
        select from usage.applied_ranges as r where r.source = old.source
            and r.first_position <= old.first_position and r.next_position >= old.next_position
            and (old.applied_at < (select closed_before from usage.ingest_rules)
                 or (r.proofs is not null and old.applied_at < now() - interval '1 hour'
                     and old.next_position < (select next_position from usage.sources as s where s.source = old.source))))
    then
        return old;
    end if;
    raise exception 'usage.applied_chunks is append-only: % refused', lower(tg_op) using errcode = 'TB001';
end $$
--;
-- Whether a source's chunk may be folded: its period is closed, or it is an hour old and not the last.
create function usage.is_foldable(applied_at timestamptz, next_position bigint, closed timestamptz, reached bigint)
returns boolean language sql stable as $$
    select coalesce(applied_at < closed, false) or (applied_at < now() - interval '1 hour' and next_position < reached)
$$
--;
-- Fold chunks, a source's oldest first, `most` at a time; returns how many. A source has its turn when a period is
-- closed, and in between when its oldest chunk is two hours old, so that a range holds about an hour. The application
-- may not delete them itself.
create or replace function usage.fold_applied_chunks(most integer) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    closed timestamptz := (select closed_before from usage.ingest_rules);
    bound  timestamptz := greatest(closed, now() - interval '2 hours');
    name    text;
    reached bigint;
    piece  record;
    folded integer := 0;
begin
    update usage.applied_ranges set proofs = null where proofs is not null and last_applied_at < closed;
    for name, reached in
        select source, next_position from usage.sources as s where ingest_no > 1 and bound > (
            select applied_at from usage.applied_chunks as c where c.source = s.source order by first_position limit 1)
        order by source
    loop
        for piece in
            with oldest as (
                select first_position, next_position,
                    usage.is_foldable(applied_at, next_position, closed, reached) as old,
                    coalesce(applied_at < closed, false) as is_closed,
                    next_position - first_position = applied + duplicates + quarantined as whole
                from usage.applied_chunks where source = name order by first_position limit most - folded
            ), beside as (
                select *, bool_and(old) over by_position as all_old,
                    coalesce(lag(next_position) over by_position = first_position and whole
                             and lag(whole) over by_position and lag(is_closed) over by_position = is_closed,
                             false) as follows
                from oldest window by_position as (order by first_position)
            ), numbered as (
                select *, count(*) filter (where not follows) over (order by first_position) as run_no
                from beside where all_old
            )
            select min(first_position) as first, max(next_position) as after, count(*) as chunks,
                bool_and(is_closed) as is_closed
            from numbered group by run_no having count(*) > 1 order by 1
        loop
            insert into usage.applied_ranges (source, first_position, next_position, chunks, applied, duplicates,
                retimed, quarantined, late, digest, first_applied_at, last_applied_at, proofs)
            select name, piece.first, piece.after, f.*,
                case when not piece.is_closed then usage.proofs_of(name, piece.first, piece.after) end
            from usage.fold_of(name, piece.first, piece.after) as f;
            delete from usage.applied_chunks
            where source = name and first_position >= piece.first and first_position < piece.after;
            folded := folded + piece.chunks;
        end loop;
        exit when folded >= most;
    end loop;
    return folded;
end $$
"""


def upgrade() -> None:
    """Let chunks be folded before their period is closed."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """As it was, as long as no proof would be lost."""
    lost = op.get_bind().exec_driver_sql("select exists (select from usage.applied_ranges where proofs is not null)")
    if lost.scalar():
        raise NotImplementedError(
            "proofs of a period that is not closed lie in ranges: restore a backup from before 0037"
        )
    op.execute("drop function usage.is_foldable(timestamptz, bigint, timestamptz, bigint)")
    op.execute("drop function usage.proofs_of(text, bigint, bigint)")
    op.execute("alter table usage.applied_ranges drop column proofs")
    for statement in import_module("migrations.versions.0024_applied_ranges").STATEMENTS.split("\n--;\n"):
        if any(f"create function usage.{name}(" in statement for name in REPLACED):
            op.execute(statement.replace("create function", "create or replace function", 1))
