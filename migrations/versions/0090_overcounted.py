"""A finding of its own: more is counted of a boot than it, or its engine, made.

Revision ID: 0090
"""

from __future__ import annotations

from alembic import op

revision = "0090"
down_revision = "0089"
branch_labels = None
depends_on = None

KINDS = (
    "lost_events", "duplicate_emitter", "clock_skew", "unmetered_requests", "wrong_tenant", "double_attempt",
    "gap_in_numbering", "unregistered_replica",
)  # fmt: skip


def upgrade() -> None:
    """Let the kind be."""
    _allow((*KINDS, "overcounted"))


def downgrade() -> None:
    """As before; what was found of the kind is gone."""
    for table, which in (
        ("finding_states", "finding_id in (select finding_id from usage.findings where kind = 'overcounted')"),
        ("findings", "kind = 'overcounted'"),
    ):
        op.execute(f"alter table usage.{table} disable trigger append_only")
        op.execute(f"delete from usage.{table} where {which}")
        op.execute(f"alter table usage.{table} enable trigger append_only")
    _allow(KINDS)


def _allow(kinds: tuple[str, ...]) -> None:
    listed = ", ".join(f"'{kind}'" for kind in kinds)
    op.execute(
        "alter table usage.findings drop constraint findings_kind_check,"
        f" add constraint findings_kind_check check (kind in ({listed}))"
    )
