"""What pools of GPUs cost an hour, dated and recorded: a memo book beside the ledger.

Revision ID: 0046
"""

from __future__ import annotations

from alembic import op

revision = "0046"
down_revision = "0045"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- Bitemporal by addition: at a moment holds the row with the latest valid_from up to it, of these the one recorded last.
create table ledger.gpu_pool_versions (
    gpu_pool_version_no bigint          generated always as identity primary key,
    pool                text            not null check (pool <> ''),
    currency            ledger.currency not null,
    valid_from          timestamptz     not null check (valid_from = date_trunc('hour', valid_from, 'UTC')),
    gpus                bigint          not null check (gpus >= 0),
    gpu_hour            ledger.price    not null check (gpu_hour >= 0),
    overhead_hour       ledger.price    not null check (overhead_hour >= 0),
    recorded_at         timestamptz     not null default clock_timestamp(),
    recorded_by         text            not null
)
--;
create index on ledger.gpu_pool_versions (pool, valid_from)
--;
create trigger append_only before update or delete on ledger.gpu_pool_versions
    for each row execute function ledger.refuse_change()
--;
create trigger append_only_truncate before truncate on ledger.gpu_pool_versions
    for each statement execute function ledger.refuse_change()
"""


def upgrade() -> None:
    """Create the table with its guards."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop it: what pools cost is lost, nothing that is booked depends on it."""
    op.execute("drop table ledger.gpu_pool_versions")
