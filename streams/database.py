"""Connecting to the database."""

from __future__ import annotations

from typing import Final

import psycopg

from streams.errors import DatabaseUnavailable
from streams.settings import application_role

CONNECT_WITHIN_S: Final = 10


def session_options(*, as_login: bool = False) -> str:
    """How a session begins: in UTC, and as the application's role unless it is `as_login` (migrations alone)."""
    role = None if as_login else application_role()
    return "-c timezone=UTC" + (f" -c role={role}" if role else "")


def connect(
    url: str, *, autocommit: bool = True, application: str = "tollbook", as_login: bool = False
) -> psycopg.Connection:
    """A connection whose session has `session_options`. Raises DatabaseUnavailable."""
    try:
        return psycopg.connect(
            url,
            autocommit=autocommit,
            connect_timeout=CONNECT_WITHIN_S,
            application_name=application,
            options=session_options(as_login=as_login),
        )
    except psycopg.OperationalError as error:
        raise unavailable(error) from None
    except (psycopg.Error, ValueError):
        # The driver's text repeats the URL, and the URL may hold a password.
        raise DatabaseUnavailable("TOLLBOOK_DATABASE_URL is no URL that PostgreSQL's library understands") from None


def is_passing(error: Exception) -> bool:
    """Whether an error is about the database's state, so that the same may go through later.

    No SQLSTATE: the connection is gone. 08: connection, 40: serialisation and deadlock, 53: disk, memory, connections
    used up, 55P03: a lock not to be had, 57P: shut down, 58: its files.
    """
    if isinstance(error, DatabaseUnavailable | psycopg.InterfaceError):
        return True
    state = getattr(error, "sqlstate", None)
    return isinstance(error, psycopg.OperationalError) and (
        state is None or state.startswith(("08", "40", "53", "55P03", "57P", "58"))
    )


def unavailable(error: Exception) -> DatabaseUnavailable:
    """The error for a person, without the connection's password."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    if f'role "{application_role()}"' in reason:
        return DatabaseUnavailable(
            f"this login cannot work as the role {application_role()}: run `tollbook db upgrade` as the owner of the"
            f" tables, and `grant {application_role()} to` the login (docs/decisions/0011-two-roles.md)"
        )
    return DatabaseUnavailable(f"no PostgreSQL: {reason}. Run `make up`, or set TOLLBOOK_DATABASE_URL")
