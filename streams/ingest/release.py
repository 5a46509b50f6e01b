"""Out of quarantine: applied again once the cause is mended, or discarded with a reason; both audited (rules 2, 4.4).

A released message does not go through the topic. It is applied as the only message of a source of its own,
`release:<id>`, whose row and chunk prove it like a partition's.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

import psycopg

from streams import audit
from streams.errors import NotReleased
from streams.ingest.apply import ChunkApplier
from streams.ingest.positions import Applied
from streams.rules.chunks import Chunk, Record, Source

CLUSTER: Final = "quarantine"
ORPHANS_A_TIME: Final = 100
SYSTEM: Final = "tollbook"


@dataclass(frozen=True, slots=True)
class Released:
    """A message that was applied from quarantine."""

    quarantine_id: int
    duplicate: bool


class Releaser:
    """Applies quarantined messages over one connection."""

    def __init__(self, connection: psycopg.Connection) -> None:
        """`connection` must be in autocommit mode: each message is released in its own transaction."""
        self._connection = connection
        self._applier = ChunkApplier(connection)

    def release(self, quarantine_id: int, *, actor: str, reason: str = "") -> Released:
        """Apply one message. Raises NotReleased, and leaves it where it is, if it would be refused again."""
        with self._connection.transaction():
            message, was = self._open_message(quarantine_id)
            done = self._apply(quarantine_id, message)
            if done.quarantined:
                row = self._connection.execute(
                    "select reason, detail from usage.quarantine where source = %s", (f"release:{quarantine_id}",)
                ).fetchone()
                again = f"{row[0]}: {row[1]}" if row else ""
                raise NotReleased(f"message {quarantine_id} would be refused again ({again}): mend the cause first")
            self._resolve(quarantine_id, "released", reason or f"{was} no longer holds", actor)
        return Released(quarantine_id, duplicate=bool(done.duplicates))

    def discard(self, quarantine_id: int, *, actor: str, reason: str) -> None:
        """Decide that a message is never to count. It stays stored. Raises NotReleased."""
        if not reason.strip():
            raise NotReleased("discarding needs a reason")
        with self._connection.transaction():
            self._open_message(quarantine_id)
            self._resolve(quarantine_id, "discarded", reason, actor)

    def release_orphans(self) -> int:
        """Release corrections whose original has arrived meanwhile; returns how many."""
        rows = self._connection.execute(
            "select q.quarantine_id from usage.quarantine as q join usage.event_identities as i"
            " on i.key = usage.identity_key(q.tenant_id, q.request_id, q.attempt, 'usage', 0)"
            " where q.reason = 'orphan' and not exists (select from usage.quarantine_resolutions as r"
            " where r.quarantine_id = q.quarantine_id) order by q.quarantine_id limit %s",
            (ORPHANS_A_TIME,),
        ).fetchall()
        released = 0
        for (quarantine_id,) in rows:
            try:
                self.release(quarantine_id, actor=SYSTEM, reason="what it corrects has arrived")
                released += 1
            except NotReleased:
                with contextlib.suppress(NotReleased):  # another worker was faster
                    self._settle_orphan(quarantine_id)
        return released

    def _settle_orphan(self, quarantine_id: int) -> None:
        """An orphan that does not fit its original is refused once more, now for good: for a person to look at."""
        with self._connection.transaction():
            message, _ = self._open_message(quarantine_id)
            self._apply(quarantine_id, message)
            self._resolve(quarantine_id, "released", "what it corrects has arrived; refused again", SYSTEM)

    def _open_message(self, quarantine_id: int) -> tuple[Record, str]:
        """The message and why it was refused, its row locked. Raises NotReleased if it is unknown or resolved."""
        row = self._connection.execute(
            "select message_key, message, appended_at, reason from usage.quarantine where quarantine_id = %s"
            " for update",
            (quarantine_id,),
        ).fetchone()
        if row is None:
            raise NotReleased(f"there is no quarantined message {quarantine_id}")
        resolved = self._connection.execute(
            "select outcome, actor from usage.quarantine_resolutions where quarantine_id = %s", (quarantine_id,)
        ).fetchone()
        if resolved is not None:
            raise NotReleased(f"message {quarantine_id} was {resolved[0]} already, by {resolved[1]}")
        key, message, appended_at, reason = row
        return Record(0, key, bytes(message), appended_at), reason

    def _apply(self, quarantine_id: int, message: Record) -> Applied:
        source = Source(f"release:{quarantine_id}", CLUSTER, str(quarantine_id))
        self._connection.execute(
            "insert into usage.sources (source, cluster_id, topic_id, leader_epoch, first_position, next_position)"
            " values (%s, %s, %s, -1, 0, 0)",
            (source.name, source.cluster_id, source.topic_id),
        )
        return self._applier.apply(Chunk(source, [message]))

    def _resolve(self, quarantine_id: int, outcome: str, reason: str, actor: str) -> None:
        self._connection.execute(
            "insert into usage.quarantine_resolutions (quarantine_id, outcome, reason, actor) values (%s, %s, %s, %s)",
            (quarantine_id, outcome, reason, actor),
        )
        audit.record(self._connection, actor, f"quarantine.{outcome}", str(quarantine_id), {"reason": reason})
