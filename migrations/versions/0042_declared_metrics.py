"""A plan's declared metrics are what its charges count, version by version: the list beside them is dropped.

Revision ID: 0042
"""

from __future__ import annotations

from alembic import op

revision = "0042"
down_revision = "0041"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop the list, which only the first file of a plan wrote."""
    op.execute("alter table ledger.price_plans drop column metrics")


def downgrade() -> None:
    """Make it again from the charges."""
    op.execute("alter table ledger.price_plans add column metrics text[] not null default '{}'")
    op.execute("alter table ledger.price_plans disable trigger append_only")
    op.execute(
        """
        update ledger.price_plans as p set metrics = array(
            select distinct charge ->> 'metric'
            from ledger.plan_versions as v, jsonb_array_elements(v.content -> 'charges') as charge
            where v.plan = p.plan and charge ->> 'metric' not in
                ('', 'input', 'cached_input', 'output', 'total_tokens', 'request', 'gpu_second')
            order by 1)
        """
    )
    op.execute("alter table ledger.price_plans enable trigger append_only")
