"""What stands on documents about who invoices and who pays.

Revision ID: 0020
"""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

FIELDS = (
    "street", "street_2", "postal_code", "city", "region", "country", "tax_id", "registration", "email", "iban", "bic",
    "purchase_order", "reference",
)  # fmt: skip

STATEMENT = """
create table ledger.parties (
    party_no        bigint      generated always as identity primary key,
    legal_entity    text        references ledger.legal_entities,
    billing_account text        references ledger.billing_accounts,
    name            text        not null check (name <> '' and length(name) <= 200),
{fields}
    recorded_by     text        not null check (recorded_by <> ''),
    recorded_at     timestamptz not null default clock_timestamp(),
    check (num_nonnulls(legal_entity, billing_account) = 1),
    check (country ~ '^([A-Z]{{2}})?$')
)
"""


def upgrade() -> None:
    """Create the table. A change is a further row: what an issued document says is what was recorded before it."""
    lines = "\n".join(f"    {name} text not null default '' check (length({name}) <= 200)," for name in FIELDS)
    op.execute(STATEMENT.format(fields=lines))
    op.execute("create index on ledger.parties (legal_entity)")
    op.execute("create index on ledger.parties (billing_account)")
    for name, event, each in (
        ("append_only", "update or delete", "row"),
        ("append_only_truncate", "truncate", "statement"),
    ):
        op.execute(
            f"create trigger {name} before {event} on ledger.parties"
            f" for each {each} execute function ledger.refuse_change()"
        )


def downgrade() -> None:
    """Drop it."""
    op.execute("drop table ledger.parties")
