"""No account goes back from reconciled by itself: the states never had that step, only the table took it.

Revision ID: 0057
"""

from __future__ import annotations

from alembic import op

revision = "0057"
down_revision = "0056"
branch_labels = None
depends_on = None

STEPS = """
alter table ledger.close_transitions drop constraint {before}, add constraint {after} check (case
    when billing_account = '' then (from_state, event, to_state) = ('open', 'close', 'closed')
    when event = 'park' then to_state = 'parked'
        and from_state in ('collecting', 'frozen', 'drafted', 'reconciled', 'approved', 'finalized')
    when event = 'release' then from_state = 'parked'
        and to_state in ('collecting', 'frozen', 'drafted', 'reconciled', 'approved', 'finalized')
    when event = 'reopen' then to_state = 'collecting'
        and from_state in ('frozen', 'drafted', 'reconciled', 'approved', 'closed', 'parked')
    else (from_state, event, to_state) in (
        ('open', 'collect', 'collecting'), ('collecting', 'freeze', 'frozen'), ('frozen', 'draft', 'drafted'),
        ('drafted', 'reconcile', 'reconciled'), ('reconciled', 'approve', 'approved'),
        ('approved', 'finalize', 'finalized'), ('finalized', 'close', 'closed'),
        {more}('approved', 'return', 'drafted'))
end)
"""


def upgrade() -> None:
    """Take the step away, and give the check a name."""
    op.execute(STEPS.format(before="close_transitions_check1", after="close_transitions_steps", more=""))


def downgrade() -> None:
    """Give it back."""
    more = "('reconciled', 'return', 'drafted'), "
    op.execute(STEPS.format(before="close_transitions_steps", after="close_transitions_check1", more=more))
