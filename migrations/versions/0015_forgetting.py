"""Identities are never forgotten of a time that is not closed, whoever says so.

Revision ID: 0015
"""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

GUARD = """
create or replace function usage.guard_ingest_rules() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' or new.forgotten_before is distinct from greatest(new.forgotten_before, old.forgotten_before)
        or new.sealed_before is distinct from greatest(new.sealed_before, old.sealed_before)
        or new.rating_bands_version < old.rating_bands_version
    then
        raise exception 'usage.ingest_rules only moves forward: % refused', lower(tg_op) using errcode = 'TB001';
    end if;
{beyond}    return new;
end $$
"""
# A period that is opened again moves closed_before back; what is forgotten stays forgotten.
BEYOND = """    if new.forgotten_before is distinct from old.forgotten_before
        and (new.closed_before is null or new.forgotten_before > new.closed_before)
    then
        raise exception 'identities of a time that is not closed are not forgotten: update refused'
            using errcode = 'TB001';
    end if;
"""


def upgrade() -> None:
    """Bound the forgetting by the periods that are closed."""
    op.execute(GUARD.format(beyond=BEYOND))


def downgrade() -> None:
    """As 0008 had it."""
    op.execute(GUARD.format(beyond=""))
