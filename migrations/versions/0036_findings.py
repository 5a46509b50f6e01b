"""What reconciliation finds: each thing once, and the states it goes through.

Revision ID: 0036
"""

from __future__ import annotations

from alembic import op

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- What is wrong, told by what it is about. The same thing that comes back after it was healed is its next occurrence.
create table usage.findings (
    finding_id uuid        primary key,
    finding_no bigint      generated always as identity unique,
    kind       text        not null check (kind in (
        'lost_events', 'duplicate_emitter', 'clock_skew', 'unmetered_requests', 'wrong_tenant', 'double_attempt',
        'gap_in_numbering', 'unregistered_replica')),
    subject    jsonb       not null,
    occurrence integer     not null check (occurrence >= 1),
    found_at   timestamptz not null,
    unique (kind, subject, occurrence)
)
--;
-- How a finding stands: a row where its size, time or cause has changed, and a last one where it is healed.
create table usage.finding_states (
    finding_id uuid        not null references usage.findings,
    state_no   integer     not null check (state_no >= 1),
    state      text        not null check (state in ('open', 'healed')),
    at         timestamptz not null,
    begins     timestamptz,
    ends       timestamptz check (ends >= begins),
    cause      text        not null,
    size       jsonb       not null,
    primary key (finding_id, state_no)
)
--;
create trigger append_only before update or delete on usage.findings
    for each row execute function usage.refuse_change()
--;
create trigger append_only_truncate before truncate on usage.findings
    for each statement execute function usage.refuse_change()
--;
create trigger append_only before update or delete on usage.finding_states
    for each row execute function usage.refuse_change()
--;
create trigger append_only_truncate before truncate on usage.finding_states
    for each statement execute function usage.refuse_change()
"""


def upgrade() -> None:
    """Add the tables."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop them."""
    op.execute("drop table usage.finding_states")
    op.execute("drop table usage.findings")
