"""Chunks of periods that are closed, folded into ranges.

Revision ID: 0024
"""

from __future__ import annotations

from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- Neighbouring chunks of a source as one row: what they came to, and a digest over theirs. A fact like them.
create table usage.applied_ranges (
    source           text        not null references usage.sources,
    first_position   bigint      not null,
    next_position    bigint      not null,
    chunks           bigint      not null check (chunks > 1),
    applied          bigint      not null,
    duplicates       bigint      not null,
    retimed          bigint      not null,
    quarantined      bigint      not null,
    late             bigint      not null,
    digest           bytea       not null,
    first_applied_at timestamptz not null,
    last_applied_at  timestamptz not null,
    folded_at        timestamptz not null default now(),
    primary key (source, first_position),
    check (next_position - first_position = applied + duplicates + quarantined)
)
--;
-- Whatever was applied, as ranges and as chunks that are not folded yet.
create view usage.applied_positions as
    select source, first_position, next_position, applied, duplicates, retimed, quarantined, late,
        last_applied_at as applied_at
    from usage.applied_ranges
    union all
    select source, first_position, next_position, applied, duplicates, retimed, quarantined, late, applied_at
    from usage.applied_chunks
--;
-- What the chunks of a source from one position to another come to, if they follow one another: a digest over
-- positions and digests, in order.
create function usage.fold_of(of_source text, first bigint, after bigint)
returns table (chunks bigint, applied bigint, duplicates bigint, retimed bigint, quarantined bigint, late bigint,
    digest bytea, first_applied_at timestamptz, last_applied_at timestamptz)
language sql stable as $$
    select count(*), sum(c.applied), sum(c.duplicates), sum(c.retimed), sum(c.quarantined), sum(c.late),
        sha256(string_agg(int8send(c.first_position) || int8send(c.next_position) || c.content_digest, ''::bytea
                          order by c.first_position)),
        min(c.applied_at), max(c.applied_at)
    from usage.applied_chunks as c
    where c.source = of_source and c.first_position >= first and c.first_position < after
    having min(c.first_position) = first and max(c.next_position) = after
        and sum(c.next_position - c.first_position) = after - first
$$
--;
create function usage.guard_applied_range() returns trigger language plpgsql as $$
begin
    if tg_op <> 'INSERT' then
        raise exception 'usage.applied_ranges is append-only: % refused', lower(tg_op) using errcode = 'TB001';
    end if;
    if not exists (
        select from usage.fold_of(new.source, new.first_position, new.next_position)
            as f (chunks, applied, duplicates, retimed, quarantined, late, digest, first_applied_at, last_applied_at)
        where row(f.*) is not distinct from row(new.chunks, new.applied, new.duplicates, new.retimed, new.quarantined,
            new.late, new.digest, new.first_applied_at, new.last_applied_at)
    ) then
        raise exception 'positions % to % of % are not what its chunks come to: insert refused',
            new.first_position, new.next_position, new.source using errcode = 'TB001';
    end if;
    return new;
end $$
--;
create trigger append_only before insert or update or delete on usage.applied_ranges
    for each row execute function usage.guard_applied_range()
--;
create trigger append_only_truncate before truncate on usage.applied_ranges
    for each statement execute function usage.refuse_change()
--;
-- A chunk goes only into a range that holds it, and only once the period in which it was applied is closed.
create function usage.guard_applied_chunk() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' and old.applied_at < (select closed_before from usage.ingest_rules) and exists (
        select from usage.applied_ranges as r where r.source = old.source
            and r.first_position <= old.first_position and r.next_position >= old.next_position)
    then
        return old;
    end if;
    raise exception 'usage.applied_chunks is append-only: % refused', lower(tg_op) using errcode = 'TB001';
end $$
--;
drop trigger append_only on usage.applied_chunks
--;
create trigger append_only before update or delete on usage.applied_chunks
    for each row execute function usage.guard_applied_chunk()
--;
-- Fold chunks that were applied before the time up to which periods are closed, a source's oldest first, `most` at a
-- time; returns how many. The application may not delete them itself.
create function usage.fold_applied_chunks(most integer) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    bound  timestamptz := (select closed_before from usage.ingest_rules);
    name   text;
    piece  record;
    folded integer := 0;
begin
    for name in
        select source from usage.sources as s where ingest_no > 1 and bound > (
            select applied_at from usage.applied_chunks as c where c.source = s.source order by first_position limit 1)
        order by source
    loop
        for piece in
            with oldest as (
                select first_position, next_position, applied_at < bound as old,
                    next_position - first_position = applied + duplicates + quarantined as whole
                from usage.applied_chunks where source = name order by first_position limit most - folded
            ), beside as (
                select *, bool_and(old) over by_position as all_old,
                    coalesce(lag(next_position) over by_position = first_position and whole
                             and lag(whole) over by_position, false) as follows
                from oldest window by_position as (order by first_position)
            ), numbered as (
                select *, count(*) filter (where not follows) over (order by first_position) as run_no
                from beside where all_old
            )
            select min(first_position) as first, max(next_position) as after, count(*) as chunks
            from numbered group by run_no having count(*) > 1 order by 1
        loop
            insert into usage.applied_ranges (source, first_position, next_position, chunks, applied, duplicates,
                retimed, quarantined, late, digest, first_applied_at, last_applied_at)
            select name, piece.first, piece.after, f.* from usage.fold_of(name, piece.first, piece.after) as f;
            delete from usage.applied_chunks
            where source = name and first_position >= piece.first and first_position < piece.after;
            folded := folded + piece.chunks;
        end loop;
        exit when folded >= most;
    end loop;
    return folded;
end $$
"""

UNDO = """
drop function usage.fold_applied_chunks(integer)
--;
drop trigger append_only on usage.applied_chunks
--;
create trigger append_only before update or delete on usage.applied_chunks
    for each row execute function usage.refuse_change()
--;
drop function usage.guard_applied_chunk()
--;
drop view usage.applied_positions
--;
drop table usage.applied_ranges
--;
drop function usage.guard_applied_range()
--;
drop function usage.fold_of(text, bigint, bigint)
"""


def upgrade() -> None:
    """Create the table of ranges and what folds chunks into it."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """As it was, as long as nothing was folded: ranges do not fall apart into chunks again."""
    if op.get_bind().exec_driver_sql("select exists (select from usage.applied_ranges)").scalar():
        raise NotImplementedError(
            "chunks of closed periods were folded, and are gone: restore a backup from before 0024"
        )
    for statement in UNDO.split("\n--;\n"):
        op.execute(statement)
