"""A source's position: what is applied, compared and moved in the transaction of what it stands for.

Whoever applies a chunk, of usage events or of replicas' reports, does it in these steps, so that a message of either
counts once and a gap stops the partition (docs/spec/metering.md 4.1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple

import psycopg

from streams import alerts
from streams.alerts import Alert
from streams.errors import LeaderChanged, SourceChanged, SourceStopped
from streams.ingest import quarantine_alerts, refused_values
from streams.ingest.sources import Feed
from streams.rules.chunks import Chunk, Record, Refused, Source, digest, not_yet_applied


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a chunk; `next_position` is where its source goes on.

    `late` of the applied ones came late (chunks.late_before). `refused` = the quarantined by reason; `tenants` = the
    readable by tenant. These three are for observers: outcomes are the same without them.
    """

    next_position: int
    skipped: int = 0
    applied: int = 0
    duplicates: int = 0
    retimed: int = 0
    quarantined: int = 0
    empty: int = 0
    """Positions that the log has proved to hold no message."""
    late: int = field(default=0, compare=False)
    refused: Counter[str] = field(default_factory=Counter, compare=False)
    tenants: Counter[str] = field(default_factory=Counter, compare=False)

    def then(self, second: Applied) -> Applied:
        """What became of two chunks of a source, this one and the one behind it."""
        return Applied(
            second.next_position,
            self.skipped + second.skipped,
            self.applied + second.applied,
            self.duplicates + second.duplicates,
            self.retimed + second.retimed,
            self.quarantined + second.quarantined,
            self.empty + second.empty,
            self.late + second.late,
            self.refused + second.refused,
            self.tenants + second.tenants,
        )


class At(NamedTuple):
    """Where a locked source stands: its next position, the number of the ingest that is about to be; and its own."""

    next_position: int
    ingest_no: int
    source_no: int


# Under the key of what it corrects, by which it is seen that this has come
_WAIT: Final = """
    insert into usage.waiting_orphans (quarantine_id, key)
    select quarantine_id, usage.identity_key(tenant_id, request_id, attempt, 'usage', 0)
    from usage.quarantine where source = %(source)s and position = any(%(positions)s)
"""


def register(connection: psycopg.Connection, source: Source, feed: Feed = "usage") -> None:
    """A source of a feed that holds one chunk, from 0 on."""
    connection.execute(
        "insert into usage.sources"
        " (source, cluster_id, topic_id, leader_epoch, first_position, next_position, feed)"
        " values (%s, %s, %s, -1, 0, 0, %s)",
        (source.name, source.cluster_id, source.topic_id, feed),
    )


def due(connection: psycopg.Connection, chunk: Chunk) -> tuple[At, Sequence[Record]]:
    """Lock the source's row until the transaction ends; return where it stands and what is not applied yet.

    Raises SourceChanged; LeaderChanged where the log was compared anew by somebody since it was fetched; SourceStopped
    where a person has to look first, whoever noticed; or PositionGap when a message would be skipped.
    """
    at = _lock(connection, chunk.source)
    return at, not_yet_applied(chunk.source.name, at.next_position, chunk.records, chunk.empty)


def keep_refused(connection: psycopg.Connection, source: str, refused: Sequence[Refused], feed: Feed = "usage") -> None:
    """Put refused messages into quarantine, whole, and raise the alerts about it."""
    if not refused:
        return
    values = refused_values.values_of(connection, source, feed, refused)
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into usage.quarantine (source, position, reason, detail, tenant_id, message_key, message,"
            " appended_at, request_id, attempt, estimated_value, currency, not_estimable, header_names, header_values,"
            " is_null) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [_quarantine_row(source, *each) for each in zip(refused, values, strict=True)],
        )
    orphans = [r.record.position for r in refused if r.reason == "orphan"]
    if orphans:
        connection.execute(_WAIT, {"source": source, "positions": orphans})
    quarantine_alerts.raise_for(connection, source, refused)


