"""The database for billing: one engine, one way to open a transaction."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Final, ParamSpec, TypeVar

import psycopg
from psycopg.adapt import Dumper
from sqlalchemy import Connection, Engine, Table, event, text
from sqlalchemy import create_engine as _create_engine
from sqlalchemy.exc import DBAPIError, OperationalError

from billing.errors import NotAnAmount
from streams.database import CONNECT_WITHIN_S, KEPT_ALIVE, SERVER_GONE, role_option, unavailable
from streams.errors import DatabaseUnavailable

SENDERS_MAX: Final = 32
"""How many invoices are sent at a time; each holds one connection."""
POOL_SIZE: Final = SENDERS_MAX + 2
TRY_AGAIN: Final = ("40001", "40P01")
ATTEMPTS: Final = 8
"""Eight that lose in a row, with pauses that grow to seconds, are no coincidence: a person should see the error."""
PAUSE_S: Final = 0.01
ROWS_MAX: Final = 2_000
"""Some megabytes of text, whatever is added."""

Result = TypeVar("Result")
Given = ParamSpec("Given")


def engine_for(url: str) -> Engine:
    """An engine for a `postgresql://` URL. Its sessions speak UTC, work as the application's role, send no float, and
    end with their locks (`billing/stripe/sender_lock.py`) when one of their ends is gone."""
    engine = _create_engine(
        "postgresql+psycopg://" + url.split("://", 1)[1],
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": CONNECT_WITHIN_S,
            "options": "-c timezone=UTC" + KEPT_ALIVE + role_option(),
            "application_name": "tollbook-billing",
            **SERVER_GONE,
        },
    )
    event.listen(engine, "connect", _refuse_floats)
    return engine


class _NoFloat(Dumper):
    def dump(self, obj: object) -> bytes:
        raise NotAnAmount(f"{obj!r} is a float: what goes to the ledger's database is exact")


def _refuse_floats(opened: psycopg.Connection, _: object) -> None:
    opened.adapters.register_dumper(float, _NoFloat)


@contextmanager
def transaction(engine: Engine | Connection, *, dry_run: bool = False) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back on an error, and in a dry run always.

    Commands commit here and nowhere else. Given a connection that is in a transaction, this is a part of that one:
    so a preview puts commands together and takes all of it back. Raises DatabaseUnavailable when there is no database.
    """
    with nullcontext(engine) if isinstance(engine, Connection) else connection(engine) as opened:
        begun = opened.begin_nested() if opened.in_transaction() else opened.begin()
        try:
            yield opened
            if dry_run:
                begun.rollback()
            else:
                begun.commit()
        except BaseException:
            begun.rollback()
            raise


@contextmanager
def one_moment(engine: Engine | Connection) -> Iterator[Connection]:
    """A transaction that only reads, and sees one moment. Given a connection it sees what that transaction does."""
    with transaction(engine) as opened:
        if not isinstance(engine, Connection):
            opened.execute(text("set transaction isolation level repeatable read, read only"))
        yield opened


def retrying(command: Callable[Given, Result]) -> Callable[Given, Result]:
    """A command that is done again where the database asks for it, so that parallel posting is nobody's business.

    It asks by a serialisation failure (40001) or a deadlock (40P01): nothing of the transaction happened then. All that
    the command does is in its transactions, and those before the one that failed can be repeated. Given a connection it
    is a part of another's transaction, which can only be done again as a whole. After `ATTEMPTS` the error is raised.
    """

    @wraps(command)
    def done(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        within = any(isinstance(each, Connection) for each in (*args, *kwargs.values()))
        return _again(lambda: command(*args, **kwargs), 1 if within else ATTEMPTS)

    return done


def retried(engine: Engine, work: Callable[[Connection], Result], *, attempts: int = ATTEMPTS) -> Result:
    """Do some work in a transaction of its own, again where the database asks for it, and return what it returns.

    `work` has no effect outside its transaction. After `attempts` the error is raised.
    """

    def once() -> Result:
        with transaction(engine) as opened:
            return work(opened)

    return _again(once, attempts)


def _again(work: Callable[[], Result], attempts: int) -> Result:
    for attempt in range(1, attempts + 1):
        try:
            return work()
        except DBAPIError as error:
            if attempt == attempts or getattr(error.orig, "sqlstate", None) not in TRY_AGAIN:
                raise
            time.sleep(random.uniform(0, PAUSE_S * 2**attempt))
    raise AssertionError("attempts is at least 1")


@contextmanager
def connection(engine: Engine) -> Iterator[Connection]:
    """A connection, for reading or for several transactions one after another. Raises DatabaseUnavailable."""
    try:
        opened = engine.connect()
    except OperationalError as error:
        raise unavailable(error.orig or error) from None
    with opened:
        yield opened


def add_rows(opened: Connection, table: Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Add many rows that have the same columns: a statement for thousands, not for each. Raises NotAnAmount."""
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float):  # JSON would take it as a number
                raise NotAnAmount(f"{name} {value!r} is a float: what goes to the ledger's database is exact")
    for first in range(0, len(rows), ROWS_MAX):
        part = rows[first : first + ROWS_MAX]
        columns = ", ".join(part[0])
        given = f"jsonb_populate_recordset(cast(null as {table}), cast(:rows as jsonb))"
        query = f"insert into {table} ({columns}) select {columns} from {given}"
        opened.execute(text(query), {"rows": json.dumps(part, default=str)})


def raw(opened: Connection) -> psycopg.Connection:
    """The psycopg connection beneath, in the same transaction: for the stores of `streams`."""
    driver = opened.connection.driver_connection
    assert isinstance(driver, psycopg.Connection), "the engine is made by engine_for"
    return driver


__all__ = [
    "DatabaseUnavailable", "connection", "engine_for", "one_moment", "raw", "retried", "retrying", "transaction",
]  # fmt: skip
