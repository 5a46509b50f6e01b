"""Plan versions are bitemporal: several may hold from one moment on, and the one recorded last does.

Revision ID: 0047
"""

from __future__ import annotations

from alembic import op

revision = "0047"
down_revision = "0046"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Number the versions in the order of recording; let one take the place of another."""
    op.execute("alter table ledger.plan_versions add column plan_version_no bigint generated always as identity unique")
    op.execute("alter table ledger.plan_versions drop constraint plan_versions_plan_valid_from_key")


def downgrade() -> None:
    """One version for each moment again. Where one took the place of another the constraint refuses."""
    op.execute(
        "alter table ledger.plan_versions add constraint plan_versions_plan_valid_from_key unique (plan, valid_from)"
    )
    op.execute("alter table ledger.plan_versions drop column plan_version_no")
