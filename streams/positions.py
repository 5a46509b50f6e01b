"""A source's position: what is applied, compared and moved in the transaction of what it stands for.

Whoever applies a chunk, of usage events or of replicas' reports, does it in these steps, so that a message of either
counts once and a gap stops the partition (docs/spec/metering.md 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from streams.chunks import Chunk, Record, Refused, Source, digest, not_yet_applied
from streams.errors import SourceChanged


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a chunk; `next_position` is where its source goes on."""

    next_position: int
    skipped: int = 0
    applied: int = 0
    duplicates: int = 0
    retimed: int = 0
    quarantined: int = 0


def lock(connection: psycopg.Connection, source: Source) -> int:
    """The source's next position, its row locked until the transaction ends. Raises SourceChanged."""
    name = source.name
    row = connection.execute(
        "select next_position, cluster_id, topic_id from usage.sources where source = %s for update", (name,)
    ).fetchone()
    if row is None:
        raise SourceChanged(name, "the source", "registered", "unknown")
    next_position, cluster_id, topic_id = row
    if cluster_id != source.cluster_id:
        raise SourceChanged(name, "the cluster", cluster_id, source.cluster_id)
    if topic_id != source.topic_id:
        raise SourceChanged(name, "the topic", topic_id, source.topic_id)
    return int(next_position)


def due(connection: psycopg.Connection, chunk: Chunk) -> tuple[int, Sequence[Record]]:
    """Lock the source and return its next position with what of the chunk is not applied yet.

    Raises SourceChanged, or PositionGap when a message would be skipped.
    """
    next_position = lock(connection, chunk.source)
    return next_position, not_yet_applied(chunk.source.name, next_position, chunk.records)


def keep_refused(connection: psycopg.Connection, source: str, refused: Sequence[Refused]) -> None:
    """Put refused messages into quarantine, whole."""
    if not refused:
        return
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into usage.quarantine (source, position, reason, detail, tenant_id, message_key, message,"
            " appended_at) values (%s, %s, %s, %s, %s, %s, %s, %s)",
            [
                (source, r.record.position, r.reason, r.detail, r.tenant_id, r.record.key, r.record.value,
                 r.record.appended_at)
                for r in refused
            ],
        )  # fmt: skip


def advance(connection: psycopg.Connection, chunk: Chunk, records: Sequence[Record], done: Applied) -> None:
    """Write down what `records` came to, and move the source's position behind them."""
    source, first = chunk.source.name, records[0].position
    connection.execute(
        "insert into usage.applied_chunks (source, first_position, next_position, applied, duplicates,"
        " retimed, quarantined, content_digest) values (%s, %s, %s, %s, %s, %s, %s, %s)",
        (source, first, done.next_position, done.applied, done.duplicates, done.retimed, done.quarantined,
         digest(records)),
    )  # fmt: skip
    moved = connection.execute(
        "update usage.sources set next_position = %s, leader_epoch = greatest(leader_epoch, %s),"
        " ingest_no = ingest_no + 1, changed_at = now() where source = %s and next_position = %s",
        (done.next_position, chunk.leader_epoch, source, first),
    )
    assert moved.rowcount == 1, "the row was locked by this transaction"
