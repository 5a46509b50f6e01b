"""A boot that was heard of again can be found to have broken off once more; the quota feed in few chunks.

Revision ID: 0101
"""

from __future__ import annotations

from alembic import op

revision = "0101"
down_revision = "0100"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One row for each time that something was found. Who reads the feed asks for its end without a bound in time, and
    planned for a chunk of each ten minutes that it is kept."""
    op.execute(
        "alter table usage.boot_findings drop constraint boot_findings_pkey,"
        " add primary key (replica_id, boot_id, finding, found_at)"
    )
    op.execute("select set_chunk_time_interval('usage.quota_feed', interval '6 hours')")


def downgrade() -> None:
    """One row for each finding again: the first."""
    op.execute("select set_chunk_time_interval('usage.quota_feed', interval '10 minutes')")
    op.execute("alter table usage.boot_findings disable trigger append_only")
    op.execute(
        "delete from usage.boot_findings as f where exists (select from usage.boot_findings as e"
        " where (e.replica_id, e.boot_id, e.finding) = (f.replica_id, f.boot_id, f.finding)"
        " and e.found_at < f.found_at)"
    )
    op.execute("alter table usage.boot_findings enable trigger append_only")
    op.execute(
        "alter table usage.boot_findings drop constraint boot_findings_pkey,"
        " add primary key (replica_id, boot_id, finding)"
    )
