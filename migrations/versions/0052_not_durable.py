"""Boots that served requests which no disk had hold back completeness, until a person writes them off.

Revision ID: 0052
"""

from __future__ import annotations

from alembic import op

revision = "0052"
down_revision = "0051"
branch_labels = None
depends_on = None

FINDINGS = "'no_farewell', 'clock_offset'"


def upgrade() -> None:
    """What heartbeats say of it; a finding of its own."""
    op.execute(
        "alter table usage.boots add column not_durable boolean not null default false, add column durable_to timestamptz"
    )
    _findings(f"{FINDINGS}, 'not_durable'")


def downgrade() -> None:
    """Take it away. Fails where such a boot was found: that is history."""
    _findings(FINDINGS)
    op.execute("alter table usage.boots drop column not_durable, drop column durable_to")


def _findings(known: str) -> None:
    name = "boot_findings_finding_check"
    op.execute(
        f"alter table usage.boot_findings drop constraint {name}, add constraint {name} check (finding in ({known}))"
    )
