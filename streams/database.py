"""Connecting to the database."""

from __future__ import annotations

from typing import Final

import psycopg

from streams.errors import DatabaseUnavailable

CONNECT_WITHIN_S: Final = 10


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
