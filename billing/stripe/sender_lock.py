"""One sender for a billing account, held as long as its session lives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import ColumnElement, Connection, func, select
from sqlalchemy.exc import DBAPIError

from billing.errors import CorrectionRefused


@contextmanager
def account_held(connection: Connection, billing_account: str) -> Iterator[bool]:
    """Be the one sender for a billing account; False if there is another. What is open at the end is rolled back."""
    held = lock_account(connection, billing_account)
    try:
        yield held
    finally:
        if held:
            _release(connection, billing_account)


@contextmanager
def only_sender(connection: Connection, billing_account: str) -> Iterator[None]:
    """The same for what one person asks for. Raises CorrectionRefused if there is another."""
    with account_held(connection, billing_account) as held:
        if not held:
            raise CorrectionRefused("another sender is at it: try again when it is done")
        yield


@contextmanager
def sync_held(connection: Connection) -> Iterator[None]:
    """Be the one that takes in what Stripe has; waits for another one that does."""
    key = func.hashtextextended("stripe/sync", 0)
    with connection.begin():
        connection.execute(select(func.pg_advisory_lock(key)))
    try:
        yield
    finally:
        with connection.begin():
            connection.execute(select(func.pg_advisory_unlock(key)))


def _release(connection: Connection, billing_account: str) -> None:
    if connection.in_transaction():
        connection.rollback()
    try:
        unlock_account(connection, billing_account)
    except DBAPIError:
        # The session, and with it the lock, is gone; whatever ended it is being raised already.
        connection.invalidate()


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
