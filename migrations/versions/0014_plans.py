"""Plans and subscriptions stored whole: terms, declared metrics, seats; rated lines of every kind.

Revision ID: 0014
"""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- What the plan says beside its versions. Only terms that differ from the defaults are in it.
alter table ledger.price_plans
    add column terms   jsonb  not null default '{}' check (jsonb_typeof(terms) = 'object'),
    add column metrics text[] not null default '{}'
--;
-- A contract: terms by the moment it was made, so that a plan's later terms change nobody's bills.
alter table ledger.subscriptions
    add column terms         jsonb   not null default '{}' check (jsonb_typeof(terms) = 'object'),
    add column seats         integer check (seats >= 0),
    add column begins_plan   boolean not null default true,
    add column trial_ends_at timestamptz check (trial_ends_at >= starts_at)
--;
-- Lines of a whole period (minimum, true-up, invoice discount) belong to no segment; not every line has a unit price.
alter table ledger.rated_lines
    drop constraint rated_lines_segment_no_check,
    add constraint rated_lines_segment_no_check check (segment_no >= 0),
    alter column unit_price drop not null,
    add column tax_group text not null default 'std',
    add column units     ledger.quantity,
    add column free      ledger.quantity not null default 0,
    add column included  ledger.quantity
--;
alter table ledger.invoice_lines
    alter column unit_price drop not null,
    add column units     ledger.quantity,
    add column free      ledger.quantity not null default 0,
    add column included  ledger.quantity
"""


def upgrade() -> None:
    """Add the columns."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop them. Lines that need them would be lost with it: the constraints then refuse."""
    op.execute("alter table ledger.invoice_lines drop column units, drop column free, drop column included,"
               " alter column unit_price set not null")  # fmt: skip
    op.execute("alter table ledger.rated_lines drop column tax_group,"
               " drop column units, drop column free, drop column included, alter column unit_price set not null,"
               " drop constraint rated_lines_segment_no_check,"
               " add constraint rated_lines_segment_no_check check (segment_no >= 1)")  # fmt: skip
    op.execute("alter table ledger.subscriptions drop column terms, drop column seats, drop column begins_plan,"
               " drop column trial_ends_at")  # fmt: skip
    op.execute("alter table ledger.price_plans drop column terms, drop column metrics")
