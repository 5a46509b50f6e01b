"""Connecting to the database, and bringing its schema to this version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection as SqlAlchemyConnection
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from streams.errors import DatabaseUnavailable, SchemaOutdated

CONNECT_WITHIN_S: Final = 10
MIGRATIONS: Final = Path(__file__).resolve().parent.parent / "migrations"
UPGRADE_LOCK: Final = 0x746F6C6C  # "toll": two upgrades at a time wait for each other


def connect(url: str, *, autocommit: bool = True, application: str = "tollbook") -> psycopg.Connection:
    """A connection whose session speaks UTC. Raises DatabaseUnavailable."""
    try:
        return psycopg.connect(
            url,
            autocommit=autocommit,
            connect_timeout=CONNECT_WITHIN_S,
            application_name=application,
            options="-c timezone=UTC",
        )
    except psycopg.OperationalError as error:
        raise unavailable(error) from None


def unavailable(error: Exception) -> DatabaseUnavailable:
    """The error for a person, without the connection's password."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return DatabaseUnavailable(f"no PostgreSQL: {reason}. Run `make up`, or set TOLLBOOK_DATABASE_URL")


def upgrade(url: str) -> tuple[str | None, str]:
    """Bring the schema to the newest revision and return (before, after). Safe to repeat and to run twice at once."""
    with _migrating(url) as (connection, config):
        connection.exec_driver_sql(f"select pg_advisory_xact_lock({UPGRADE_LOCK})")
        if not connection.exec_driver_sql("select 1 from pg_extension where extname = 'timescaledb'").scalar():
            if not connection.exec_driver_sql(
                "select 1 from pg_available_extensions where name = 'timescaledb'"
            ).scalar():
                raise DatabaseUnavailable(
                    "this PostgreSQL has no TimescaleDB: install the package postgresql-<major>-timescaledb"
                )
            connection.exec_driver_sql("create extension timescaledb")
        before = _revision(connection)
        command.upgrade(config, "head")
        return before, _newest(config)


def check(url: str) -> str:
    """The schema's revision. Raises SchemaOutdated if it is not this version's."""
    with _migrating(url) as (connection, config):
        found, newest = _revision(connection), _newest(config)
    if found != newest:
        raise SchemaOutdated(
            f"the database is at revision {found or 'none'}, this version needs {newest}: run `tollbook db upgrade`"
        )
    return newest


@contextmanager
def _migrating(url: str) -> Iterator[tuple[SqlAlchemyConnection, Config]]:
    engine = create_engine(
        "postgresql+psycopg://" + url.split("://", 1)[1], connect_args={"connect_timeout": CONNECT_WITHIN_S}
    )
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            yield connection, config
    except OperationalError as error:
        raise unavailable(error.orig or error) from None
    finally:
        engine.dispose()


def _revision(connection: SqlAlchemyConnection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _newest(config: Config) -> str:
    newest = ScriptDirectory.from_config(config).get_current_head()
    assert newest is not None, "there is always a first migration"
    return newest
