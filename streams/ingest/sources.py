"""Kafka partitions as sources: which log they really are, where they begin and end, and their rows in the database."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

import psycopg
from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from serving_adapter.errors import KafkaUnavailable
from serving_adapter.kafka_client import ANSWER_WITHIN_S, admin_client
from serving_adapter.settings import KafkaSettings
from streams import alerts, audit
from streams.alerts import Alert
from streams.errors import CannotResolve
from streams.rules.chunks import Source

Feed = Literal["usage", "replicas"]
"""What a source brings: usage events, or replicas' reports about themselves."""


class Partition(NamedTuple):
    """A partition of a topic. As a tuple it equals Faust's own."""

    topic: str
    number: int


@dataclass(frozen=True, slots=True)
class Log:
    """A topic as the broker has it now: its ids, and each partition's first and next offset and leader epoch."""

    topic: str
    cluster_id: str
    topic_id: str
    begins: dict[int, int]
    ends: dict[int, int]
    epochs: dict[int, int]


@dataclass(frozen=True, slots=True)
class SourceState:
    """A partition's row: the log that its position is about, and the position."""

    source: str
    cluster_id: str
    topic_id: str
    next_position: int
    stopped_because: str | None
    feed: Feed = "usage"
    leader_epoch: int = -1
    """By which the log was last known to hold what was applied of it; -1: never compared."""

    @property
    def as_source(self) -> Source:
        """The source of the partition's chunks."""
        return Source(self.source, self.cluster_id, self.topic_id)


TRUNCATED: Final = "it was truncated"
"""Stands in why such a source stands still: below its position the log then has other messages."""


def source_name(topic: str, partition: int, generation: int = 1) -> str:
    """The name of a partition's source: `kafka:tollbook.usage.v1/3`; `…/3@2` for the second log of that name."""
    return f"kafka:{topic}/{partition}" + (f"@{generation}" if generation > 1 else "")


def disagreement(state: SourceState, log: Log, partition: int) -> str | None:
    """Why the stored position says nothing about the log that is there now; None if it does.

    Comparing numbers alone would skip real messages silently (docs/spec/metering.md 4.1).
    """
    if state.cluster_id != log.cluster_id:
        return f"the cluster was {state.cluster_id}, now {log.cluster_id}"
    if state.topic_id != log.topic_id:
        return f"the topic was {state.topic_id}, now {log.topic_id}: it was deleted and made again"
    if partition not in log.ends:
        return f"the topic has no partition {partition} any more"
    at, begin, end = state.next_position, log.begins[partition], log.ends[partition]
    if end < at:
        return f"the log ends at {end}, before position {at}: {TRUNCATED}"
    if begin > at:
        return f"the log begins at {begin}: positions from {at} on are gone"
    return None


LEADER_CHANGES: Final = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE,
                         KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH)  # fmt: skip
LEADER_ASKED_TIMES: Final = 10
LEADER_ASKED_AGAIN_S: Final = 0.2


COMMITTED: Final = IsolationLevel.READ_COMMITTED
"""A log ends where an open transaction begins: readers come no further."""


