"""Running totals of each source beside its position; the last minute's chunks without reading them all.

Revision ID: 0021
"""

from __future__ import annotations

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = """
alter table usage.sources
    add column applied         bigint not null default 0,
    add column duplicates      bigint not null default 0,
    add column quarantined     bigint not null default 0,
    add column late            bigint not null default 0,
    add column last_applied_at timestamptz
--;
update usage.sources as s set applied = c.applied, duplicates = c.duplicates, quarantined = c.quarantined,
    late = c.late, last_applied_at = c.last_applied_at
from (select source, sum(applied) as applied, sum(duplicates) as duplicates, sum(quarantined) as quarantined,
          sum(late) as late, max(applied_at) as last_applied_at
      from usage.applied_chunks group by source) as c
where c.source = s.source
--;
-- Chunks are only appended, so that their pages lie in the order of time: a few kilobytes for millions of rows, and no
-- page of it to write for each chunk, as a b-tree would have. What is newest is not summarised yet, and is what is asked
-- for; autosummarize keeps that short, where a vacuum of a large table comes once in days.
create index applied_chunks_applied_at on usage.applied_chunks using brin (applied_at)
    with (pages_per_range = 32, autosummarize = on)
"""


def upgrade() -> None:
    """Add the columns, filled from the chunks, and the index."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop them."""
    op.execute("drop index usage.applied_chunks_applied_at")
    op.execute(
        "alter table usage.sources drop column applied, drop column duplicates, drop column quarantined,"
        " drop column late, drop column last_applied_at"
    )
