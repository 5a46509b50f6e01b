"""Corrections that came before what they correct: they wait in quarantine until it has come (rule 1.3).

Ingestion asks nothing about them, so that an event costs nothing for the few that wait. They are looked up instead, one
worker at a time, a bounded part of them at a time: the newest, of which most wait for seconds, and the others in turn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final, TypeVar

import psycopg

from streams.database import connect
from streams.ingest.release import Releaser
from streams.settings import DatabaseSettings

ORPHANS_LOCK: Final = 0x6F72_7068
"""The letters "orph"."""
NEWEST_LOOKED_AT: Final = 200
LOOKED_AT: Final = 1000
"""So many in turn: a look takes some ten milliseconds where the index is in memory."""
RELEASED_AT_MOST: Final = 100
"""So many after a look, each in a transaction of its own: a second or two, in which its worker does not sweep."""
SHARE_OF_TIME: Final = 0.02
"""Of one worker's time so much, at most, goes into looks."""
RESTS_AT_MOST_S: Final = 30.0

_NEWEST: Final = "select * from usage.waiting_orphans order by quarantine_id desc limit %(most)s"
_AFTER: Final = (
    "select * from usage.waiting_orphans where quarantine_id > %(after)s order by quarantine_id limit %(most)s"
)
_LOOK: Final = """
    select quarantine_id, exists (select from usage.event_identities as i where i.key = waiting.key)
    from ({}) as waiting order by quarantine_id
"""

_Seen = TypeVar("_Seen")


class Orphans:
    """Looks over one connection in autocommit mode."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        self._releaser = Releaser(connection)
        self._after = 0
        """Up to here they had their turn."""
        self._not_before = -math.inf

    def release_all(self) -> int:
        """Look at all that wait; returns how many were released."""
        released, after = 0, 0
        while True:
            ids, found = self._look(_AFTER, LOOKED_AT, after)
            released += self._release(found)
            if len(ids) < LOOKED_AT:
                return released
            after = ids[-1]

    def release_some(self) -> int:
        """Look at a part, unless the last look was just now or another worker is at it; returns how many were released.

        A look that takes long is followed by a rest that is longer. What is found beyond RELEASED_AT_MOST is found
        again by the next look.
        """
        if time.monotonic() < self._not_before or not self._lock():
            return 0
        try:
            began = time.monotonic()
            _, newest = self._look(_NEWEST, NEWEST_LOOKED_AT)
            in_turn, found = self._look(_AFTER, LOOKED_AT, self._after)
            ended = time.monotonic()
            self._not_before = ended + min((ended - began) / SHARE_OF_TIME, RESTS_AT_MOST_S)
            due = sorted({*newest, *found})[:RELEASED_AT_MOST]
            left = [quarantine_id for quarantine_id in found if quarantine_id > due[-1]]
            self._after = left[0] - 1 if left else in_turn[-1] if len(in_turn) == LOOKED_AT else 0
            return self._release(due)
        finally:
            self.connection.execute("select pg_advisory_unlock(%s)", (ORPHANS_LOCK,))

    def _lock(self) -> bool:
        row = self.connection.execute("select pg_try_advisory_lock(%s)", (ORPHANS_LOCK,)).fetchone()
        return bool(row and row[0])

    def _look(self, which: str, most: int, after: int = 0) -> tuple[list[int], list[int]]:
        """Some that wait, and those of them whose original is here."""
        rows = self.connection.execute(_LOOK.format(which), {"most": most, "after": after}).fetchall()
        return [row[0] for row in rows], [row[0] for row in rows if row[1]]

    def _release(self, found: list[int]) -> int:
        return sum(self._releaser.release_orphan(quarantine_id) for quarantine_id in found)


class OrphanSweep:
    """Looks of one worker, for one thread at a time, over a connection that is kept until it fails."""

    def __init__(self, database: DatabaseSettings) -> None:
        self._database = database
        self._orphans: Orphans | None = None

    def release_some(self, then: Callable[[psycopg.Connection], _Seen]) -> _Seen:
        """Release a part; what `then` returns, over the same connection. Raises as `connect`, and psycopg.Error."""
        if self._orphans is None:
            self._orphans = Orphans(connect(self._database.url, application="tollbook streams sweep"))
        try:
            self._orphans.release_some()
            return then(self._orphans.connection)
        except psycopg.Error:
            self.close()
            raise

    def release_all(self) -> None:
        """Release all, over a connection of its own. Raises as `connect` does, and psycopg.Error."""
        with connect(self._database.url) as connection:
            Orphans(connection).release_all()

    def close(self) -> None:
        """Give the connection back."""
        if self._orphans is not None:
            self._orphans.connection.close()
            self._orphans = None
