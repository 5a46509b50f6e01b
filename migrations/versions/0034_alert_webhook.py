"""Alerts that were told a webhook.

Revision ID: 0034
"""

from __future__ import annotations

from alembic import op

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the record of what a webhook has taken."""
    op.execute(
        "create table usage.alert_webhooks ("
        " alert_id uuid primary key references usage.alerts,"
        " taken_at timestamptz not null default clock_timestamp())"
    )
    op.execute("create index on usage.alerts (raised_at)")
    op.execute(
        "create trigger append_only before update or delete on usage.alert_webhooks"
        " for each row execute function usage.refuse_change()"
    )
    op.execute(
        "create trigger append_only_truncate before truncate on usage.alert_webhooks"
        " for each statement execute function usage.refuse_change()"
    )


def downgrade() -> None:
    """Take it away."""
    op.execute("drop table usage.alert_webhooks")
    op.execute("drop index usage.alerts_raised_at_idx1")