def advance(connection: psycopg.Connection, chunk: Chunk, records: Sequence[Record], done: Applied) -> None:
    """Write down what `records` came to, and move the source's position behind them."""
    moved = connection.execute(
        "with proof as (insert into usage.applied_chunks (source, first_position, next_position, applied, duplicates,"
        " retimed, quarantined, late, empty, content_digest) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " returning *)"
        " update usage.sources as s set next_position = proof.next_position,"
        " ingest_no = s.ingest_no + 1,"
        " changed_at = now(), applied = s.applied + proof.applied, duplicates = s.duplicates + proof.duplicates,"
        " quarantined = s.quarantined + proof.quarantined, late = s.late + proof.late,"
        " last_applied_at = proof.applied_at"
        " from proof where s.source = proof.source and s.next_position = proof.first_position",
        (chunk.source.name, done.next_position - len(records) - done.empty, done.next_position, done.applied,
         done.duplicates, done.retimed, done.quarantined, done.late, done.empty, digest(records)),
    )  # fmt: skip
    assert moved.rowcount == 1, "the row was locked by this transaction"
    if done.empty:
        alert_transactions(connection, chunk.source.name, done.next_position, done.empty)


def pass_over_nothing(connection: psycopg.Connection, source: Source, first: int, after: int) -> bool:
    """Go on behind positions [first, after) of which the log has proved that they hold no message: a chunk without any.

    False if the source is not at `first` any more, does not go on, or is about another log.
    """
    with connection.transaction():
        moved = connection.execute(
            "with proof as (insert into usage.applied_chunks (source, first_position, next_position, applied,"
            " duplicates, retimed, quarantined, empty, content_digest)"
            " select source, %(first)s, %(after)s, 0, 0, 0, 0, %(empty)s, %(digest)s from usage.sources"
            " where source = %(source)s and next_position = %(first)s and cluster_id = %(cluster)s"
            " and topic_id = %(topic)s and stopped_because is null for no key update returning *)"
            " update usage.sources as s set next_position = proof.next_position, ingest_no = s.ingest_no + 1,"
            " changed_at = now() from proof where s.source = proof.source",
            {"source": source.name, "first": first, "after": after, "empty": after - first, "digest": digest(()),
             "cluster": source.cluster_id, "topic": source.topic_id},
        )  # fmt: skip
        if moved.rowcount:
            alert_transactions(connection, source.name, after, after - first)
    return moved.rowcount == 1


def alert_transactions(connection: psycopg.Connection, source: str, next_position: int, empty: int) -> None:
    """Somebody sends in transactions, which the rules forbid (docs/spec/metering.md 5): once a source and hour."""
    now = datetime.now(UTC)
    hour = now.replace(minute=0, second=0, microsecond=0)
    detail = (
        f"of {source} {empty} positions before {next_position} hold transactions' markers or aborted messages: a"
        " producer sends in transactions, which slows it down; senders are not transactional (docs/kafka.md)"
    )
    subject = {"source": source, "hour": hour.isoformat()}
    alerts.raise_all(connection, [Alert("transactions", source, subject, detail, now)])


def _lock(connection: psycopg.Connection, source: Source) -> At:
    name = source.name
    row = connection.execute(
        "select next_position, ingest_no, source_no, cluster_id, topic_id, leader_epoch, stopped_because"
        " from usage.sources where source = %s for no key update",  # rows that refer to it may be written meanwhile
        (name,),
    ).fetchone()
    if row is None:
        raise SourceChanged(name, "the source", "registered", "unknown")
    next_position, ingest_no, source_no, cluster_id, topic_id, leader_epoch, stopped_because = row
    if cluster_id != source.cluster_id:
        raise SourceChanged(name, "the cluster", cluster_id, source.cluster_id)
    if topic_id != source.topic_id:
        raise SourceChanged(name, "the topic", topic_id, source.topic_id)
    if stopped_because is not None:
        raise SourceStopped(name, stopped_because)
    if source.leader_epoch is not None and source.leader_epoch < leader_epoch:
        raise LeaderChanged(name, source.leader_epoch, leader_epoch)
    return At(int(next_position), int(ingest_no) + 1, int(source_no))


def _quarantine_row(source: str, refused: Refused, value: refused_values.Value) -> tuple[object, ...]:
    record, event = refused.record, refused.event
    named = (event.request_id, event.attempt) if event else (None, None)
    return (
        source, record.position, refused.reason, refused.detail, refused.tenant_id, record.key, record.value,
        record.appended_at, *named, *value, [name.encode(errors="surrogateescape") for name, _ in record.headers],
        [told for _, told in record.headers], record.is_null,
    )  # fmt: skip
