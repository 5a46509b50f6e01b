"""Out of quarantine: applied again once the cause is mended, or discarded with a reason; both audited (rules 2, 4.4).

A released message does not go through the topic. It is applied as the only message of a source of its own,
`release:<id>`, whose row and chunk prove it like a partition's, by the feed that it came by. Whether a usage event lies
in the future is told by the clock of its release.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg

from streams import audit
from streams.errors import NotReleased
from streams.ingest import positions
from streams.ingest.apply import ChunkApplier
from streams.ingest.positions import Applied
from streams.ingest.replica_apply import ReplicaChunkApplier
from streams.ingest.sources import Feed
from streams.rules.chunks import Chunk, Record, Source, headers_of

CLUSTER: Final = "quarantine"
SYSTEM: Final = "tollbook"


@dataclass(frozen=True, slots=True)
class Released:
    """A message that was applied from quarantine."""

    quarantine_id: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class _Held:
    """An open message: what came by which feed, and why it was refused."""

    record: Record
    feed: Feed
    reason: str
    released_at: datetime


class Releaser:
    """Applies quarantined messages over one connection."""

    def __init__(self, connection: psycopg.Connection) -> None:
        """`connection` must be in autocommit mode: each message is released in its own transaction.

        And outside of one, which might be rolled back: what appliers make for themselves outlasts each message's.
        """
        self._connection = connection
        self._appliers: dict[Feed, ChunkApplier | ReplicaChunkApplier] = {
            "usage": ChunkApplier(connection),
            "replicas": ReplicaChunkApplier(connection),
        }

    def release(self, quarantine_id: int, *, actor: str, reason: str = "") -> Released:
        """Apply one message. Raises NotReleased, and leaves it where it is, if it would be refused again."""
        with self._connection.transaction():
            held = self._open_message(quarantine_id)
            done = self._apply(quarantine_id, held)
            if done.quarantined:
                row = self._connection.execute(
                    "select reason, detail from usage.quarantine where source = %s", (f"release:{quarantine_id}",)
                ).fetchone()
                again = f"{row[0]}: {row[1]}" if row else ""
                raise NotReleased(f"message {quarantine_id} would be refused again ({again}): mend the cause first")
            self._resolve(quarantine_id, "released", reason or f"{held.reason} no longer holds", actor)
        return Released(quarantine_id, duplicate=bool(done.duplicates))

    def discard(self, quarantine_id: int, *, actor: str, reason: str) -> None:
        """Decide that a message is never to count. It stays stored. Raises NotReleased."""
        if not reason.strip():
            raise NotReleased("discarding needs a reason")
        with self._connection.transaction():
            self._open_message(quarantine_id)
            self._resolve(quarantine_id, "discarded", reason, actor)

    def release_orphan(self, quarantine_id: int) -> bool:
        """Release a correction whose original has come; False if it does not fit it, or another worker was faster.

        One that does not fit is refused once more, now for good: for a person to look at.
        """
        try:
            self.release(quarantine_id, actor=SYSTEM, reason="what it corrects has arrived")
        except NotReleased:
            with contextlib.suppress(NotReleased), self._connection.transaction():
                self._apply(quarantine_id, self._open_message(quarantine_id))
                self._resolve(quarantine_id, "released", "what it corrects has arrived; refused again", SYSTEM)
            return False
        return True

    def _open_message(self, quarantine_id: int) -> _Held:
        """The message, its row locked. Raises NotReleased if it is unknown or resolved."""
        row = self._connection.execute(
            "select message_key, message, appended_at, header_names, header_values, is_null, reason, feed,"
            " clock_timestamp() from usage.quarantine as q join usage.sources using (source)"
            " where quarantine_id = %s for update of q",
            (quarantine_id,),
            binary=True,
        ).fetchone()
        if row is None:
            raise NotReleased(f"there is no quarantined message {quarantine_id}")
        resolved = self._connection.execute(
            "select outcome, actor from usage.quarantine_resolutions where quarantine_id = %s", (quarantine_id,)
        ).fetchone()
        if resolved is not None:
            raise NotReleased(f"message {quarantine_id} was {resolved[0]} already, by {resolved[1]}")
        key, message, appended_at, names, values, is_null, reason, feed, released_at = row
        record = Record(0, key, message, appended_at, headers_of(names, values), is_null)
        return _Held(record, feed, reason, released_at)

    def _apply(self, quarantine_id: int, held: _Held) -> Applied:
        source = Source(f"release:{quarantine_id}", CLUSTER, str(quarantine_id))
        positions.register(self._connection, source, held.feed)
        return self._appliers[held.feed].apply(Chunk(source, [held.record], judged_at=held.released_at))

    def _resolve(self, quarantine_id: int, outcome: str, reason: str, actor: str) -> None:
        self._connection.execute(
            "insert into usage.quarantine_resolutions (quarantine_id, outcome, reason, actor) values (%s, %s, %s, %s)",
            (quarantine_id, outcome, reason, actor),
        )
        self._connection.execute("delete from usage.waiting_orphans where quarantine_id = %s", (quarantine_id,))
        audit.record(self._connection, actor, f"quarantine.{outcome}", str(quarantine_id), {"reason": reason})
