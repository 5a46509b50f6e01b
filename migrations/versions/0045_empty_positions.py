"""Positions of a chunk that the log has proved to hold no message: transactions' markers, and what was aborted.

They are counted in the chunk, so that one chunk reaches over them, and chunks that follow one another fold as ever.

Revision ID: 0045
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from alembic import op

revision = "0045"
down_revision = "0044"
branch_labels = None
depends_on = None

OUTCOMES = "applied + duplicates + quarantined"
# What each function says otherwise, in the words of the revision that it comes from
CHANGED = {
    ("0024_applied_ranges", "fold_of"): (
        ("late bigint,\n    digest", "late bigint, empty bigint,\n    digest"),
        ("sum(c.late),\n", "sum(c.late), sum(c.empty),\n"),
    ),
    ("0037_early_proofs", "guard_applied_range"): (
        ("late, digest,", "late, empty, digest,"),
        ("new.late, new.digest,", "new.late, new.empty, new.digest,"),
    ),
    ("0037_early_proofs", "fold_applied_chunks"): (
        (OUTCOMES + " as whole", OUTCOMES + " + empty as whole"),
        ("retimed, quarantined, late, digest,", "retimed, quarantined, late, empty, digest,"),
        # What was left before the last range has no neighbour that it could fold with, and never will
        (
            "where c.source = s.source order by",
            "where c.source = s.source and c.first_position >= usage.folded_to(s.source) order by",
        ),
        (
            "where source = name order by",
            "where source = name and first_position >= usage.folded_to(name) order by",
        ),
    ),
}

FOLDED_TO = """
create function usage.folded_to(of_source text) returns bigint language sql stable as $$
    select coalesce((select next_position from usage.applied_ranges where source = of_source
                     order by first_position desc limit 1), 0)
$$
"""
VIEW = """
create or replace view usage.applied_positions as
    select source, first_position, next_position, applied, duplicates, retimed, quarantined, late,
        last_applied_at as applied_at, empty
    from usage.applied_ranges
    union all
    select source, first_position, next_position, applied, duplicates, retimed, quarantined, late, applied_at, empty
    from usage.applied_chunks
"""
CHECK = "next_position - first_position = " + OUTCOMES


def upgrade() -> None:
    """Count empty positions, fold over them, and begin to fold behind what was left before."""
    for table in ("applied_chunks", "applied_ranges"):
        kind = "integer" if table == "applied_chunks" else "bigint"
        op.execute(
            f"alter table usage.{table} add column empty {kind} not null default 0"
            f" constraint {table}_empty_check check (empty >= 0)"
        )
        name = _check_of(table)
        op.execute(f"alter table usage.{table} drop constraint {name}, add constraint {name} check ({CHECK} + empty)")
    op.execute(FOLDED_TO)
    op.execute(VIEW)
    op.execute("drop function usage.fold_of(text, bigint, bigint)")
    for statement, changes in _functions():
        for was, now in changes:
            assert statement.count(was) == 1, was
            statement = statement.replace(was, now)
        op.execute(statement)


def downgrade() -> None:
    """As it was, as long as no chunk reaches over empty positions."""
    for table in ("applied_chunks", "applied_ranges"):
        if op.get_bind().exec_driver_sql(f"select exists (select from usage.{table} where empty > 0)").scalar():
            raise NotImplementedError("chunks reach over empty positions: restore a backup from before 0045")
    op.execute("drop view usage.applied_positions")
    op.execute("drop function usage.fold_of(text, bigint, bigint)")
    for statement, _ in _functions():
        op.execute(statement)
    op.execute("drop function usage.folded_to(text)")
    for table in ("applied_chunks", "applied_ranges"):
        name = _check_of(table)
        op.execute(
            f"alter table usage.{table} drop constraint {name}, drop column empty,"
            f" add constraint {name} check ({CHECK})"
        )
    op.execute(VIEW.replace(" or replace", "").replace(", empty", ""))


def _functions() -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    """What creates each function as it was, or replaces it, and how it changes."""
    for (module, name), changes in CHANGED.items():
        for statement in import_module(f"migrations.versions.{module}").STATEMENTS.split("\n--;\n"):
            for begin in ("create function", "create or replace function"):
                if f"{begin} usage.{name}(" in statement:
                    yield statement.replace(begin, "create or replace function", 1), changes


def _check_of(table: str) -> str:
    """The name of the check that compares positions with outcomes."""
    found = op.get_bind().exec_driver_sql(
        "select conname from pg_constraint where conrelid = %s::regclass and contype = 'c'"
        " and pg_get_constraintdef(oid) like '%%next_position - first_position%%'",
        (f"usage.{table}",),
    )
    return str(found.scalar_one())
