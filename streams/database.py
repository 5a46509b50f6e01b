"""Connecting to the database."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import psycopg

from streams.errors import DatabaseUnavailable
from streams.settings import application_role

CONNECT_WITHIN_S: Final = 10
SILENT_AT_MOST_S: Final = 6
"""Like a worker's session in its group: who is silent for longer in mid-transaction loses it, and the row it locks."""
KEPT_ALIVE: Final = " -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=5"
"""Of a session's options: whose machine is gone loses the session, and its locks, within a quarter of a minute."""
SERVER_GONE: Final[Mapping[str, Any]] = {
    "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 5, "tcp_user_timeout": 15_000
}  # fmt: skip
"""The same the other way round, for the driver."""
_SESSION: Final = (
    "-c timezone=UTC"
    f" -c idle_in_transaction_session_timeout={SILENT_AT_MOST_S}s"
    " -c client_connection_check_interval=1s" + KEPT_ALIVE
)


def role_option() -> str:
    """What a session's options say so that it works as the application's role; nothing where it is switched off."""
    role = application_role()
    return f" -c role={role}" if role else ""


def connect(
    url: str, *, autocommit: bool = True, application: str = "tollbook", as_login: bool = False
) -> psycopg.Connection:
    """A connection whose session speaks UTC, works as the application's role, and ends when one of its ends is gone.

    `as_login`: with the rights of the login itself, as migrations need them. Raises DatabaseUnavailable.
    """
    try:
        return psycopg.connect(
            url,
            autocommit=autocommit,
            connect_timeout=CONNECT_WITHIN_S,
            application_name=application,
            options=_SESSION + ("" if as_login else role_option()),
            **SERVER_GONE,
        )
    except psycopg.OperationalError as error:
        raise unavailable(error) from None
    except (psycopg.Error, ValueError):
        # The driver's text repeats the URL, and the URL may hold a password.
        raise DatabaseUnavailable("TOLLBOOK_DATABASE_URL is no URL that PostgreSQL's library understands") from None


def is_passing(error: Exception) -> bool:
    """Whether an error is about the database's state, so that the same may go through later.

    No SQLSTATE: the connection is gone. 08: connection, 25006: a standby now, 25P03: we were silent for too long,
    40: serialisation and deadlock, 53: disk, memory, connections used up, 55P03: a lock not to be had, 57: shut down,
    or a statement cancelled by a person or a time limit, 58: its files. And a row that goes into another partition
    since the statement began (`usage.add_identity_weeks`): a check that is violated, of a table, and none of its
    constraints.
    """
    if isinstance(error, DatabaseUnavailable | psycopg.InterfaceError):
        return True
    state: str | None = getattr(error, "sqlstate", None)
    if state is None:
        return isinstance(error, psycopg.OperationalError)
    if state == "23514" and isinstance(error, psycopg.Error):
        return error.diag.table_name is not None and error.diag.constraint_name is None
    return state.startswith(("08", "25006", "25P03", "40", "53", "55P03", "57", "58"))


@contextlib.contextmanager
def done_later() -> Iterator[None]:
    """Around what is done again and again anyway: the block ends where the database is away (`is_passing`)."""
    try:
        yield
    except (psycopg.Error, DatabaseUnavailable) as error:
        if not is_passing(error):
            raise


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
