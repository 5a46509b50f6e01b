"""The database's schema: bringing it to this version, and checking that it is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psycopg

from streams.database import CONNECT_WITHIN_S, connect, unavailable
from streams.errors import DatabaseUnavailable, RoleRefused, SchemaInTheWay, SchemaOutdated

MIGRATIONS: Final = Path(__file__).resolve().parent.parent / "migrations"
SCHEMAS: Final = ("usage", "ledger")
UPGRADE_LOCK: Final = 0x746F6C6C
"""The letters "toll": two upgrades at a time wait for each other."""


def newest() -> str:
    """The revision this version was written for: the last of the numbered migrations."""
    return max(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def upgrade(url: str) -> tuple[str | None, str]:
    """Bring the schema to the newest revision and return (before, after). Safe to repeat and to run twice at once."""
    from alembic import command  # half a second to import: only where it is needed
    from alembic.config import Config
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError

    from migrations.privileges import RoleMissing

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(
        "postgresql+psycopg://" + url.split("://", 1)[1], connect_args={"connect_timeout": CONNECT_WITHIN_S}
    )
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"select pg_advisory_xact_lock({UPGRADE_LOCK})")
            opened: psycopg.Connection = connection.connection.driver_connection  # type: ignore[assignment]
            _require_timescaledb(opened)
            before = _revision(opened)
            if before is None:
                _require_free_schemas(opened)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except OperationalError as error:
        raise unavailable(error.orig or error) from None
    except RoleMissing as error:
        raise RoleRefused(str(error)) from None
    finally:
        engine.dispose()
    return before, newest()


def check(url: str) -> str:
    """The schema's revision. Raises SchemaOutdated if it is not this version's."""
    # As the login itself: before the first upgrade there is no application's role
    with connect(url, as_login=True) as connection:
        found = _revision(connection)
    if found != newest():
        raise SchemaOutdated(
            f"the database is at revision {found or 'none'}, this version needs {newest()}: run `tollbook db upgrade`"
        )
    return newest()


def _revision(connection: psycopg.Connection) -> str | None:
    """The revision that the database is at, None if it is empty."""
    (known,) = connection.execute("select to_regclass('public.tollbook_schema_version')").fetchone() or (None,)
    row = connection.execute("select version_num from public.tollbook_schema_version").fetchone() if known else None
    return row[0] if row else None


def _require_free_schemas(connection: psycopg.Connection) -> None:
    """Raises SchemaInTheWay where a schema of our name is there that no migration of ours has made."""
    row = connection.execute("select nspname from pg_namespace where nspname = any(%s)", (list(SCHEMAS),)).fetchone()
    if row is not None:
        raise SchemaInTheWay(
            f"this database has a schema {row[0]} that is not Tollbook's: use another database, or rename it"
        )


def _require_timescaledb(connection: psycopg.Connection) -> None:
    """Create the extension if it is not there. Raises DatabaseUnavailable if the server does not have it."""
    if connection.execute("select 1 from pg_extension where extname = 'timescaledb'").fetchone():
        return
    if not connection.execute("select 1 from pg_available_extensions where name = 'timescaledb'").fetchone():
        raise DatabaseUnavailable("this PostgreSQL has no TimescaleDB: install postgresql-<major>-timescaledb")
    connection.execute("create extension timescaledb")
