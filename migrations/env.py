"""Alembic's environment: one chain for the schemas `usage` and `ledger`.

At the end the application's role gets its rights (`migrations/privileges.py`).

The database comes as the attribute `connection` of the configuration (`streams.schema`) or, for
`alembic` called by hand, from `TOLLBOOK_DATABASE_URL`.
"""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import Connection, create_engine

from migrations import privileges
from streams.settings import application_role


def migrate(connection: Connection) -> None:
    """Run the migrations in one transaction; a lock that is not to be had within 30 s fails instead of queueing."""
    context.configure(
        connection=connection,
        version_table="tollbook_schema_version",  # Alembic's own name may be another program's
        version_table_schema="public",
    )
    with context.begin_transaction():
        connection.exec_driver_sql("set local lock_timeout = '30s'")
        context.run_migrations()
        role = application_role()
        if role is not None and connection.exec_driver_sql("select to_regclass('ledger.postings')").scalar_one():
            privileges.grant(connection, role)


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    url = os.environ["TOLLBOOK_DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://", 1)
    with create_engine(url).connect() as opened:
        migrate(opened)
