"""What an answer that waits for a commit costs by itself: `python -m tests.benchmarks.quota_floor`.

The quota service's own HTTP server and journal writer with nothing between them: what comes in one turn of the loop is
one batch, while it is written the next one gathers, and an answer leaves when its batch is durable.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop

from streams.database import connect
from streams.quotas import journal
from streams.quotas.http_protocol import Call, Connections
from streams.quotas.journal import Batch
from streams.quotas.journal_writer import JournalWriter
from streams.settings import DatabaseSettings

ENTRY = b"x" * 70
"""As many bytes as an admission is in the journal."""
BODY = b"x" * 480


class Committing:
    """Answers each call once a batch that stands for it is written."""

    def __init__(self, database: DatabaseSettings, mine: journal.Ownership) -> None:
        self._loop = asyncio.get_running_loop()
        self.fenced = asyncio.Event()
        self.writer = JournalWriter(database, mine, self._written, self.fenced.set)
        self._gathering: list[Call] = []
        self._in_hand: list[Call] = []
        self._is_due = False

    def handle(self, call: Call) -> None:
        """One call."""
        self._gathering.append(call)
        if not self._is_due and not self._in_hand:
            self._is_due = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._is_due = False
        if self._gathering:
            self._in_hand, self._gathering = self._gathering, []
            self.writer.write(Batch(ENTRY * len(self._in_hand)))

    def _written(self, _: int) -> None:
        done, self._in_hand = self._in_hand, []
        self._write()
        for connection in {call.answer(200, BODY) for call in done}:
            connection.flush()


async def serve(database: DatabaseSettings) -> None:
    """Until it is killed. The journal is of no use to a quota service afterwards."""
    with connect(database.url) as connection:
        mine = journal.take(connection, 0, 1, owner="floor", address="")
    committing = Committing(database, mine)
    await committing.writer.start()
    connections = Connections(committing.handle, 1000)
    server = await asyncio.get_running_loop().create_server(connections, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await committing.fenced.wait()


@contextmanager
def committing_server(url: str) -> Iterator[int]:
    """Its port. No quota service of this database may run, now or later."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TOLLBOOK_DATABASE_URL": url},
    )  # fmt: skip
    assert process.stdout is not None
    yield int(process.stdout.readline())
    process.kill()
    process.wait()


if __name__ == "__main__":
    uvloop.run(serve(DatabaseSettings.from_environment()))