class LogReader:
    """Asks the broker what a topic is and how far it reaches."""

    def __init__(self, kafka: KafkaSettings, topic: str) -> None:
        """Raises KafkaUnavailable."""
        self._kafka = kafka
        self.topic = topic
        self._admin: AdminClient | None = admin_client(kafka)

    def read(self) -> Log:
        """Ids and offsets now. Raises KafkaUnavailable; only after some patience while a leader changes."""
        for left in reversed(range(LEADER_ASKED_TIMES)):
            try:
                return self._read()
            except KafkaException as error:
                if not left or error.args[0].code() not in LEADER_CHANGES:
                    raise self._unavailable(error) from None
                time.sleep(LEADER_ASKED_AGAIN_S)
        raise AssertionError("the last time returns or raises")

    def _read(self) -> Log:
        admin = self._client()
        cluster = admin.describe_cluster(request_timeout=ANSWER_WITHIN_S).result()
        topics = admin.describe_topics(TopicCollection([self.topic]), request_timeout=ANSWER_WITHIN_S)
        topic = topics[self.topic].result()
        numbers = [partition.id for partition in topic.partitions]
        begins = self._offsets(admin, numbers, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        ends = self._offsets(admin, numbers, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        return Log(
            self.topic,
            str(cluster.cluster_id),
            str(topic.topic_id),
            {p: at.offset for p, at in begins.items()},
            {p: at.offset for p, at in ends.items()},
            {p: at.leader_epoch if at.leader_epoch is not None else -1 for p, at in ends.items()},
        )

    def topic_id(self) -> str:
        """The topic's id alone, as cheaply as it can be had. Raises KafkaUnavailable."""
        admin = self._client()
        try:
            topics = admin.describe_topics(TopicCollection([self.topic]), request_timeout=ANSWER_WITHIN_S)
            return str(topics[self.topic].result().topic_id)
        except KafkaException as error:
            raise self._unavailable(error) from None

    def _client(self) -> AdminClient:
        """The client: to be held while it is asked, its answers end with it. A new one after an error."""
        if (admin := self._admin) is None:
            admin = self._admin = admin_client(self._kafka)
        return admin

    def _unavailable(self, error: KafkaException) -> KafkaUnavailable:
        self._admin = None  # librdkafka asks the controller that it knows, for minutes after it is gone
        return KafkaUnavailable(f"Kafka at {self._kafka.bootstrap}, topic {self.topic}: {error.args[0].str()}")

    def _offsets(self, admin: AdminClient, partitions: list[int], which: OffsetSpec) -> dict[int, Any]:
        asked = {TopicPartition(self.topic, number): which for number in partitions}
        answers = admin.list_offsets(asked, isolation_level=COMMITTED, request_timeout=ANSWER_WITHIN_S)
        return {at.partition: future.result() for at, future in answers.items()}


def register(connection: psycopg.Connection, log: Log, feed: Feed = "usage") -> None:
    """Make a row for each partition that has none: it begins where the log begins today, and that is kept.

    A log that has lost its beginning by then is alerted: what it held there was never read.
    """
    for partition, begin in sorted(log.begins.items()):
        name = source_name(log.topic, partition)
        with connection.transaction():
            if _add(connection, name, log, begin, feed) and begin > 0:
                detail = f"{name} is read from {begin} on: what its log held before was gone when it was first seen"
                subject = {"source": name, "position": begin}
                alerts.raise_all(connection, [Alert("begun_late", name, subject, detail, datetime.now(UTC))])


def _add(connection: psycopg.Connection, name: str, log: Log, position: int, feed: Feed) -> bool:
    """Whether it was not there."""
    added = connection.execute(
        "insert into usage.sources"
        " (source, cluster_id, topic_id, leader_epoch, first_position, next_position, feed)"
        " values (%s, %s, %s, -1, %s, %s, %s) on conflict do nothing",
        (name, log.cluster_id, log.topic_id, position, position, feed),
    )
    return added.rowcount == 1


STATES: Final = """
    select source, cluster_id, topic_id, next_position, stopped_because, feed, leader_epoch from usage.sources
    where source collate "C" >= %s and source collate "C" < %s
"""
"""By an index over the names: the releases among the sources are many, and this is asked every few seconds."""


def states(connection: psycopg.Connection, topic: str) -> dict[int, SourceState]:
    """The stored state of each partition of a topic, of the newest log that it is about."""
    prefix = source_name(topic, 0)[:-1]
    rows = connection.execute(STATES, (prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)))
    newest: dict[int, tuple[int, SourceState]] = {}
    for row in rows:
        partition, _, generation = row[0][len(prefix) :].partition("@")
        found = (int(generation or 1), SourceState(*row))
        newest[int(partition)] = max(newest.get(int(partition), found), found, key=lambda each: each[0])
    return {partition: state for partition, (_, state) in newest.items()}


def note_epoch(connection: psycopg.Connection, source: str, leader_epoch: int) -> None:
    """By this epoch the log holds what was applied of it."""
    connection.execute(
        "update usage.sources set leader_epoch = %(epoch)s where source = %(source)s and leader_epoch < %(epoch)s",
        {"source": source, "epoch": leader_epoch},
    )


def lag(connection: psycopg.Connection, log: Log) -> int:
    """Messages in the log that are not applied yet."""
    stored = states(connection, log.topic)
    return sum(end - (stored[p].next_position if p in stored else log.begins[p]) for p, end in log.ends.items())


def resolve(
    connection: psycopg.Connection,
    topic: str,
    read_log: Callable[[], Log],
    partition: int,
    to: int,
    *,
    reason: str,
    actor: str,
) -> tuple[str, int]:
    """Let a partition that stands still, or would, go on from `to`; returns the source and the position it stood at.

    In the same log this passes over positions, which is kept with the reason. In another log of the same name, or where
    the log was cut below the position (then `to` may lie before it), it begins a source of its own there. The log is
    read once the position is locked: one that was read before lies behind the position of a partition that goes on,
    which then looks like a log that was cut. Raises CannotResolve, and as `read_log` does.
    """
    if not reason.strip():
        raise CannotResolve("passing over positions needs a reason")
    with connection.transaction():
        state = states(connection, topic).get(partition)
        if state is None:
            raise CannotResolve(f"{topic} has no partition {partition} that was ever read")
        connection.execute("select 1 from usage.sources where source = %s for update", (state.source,))
        state = states(connection, topic)[partition]  # as it stands now that it is locked
        log = read_log()
        if partition not in log.ends:
            raise CannotResolve(f"{topic} has no partition {partition} any more")
        if state.stopped_because is None and disagreement(state, log, partition) is None:
            raise CannotResolve(f"{state.source} does not stand still: nothing of it may be passed over")
        if not log.begins[partition] <= to <= log.ends[partition]:
            raise CannotResolve(
                f"the log reaches from {log.begins[partition]} to {log.ends[partition]}: {to} is outside"
            )
        # A log that was cut has other messages below the position, also once it has grown past it again
        is_cut = to < state.next_position and (
            TRUNCATED in (state.stopped_because or "") or log.ends[partition] < state.next_position
        )
        if (state.cluster_id, state.topic_id) == (log.cluster_id, log.topic_id) and not is_cut:
            source = _pass_over(connection, state, to, reason, actor)
            # A person has looked at the log as it is now
            connection.execute(
                "update usage.sources set leader_epoch = %s where source = %s", (log.epochs[partition], source)
            )
        else:
            _, _, generation = state.source.partition("@")
            source = source_name(topic, partition, int(generation or 1) + 1)
            _add(connection, source, log, to, state.feed)
            connection.execute(
                "update usage.sources set stopped_because = %s, changed_at = now() where source = %s",
                (f"replaced by {source}: {reason}", state.source),
            )
        detail = {"from": state.next_position, "to": to, "reason": reason, "was": state.source}
        audit.record(connection, actor, "streams.resolve", source, detail)
    return source, state.next_position


def _pass_over(connection: psycopg.Connection, state: SourceState, to: int, reason: str, actor: str) -> str:
    if to < state.next_position:
        raise CannotResolve(f"{state.source} is at {state.next_position}: what is applied is not applied again")
    if to > state.next_position:
        connection.execute(
            "insert into usage.position_resolutions (source, from_position, to_position, reason, actor)"
            " values (%s, %s, %s, %s, %s)",
            (state.source, state.next_position, to, reason, actor),
        )
    connection.execute(
        "update usage.sources set next_position = %s, stopped_because = null, changed_at = now() where source = %s",
        (to, state.source),
    )
    return state.source


def mark_stopped(connection: psycopg.Connection, source: str, because: str) -> tuple[int, datetime] | None:
    """Note why a source stands still; returns where, and since when, or None if it was noted before.

    Only `resolve` lets it go on.
    """
    return connection.execute(
        "update usage.sources set stopped_because = %s, changed_at = clock_timestamp()"
        " where source = %s and stopped_because is null returning next_position, changed_at",
        (because, source),
    ).fetchone()


def extents(connection: psycopg.Connection) -> dict[str, tuple[int, int]]:
    """Each source's first and next position."""
    rows = connection.execute("select source, first_position, next_position from usage.sources")
    return {source: (first, after) for source, first, after in rows}


_RUNS: Final = """
    with passed as (
        select source, first_position, next_position, applied + duplicates + quarantined as outcomes
        from usage.applied_positions
        union all
        select source, from_position, to_position, to_position - from_position from usage.position_resolutions
    ), beside as (
        select *, lag(next_position) over by_position as reached,
            lag(next_position - first_position <> outcomes) over by_position as before_is_wrong
        from passed window by_position as (partition by source order by first_position, next_position)
    ), numbered as (
        select *, count(*) filter (
                where reached is distinct from first_position or before_is_wrong
                      or next_position - first_position <> outcomes
            ) over (partition by source order by first_position, next_position rows unbounded preceding) as run
        from beside
    )
    select source, min(first_position), max(next_position), sum(outcomes)::int8
    from numbered group by source, run order by source, run
"""


def runs(connection: psycopg.Connection) -> list[tuple[str, int, int, int]]:
    """What was applied or passed over by a person: source, first and next position, outcomes.

    Ranges that follow one another are told as one, mostly one for a source: of chunks there are millions. One whose
    outcomes are not as many as its positions stands alone.
    """
    return [(row[0], row[1], row[2], row[3]) for row in connection.execute(_RUNS)]


def stored_counts(connection: psycopg.Connection) -> dict[str, tuple[int, int]]:
    """Each usage source's rows that are really there: events, also those only in the archive, and quarantine."""
    rows = connection.execute(
        "select source, coalesce(e.n, 0)::int8, coalesce(q.n, 0) from usage.sources"
        " left join (select source, sum(n) as n from (select source, count(*) as n from usage.events group by source"
        "   union all select source, events from usage.archived_counts join usage.archived_days using (day)"
        "   where dropped_at is not null) as each group by source) e using (source)"
        " left join (select source, count(*) as n from usage.quarantine group by source) q using (source)"
        " where feed = 'usage'"
    )
    return {source: (events, held) for source, events, held in rows}


def counted_outcomes(connection: psycopg.Connection) -> dict[str, tuple[int, int]]:
    """Each usage source's applied and quarantined messages, as its chunks recorded them."""
    rows = connection.execute(
        "select source, coalesce(sum(c.applied), 0)::int8, coalesce(sum(c.quarantined), 0)::int8"
        " from usage.sources left join usage.applied_positions as c using (source) where feed = 'usage' group by source"
    )
    return {source: (applied, held) for source, applied, held in rows}
