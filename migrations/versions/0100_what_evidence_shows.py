"""For the evidence of a close: single events of tenants that are priced by them, as the second rating read them; and
what a gate shows beside its differences.

Revision ID: 0100
"""

from __future__ import annotations

from alembic import op

revision = "0100"
down_revision = "0099"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a table, append-only, and a column. `body`: JSON lines, compressed by gzip; `digest` is over the lines
    themselves. `shown`: rows, of R11 all movements, also those that nobody must explain."""
    op.execute(
        "alter table ledger.close_gate_results add column shown jsonb not null default '[]'"
        " check (jsonb_typeof(shown) = 'array')"
    )
    op.execute("""
create table ledger.close_events (
    cut_id    bigint      not null references ledger.close_cuts,
    tenant_id text        not null,
    events    bigint      not null check (events >= 0),
    body      bytea       not null,
    digest    text        not null,
    at        timestamptz not null default clock_timestamp(),
    primary key (cut_id, tenant_id)
)
""")
    op.execute(
        "create trigger append_only before update or delete on ledger.close_events"
        " for each row execute function ledger.refuse_change()"
    )
    op.execute(
        "create trigger append_only_truncate before truncate on ledger.close_events"
        " for each statement execute function ledger.refuse_change()"
    )


def downgrade() -> None:
    """Drop both."""
    op.execute("drop table ledger.close_events")
    op.execute("alter table ledger.close_gate_results drop column shown")
