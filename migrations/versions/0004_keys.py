"""Access keys: who may send events, ask for quota, or speak for a tenant. Only hashes of secrets are kept.

Revision ID: 0004
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0002"
branch_labels = None
depends_on = None

STATEMENTS = """
-- A key never changes; that it no longer holds is a further fact.
create table usage.access_keys (
    key_id        text        primary key check (key_id ~ '^key_[0-9a-f]{12}$'),
    kind          text        not null check (kind in ('emitter', 'quota', 'tenant')),
    name          text        not null check (name ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$'),
    secret_sha256 bytea       not null unique check (length(secret_sha256) = 32),
    all_tenants   boolean     not null,
    tenants       text[]      not null check (array_position(tenants, null) is null),
    created_at    timestamptz not null default now(),
    check (all_tenants or cardinality(tenants) > 0),
    check (kind <> 'tenant' or (not all_tenants and cardinality(tenants) = 1))
);

create table usage.key_revocations (
    key_id     text        primary key references usage.access_keys,
    revoked_at timestamptz not null default now()
);
"""

TABLES = ("key_revocations", "access_keys")


def upgrade() -> None:
    """Create the tables, guarded against edits by trigger."""
    for statement in STATEMENTS.split(";\n\n"):
        op.execute(statement)
    for table in TABLES:
        op.execute(
            f"create trigger append_only before update or delete on usage.{table}"
            " for each row execute function usage.refuse_change()"
        )
        op.execute(
            f"create trigger append_only_truncate before truncate on usage.{table}"
            " for each statement execute function usage.refuse_change()"
        )


def downgrade() -> None:
    """Drop the tables."""
    for table in TABLES:
        op.execute(f"drop table usage.{table}")
