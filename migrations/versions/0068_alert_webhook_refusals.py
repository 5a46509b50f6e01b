"""Alerts that a webhook has refused: they are told again later, and keep no other waiting.

Revision ID: 0068
"""

from __future__ import annotations

from alembic import op

revision = "0068"
down_revision = "0066"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the record of each refusal."""
    op.execute(
        "create table usage.alert_webhook_refusals ("
        " refusal_no bigint generated always as identity primary key,"
        " alert_id uuid not null references usage.alerts,"
        " status smallint not null check (status between 400 and 499),"
        " refused_at timestamptz not null default clock_timestamp())"
    )
    op.execute("create index on usage.alert_webhook_refusals (alert_id)")
    op.execute(
        "create trigger append_only before update or delete on usage.alert_webhook_refusals"
        " for each row execute function usage.refuse_change()"
    )
    op.execute(
        "create trigger append_only_truncate before truncate on usage.alert_webhook_refusals"
        " for each statement execute function usage.refuse_change()"
    )


def downgrade() -> None:
    """Take it away."""
    op.execute("drop table usage.alert_webhook_refusals")
