"""Which corrections wait for what they correct; a source that is resolved again at the same place.

Revision ID: 0027
"""

from __future__ import annotations

from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = """
-- Orphans that wait in quarantine, under the key of what they correct: few, where the quarantine keeps all there ever were.
create table usage.waiting_orphans (
    quarantine_id bigint primary key references usage.quarantine,
    key           uuid   not null
)
--;
insert into usage.waiting_orphans
select quarantine_id, usage.identity_key(tenant_id, request_id, attempt, 'usage', 0) from usage.quarantine as q
where reason = 'orphan'
  and not exists (select from usage.quarantine_resolutions as r where r.quarantine_id = q.quarantine_id)
--;
drop index usage.quarantine_tenant_id_request_id_idx
--;
-- A row that passes over nothing, of which there are old ones, does not hinder one that does.
alter table usage.position_resolutions drop constraint position_resolutions_pkey,
    add primary key (source, from_position, to_position)
"""


def upgrade() -> None:
    """Create the table, filled from the quarantine."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """As it was; fails where a source was resolved twice from one position."""
    op.execute(
        "alter table usage.position_resolutions drop constraint position_resolutions_pkey,"
        " add primary key (source, from_position)"
    )
    op.execute("create index on usage.quarantine (tenant_id, request_id) where reason = 'orphan'")
    op.execute("drop table usage.waiting_orphans")
