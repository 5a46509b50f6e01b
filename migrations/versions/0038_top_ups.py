"""Top-ups: rules by which credit is bought where it runs low, and which credits are such.

Revision ID: 0038
"""

from __future__ import annotations

from alembic import op

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- Bitemporal by addition, one rule at a moment for an account: the latest valid_from up to it, of these the one recorded
-- last. Where what is left falls below `below`, `amount` is bought, up to `monthly_limit` in a calendar month (UTC).
-- Without an amount the account has no rule from then on.
create table ledger.top_up_rules (
    top_up_rule_no  bigint          generated always as identity primary key,
    billing_account text            not null,
    currency        ledger.currency not null,
    below           ledger.amount   check (below >= 0),
    amount          ledger.amount   check (amount > 0),
    monthly_limit   ledger.amount   check (monthly_limit >= amount),
    expires_months  smallint        check (expires_months between 1 and 120),
    valid_from      timestamptz     not null,
    recorded_at     timestamptz     not null default clock_timestamp(),
    recorded_by     text            not null,
    foreign key (billing_account, currency) references ledger.billing_accounts (billing_account, currency),
    check ((below is null) = (amount is null) and (monthly_limit is null) = (amount is null))
)
--;
create index on ledger.top_up_rules (billing_account, valid_from)
--;
-- A credit that was bought as a top-up: by a rule, or by hand.
create table ledger.top_ups (
    grant_id       text   primary key references ledger.credit_grants,
    top_up_rule_no bigint references ledger.top_up_rules
)
"""

APPEND_ONLY = ("top_up_rules", "top_ups")


def upgrade() -> None:
    """Create the tables with their guards."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)
    for table in APPEND_ONLY:
        op.execute(
            f"create trigger append_only before update or delete on ledger.{table}"
            " for each row execute function ledger.refuse_change()"
        )
        op.execute(
            f"create trigger append_only_truncate before truncate on ledger.{table}"
            " for each statement execute function ledger.refuse_change()"
        )


def downgrade() -> None:
    """Drop them: the credits stay."""
    op.execute("drop table ledger.top_ups")
    op.execute("drop table ledger.top_up_rules")
