"""What is released from quarantine is fed to quotas under a few names, not one for each message.

Revision ID: 0088
"""

from __future__ import annotations

from alembic import op

revision = "0088"
down_revision = "0087"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Eight names, each with the number of its last commit; and an index over the sources that are their own."""
    op.execute(
        "create table usage.release_feeds (no integer primary key, name text not null unique,"
        " ingest_no bigint not null default 0)"
    )
    op.execute("insert into usage.release_feeds select n, 'releases/' || n from generate_series(0, 7) as n")
    op.execute(
        "create index sources_fed on usage.sources (source) where feed = 'usage' and source !~ '^(release|moved):'"
    )


def downgrade() -> None:
    """As before. A quota service that is started then begins with the windows, as always."""
    op.execute("drop index usage.sources_fed")
    op.execute("drop table usage.release_feeds")
