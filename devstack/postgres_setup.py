"""What the local PostgreSQL holds from the start: a role that is no superuser, its database, TimescaleDB in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devstack.errors import DevstackError

if TYPE_CHECKING:
    import psycopg

SUPERUSER = "postgres"
ROLE = "tollbook"
DATABASE = "tollbook"


def refusal(host: str, port: int, password: str) -> str | None:
    """None when the server answers a query; else its words."""
    import psycopg

    try:
        with _connect(host, port, password, "postgres") as connection:
            connection.execute("SELECT 1")
    except psycopg.OperationalError as error:
        return str(error).strip().splitlines()[-1]
    return None


def complete(host: str, port: int, superuser_password: str, role_password: str) -> None:
    """Make what is missing; what is there stays as it is, but for the role's password and TimescaleDB's version.

    The role is no superuser, so that what the database refuses (an edited ledger entry) stays refused, as in
    production. It may create databases and roles: tests and migrations do.
    """
    from psycopg import sql

    with _connect(host, port, superuser_password, "postgres") as connection:
        role = sql.Identifier(ROLE)
        if not _exists(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", ROLE):
            connection.execute(sql.SQL("CREATE ROLE {}").format(role))
        connection.execute(
            sql.SQL("ALTER ROLE {} LOGIN CREATEDB CREATEROLE PASSWORD {}").format(role, sql.Literal(role_password))
        )
        if not _exists(connection, "SELECT 1 FROM pg_database WHERE datname = %s", DATABASE):
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(DATABASE), role))
    with _connect(host, port, superuser_password, DATABASE) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        outdated = "SELECT 1 FROM pg_available_extensions WHERE name = %s AND installed_version <> default_version"
        if not _exists(connection, outdated, "timescaledb"):
            return
    # In a session of its own, as TimescaleDB asks: nothing of the old version may be loaded yet
    with _connect(host, port, superuser_password, DATABASE) as connection:
        connection.execute("ALTER EXTENSION timescaledb UPDATE")


def check_elsewhere(url: str) -> None:
    """Raise DevstackError unless the database at `url` answers and offers TimescaleDB."""
    import psycopg

    try:
        with psycopg.connect(url, connect_timeout=10, application_name="devstack") as connection:
            offered = _exists(connection, "SELECT 1 FROM pg_available_extensions WHERE name = %s", "timescaledb")
    except psycopg.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise DevstackError(
            f"PostgreSQL: {reason}\n"
            "TOLLBOOK_DATABASE_URL is set in this shell; without it (unset TOLLBOOK_DATABASE_URL) a local one is used."
        ) from None
    if not offered:
        raise DevstackError("The PostgreSQL that TOLLBOOK_DATABASE_URL names has no TimescaleDB: install it there.")


def _exists(connection: psycopg.Connection[Any], query: Any, name: str) -> bool:
    return connection.execute(query, (name,)).fetchone() is not None


def _connect(host: str, port: int, password: str, database: str) -> psycopg.Connection[Any]:
    import psycopg

    return psycopg.connect(
        host=host, port=port, user=SUPERUSER, password=password, dbname=database,
        connect_timeout=5, autocommit=True, application_name="devstack",
    )  # fmt: skip
