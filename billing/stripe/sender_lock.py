"""One sender for a billing account, held as long as its session lives."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, func, select


def lock_account(connection: Connection, billing_account: str) -> bool:
    """Become the one sender for a billing account, for as long as the session lives; False if there is another."""
    with connection.begin():
        return bool(connection.execute(select(func.pg_try_advisory_lock(_lock_key(billing_account)))).scalar())


def unlock_account(connection: Connection, billing_account: str) -> None:
    """Let others send."""
    with connection.begin():
        connection.execute(select(func.pg_advisory_unlock(_lock_key(billing_account))))


def _lock_key(billing_account: str) -> ColumnElement[int]:
    return func.hashtextextended(f"send/{billing_account}", 0)
