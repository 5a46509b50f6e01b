"""What of paid credits is expected never to be used: dated estimates per legal entity, and an account for it.

Revision ID: 0071
"""

from __future__ import annotations

from alembic import op

revision = "0071"
down_revision = "0070"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- Bitemporal by addition: at a moment holds the row with the latest valid_from up to it, of these the one recorded last.
-- `share` of what is paid is expected never to be used; null: breakage is known at expiry alone.
create table ledger.breakage_estimates (
    breakage_estimate_no bigint       generated always as identity primary key,
    legal_entity         text         not null references ledger.legal_entities,
    share                ledger.price check (share > 0 and share < 1),
    valid_from           timestamptz  not null,
    document             text         not null check (document <> ''),
    recorded_at          timestamptz  not null default clock_timestamp(),
    recorded_by          text         not null
)
--;
create index on ledger.breakage_estimates (legal_entity, valid_from)
--;
create trigger append_only before update or delete on ledger.breakage_estimates
    for each row execute function ledger.refuse_change()
--;
create trigger append_only_truncate before truncate on ledger.breakage_estimates
    for each statement execute function ledger.refuse_change()
--;
insert into ledger.chart_of_accounts (code, name, type, subledger, in_quanta)
    values (2105, 'expected_breakage', 'liability', 'grant', false)
"""


def upgrade() -> None:
    """Create the table with its guards, and add 2105 to the chart."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop it, as long as nothing was posted to 2105: what was estimated is lost."""
    op.execute("alter table ledger.chart_of_accounts disable trigger append_only")
    op.execute("delete from ledger.chart_of_accounts where code = 2105")
    op.execute("alter table ledger.chart_of_accounts enable trigger append_only")
    op.execute("drop table ledger.breakage_estimates")
