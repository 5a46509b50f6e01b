"""A finding that no look will find gone, a person lets stay: settled, by whom, why.

Revision ID: 0074
"""

from __future__ import annotations

from alembic import op

revision = "0074"
down_revision = "0073"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let a state be settled, with who did it."""
    op.execute("alter table usage.finding_states drop constraint finding_states_state_check")
    op.execute(
        "alter table usage.finding_states add column actor text,"
        " add constraint finding_states_state_check check (state in ('open', 'healed', 'settled')),"
        " add constraint finding_states_settled check ((state = 'settled') = (actor is not null))"
    )


def downgrade() -> None:
    """As before; findings that were settled stand as healed."""
    op.execute("alter table usage.finding_states drop constraint finding_states_settled, drop column actor")
    op.execute("alter table usage.finding_states drop constraint finding_states_state_check")
    op.execute("alter table usage.finding_states disable trigger append_only")
    op.execute("update usage.finding_states set state = 'healed' where state = 'settled'")
    op.execute("alter table usage.finding_states enable trigger append_only")
    op.execute(
        "alter table usage.finding_states add constraint finding_states_state_check check (state in ('open', 'healed'))"
    )
