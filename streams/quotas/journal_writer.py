"""Writing the journal, one batch after another, from the event loop.

A batch of entries is one prepared statement, sent and awaited on the loop itself: a thread's two changes of hands for
each batch would cost as much as ten decisions, and delay all of its answers. What is seldom, and may take long, is done
in a thread: connecting, batches with alerts, and trying again while the database is away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeVar

import psycopg
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn

from streams.database import connect, is_passing
from streams.errors import DatabaseUnavailable
from streams.quotas import journal
from streams.quotas.errors import Fenced
from streams.quotas.journal import Batch, Ownership
from streams.settings import DatabaseSettings

RETRY_S: Final = 0.2
_APPEND: Final = b"tollbook_append"
_APPEND_AND_TELL: Final = b"tollbook_append_and_tell"
Result = TypeVar("Result")


class JournalWriter:
    """Holds one batch at a time. `written` is told the number of each, `fenced` that there will be no more."""

    def __init__(
        self, database: DatabaseSettings, mine: Ownership, written: Callable[[int], None], fenced: Callable[[], None]
    ) -> None:
        self._database = database
        self._mine = mine
        self._written = written
        self._fenced = fenced
        self._loop = asyncio.get_running_loop()
        self._connection: psycopg.Connection | None = None
        self._sending: PGconn | None = None
        """The connection's, while it is the loop's and not a thread's."""
        self._socket = -1
        """Its descriptor: a connection that is lost does not know it any more."""
        self._batch: Batch | None = None
        self._no: int | None = None
        """Of the batch in hand, once the database has told it."""
        self._task: asyncio.Task[None] | None = None
        self._is_ending = False

    async def start(self) -> None:
        """Connect, if that is possible now."""
        await self._in_thread(self._connected)

    def write(self, batch: Batch) -> None:
        """Begin to write a batch; the one before it is written."""
        self._batch = batch
        pgconn = self._sending
        if pgconn is not None and not batch.alerts:
            given = [b"%d" % self._mine.shard, b"%d" % self._mine.epoch, batch.entries]
            try:
                if batch.decisions:
                    given.append(journal.decisions_text(batch.decisions))
                    pgconn.send_query_prepared(_APPEND_AND_TELL, given, param_formats=[0, 0, 1, 0])
                else:
                    pgconn.send_query_prepared(_APPEND, given, param_formats=[0, 0, 1])
                self._flush()
            except psycopg.Error:
                self._lose()
            else:
                return
        self._task = self._loop.create_task(self._write_in_thread(batch))

    def stop(self) -> None:
        """End; a batch that could not be written is not tried again."""
        self._is_ending = True
        self._detach()
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None and self._task is None:
            self._connection.close()

    # On the loop

    def _attach(self) -> None:
        if self._connection is not None and not self._connection.closed and not self._is_ending:
            self._sending = self._connection.pgconn
            self._socket = self._sending.socket
            self._loop.add_reader(self._socket, self._readable)

    def _detach(self) -> None:
        if self._sending is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._sending = None

    def _lose(self) -> None:
        """The connection is broken."""
        self._detach()
        if self._connection is not None:
            self._connection.close()

    def _flush(self) -> None:
        pgconn = self._sending
        assert pgconn is not None, "flushed while it is the loop's"
        if pgconn.flush():
            self._loop.add_writer(self._socket, self._writable)
        else:
            self._loop.remove_writer(self._socket)

    def _writable(self) -> None:
        try:
            self._flush()
        except psycopg.Error:
            self._again()

    def _readable(self) -> None:
        pgconn = self._sending
        assert pgconn is not None, "read while it is the loop's"
        try:
            pgconn.consume_input()
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:  # the statement is over
                    no, self._no = self._no, None
                    if no is not None:
                        self._batch = None
                        self._written(no)
                    return
                if result.status != ExecStatus.TUPLES_OK:
                    raise psycopg.OperationalError(result.get_error_message())
                if not result.ntuples:
                    self._detach()
                    self._fenced()
                    return
                self._no = int(result.get_value(0, 0) or b"")
        except psycopg.Error:
            self._again()

    def _again(self) -> None:
        """Write the batch in hand anew: nobody knows whether it is written, and written twice it is the same."""
        self._no = None
        self._lose()
        if self._batch is not None:
            self._task = self._loop.create_task(self._write_in_thread(self._batch))

    async def _write_in_thread(self, batch: Batch) -> None:
        self._detach()
        try:
            no = await self._in_thread(lambda: self._append(batch))
        except BaseException:
            if not self._is_ending:
                self._fenced()
            raise
        if no is None:
            self._fenced()
            return
        self._task = self._batch = None
        self._written(no)

    async def _in_thread(self, what: Callable[[], Result]) -> Result:
        found = await asyncio.to_thread(what)
        self._attach()
        return found

    # In a thread

    def _connected(self) -> psycopg.Connection | None:
        try:
            connection = connect(self._database.url, application="tollbook quota journal")
            for name, statement in (
                (_APPEND, journal.APPEND_PREPARED), (_APPEND_AND_TELL, journal.APPEND_AND_TELL_PREPARED)
            ):  # fmt: skip
                prepared = connection.pgconn.prepare(name, statement)
                if prepared.status != ExecStatus.COMMAND_OK:
                    raise psycopg.OperationalError(prepared.get_error_message())
        except (psycopg.Error, DatabaseUnavailable) as error:
            if not is_passing(error):
                raise
            return None
        self._connection = connection
        return connection

    def _append(self, batch: Batch) -> int | None:
        """Write a batch, as often as it takes; its number, or None if the shard has another owner."""
        while not self._is_ending:
            connection = self._connection
            if connection is None or connection.closed:
                connection = self._connected()
            try:
                if connection is not None:
                    return journal.append(connection, self._mine, batch)
            except Fenced:
                return None
            except psycopg.Error as error:
                if not is_passing(error):
                    raise
                if connection is not None:
                    connection.close()
            time.sleep(RETRY_S)
        return None
