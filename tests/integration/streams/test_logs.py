"""What may happen to a topic: nothing is ever skipped silently; a person decides, and the partition goes on."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import psycopg
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from reconciliation import agreement
from serving_adapter.errors import KafkaUnavailable
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import USAGE, ensure_topics
from streams import tenants
from streams.database import connect
from streams.errors import CannotResolve
from streams.ingest import log_gaps, log_proof, passed_positions, resolving, sources
from streams.ingest.ingestion import Ingestion
from streams.ingest.log_gaps import Nothing
from streams.ingest.log_proof import LogProof
from streams.ingest.logs import Log, LogReader
from streams.ingest.sources import Partition, source_name
from streams.rules.chunks import Ranges
from streams.settings import DatabaseSettings
from streams.workers.apply_queue import Fetched
from streams.workers.left_out import explain
from tests.builders import event_json
from tests.integration.streams.conftest import BOTH_READERS
from tests.simulation.line import Line, wait_for

PARTITION = 0
Drain = Callable[..., subprocess.CompletedProcess[str]]


class Topic:
    """The usage topic, of which these tests use one partition."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self.kafka = kafka
        self.name = USAGE.name(kafka.topic_prefix)
        self.admin = AdminClient(kafka.client())

    def send(self, first: int, count: int, transactional_id: str | None = None, *, abort: bool = False) -> None:
        """Send numbered events, if asked for as a transaction of its own."""
        settings = {"transactional.id": transactional_id} if transactional_id else {}
        producer = Producer(self.kafka.client(**settings))
        if transactional_id:
            producer.init_transactions()
            producer.begin_transaction()
        for number in range(first, first + count):
            producer.produce(self.name, event_json(request_id=f"req-{number}"), b"tenant_1", partition=PARTITION)
        producer.flush()
        if transactional_id:
            (producer.abort_transaction if abort else producer.commit_transaction)()

    def wait_for_end(self, offset: int) -> None:
        """Wait until the log reaches so far: a transaction's marker is written after its commit has returned."""
        deadline = time.monotonic() + 60
        while LogReader(self.kafka, self.name).read().ends[PARTITION] < offset:
            assert time.monotonic() < deadline, "the marker is not written"
            time.sleep(0.05)

    @property
    def source(self) -> str:
        """The name of the partition's source."""
        return source_name(self.name, PARTITION)

    def make_again(self) -> None:
        """Delete the topic and create it under the same name."""
        self.admin.delete_topics([self.name])[self.name].result()
        deadline = time.monotonic() + 60
        while self.name in self.admin.list_topics().topics or self.name not in self._created():
            assert time.monotonic() < deadline, "the topic does not go away"
            time.sleep(0.1)

    def _created(self) -> list[str]:
        try:
            return ensure_topics(self.kafka)
        except KafkaException:
            return []


@pytest.fixture
def topic(kafka: KafkaSettings, connection: psycopg.Connection) -> Topic:
    """The test's usage topic, and a database that knows tenant_1."""
    tenants.register(connection, [("tenant_1", "One")], actor="test")
    return Topic(kafka)


@pytest.fixture
def drain(kafka: KafkaSettings, own_database_url: str) -> Drain:
    """Runs a worker until everything in the topic is applied, or stands still."""
    environ = os.environ | {
        "TOLLBOOK_TOPIC_PREFIX": kafka.topic_prefix,
        "TOLLBOOK_DATABASE_URL": own_database_url,
        "COLUMNS": "400",
    }
    command = [sys.executable, "-m", "console.main", "streams", "run", "--drain"]

    def run(reader: str = "faust") -> subprocess.CompletedProcess[str]:
        asked = [*command, "--reader", reader]
        return subprocess.run(asked, env=environ, capture_output=True, text=True, timeout=120, check=False)

    return run


def applied(connection: psycopg.Connection) -> int:
    row = connection.execute("select count(*) from usage.events").fetchone()
    assert row is not None
    return int(row[0])


def resolve(
    topic: Topic,
    connection: psycopg.Connection,
    to: int,
    *,
    partition: int = PARTITION,
    reason: str = "looked at it",
    lose: bool = False,
    read: Callable[[], Log] | None = None,
) -> str:
    read = read or LogReader(topic.kafka, topic.name).read
    find_held = partial(log_proof.held, topic.kafka)
    source, _ = resolving.resolve(
        connection, topic.name, read, partition, to, reason=reason, actor="ada", lose=lose, find_held=find_held
    )
    return source


def assert_positions_are_explained(connection: psycopg.Connection) -> None:
    assert agreement.positions(passed_positions.extents(connection), passed_positions.runs(connection)).agrees


@BOTH_READERS
def test_markers_and_what_was_aborted_are_passed_over_where_the_log_proves_that_nothing_else_is_there(
    topic: Topic, drain: Drain, connection: psycopg.Connection, reader: str
) -> None:
    """In mid-chunk, at a chunk's edge, and at the log's end; what is committed counts, what is aborted never does."""
    name = f"{topic.kafka.topic_prefix}-tx"
    topic.send(0, 3, name)  # 0 to 2, and a marker at 3
    topic.send(100, 3, name, abort=True)  # 4 to 6, and a marker at 7
    topic.wait_for_end(8)
    topic.send(3, 2)  # 8 and 9
    topic.send(200, 2, name, abort=True)  # 10 and 11, and a marker at 12
    topic.wait_for_end(13)
    done = drain(reader)
    assert (done.returncode, applied(connection)) == (0, 5), done.stderr
    names = connection.execute("select array_agg(request_id order by request_id) from usage.events").fetchone()
    assert names == ([f"req-{n}" for n in range(5)],)
    assert sources.states(connection, topic.name)[PARTITION].next_position == 13
    assert_positions_are_explained(connection)
    (empty,) = connection.execute("select sum(empty)::int8 from usage.applied_chunks").fetchone() or (None,)
    assert empty == 8
    assert connection.execute("select count(*) from usage.position_resolutions").fetchone() == (0,)
    alerts = connection.execute("select key from usage.alerts where kind = 'transactions'").fetchall()
    assert set(alerts) == {(topic.source,)}
    assert len(alerts) <= 2, "once an hour"
    with contextlib.closing(LogProof(topic.kafka)) as proof:
        log = LogReader(topic.kafka, topic.name).read()
        held = proof.held(connection, topic.source, Partition(topic.name, PARTITION), log, since=0)
    assert not held.differs, "what was aborted is no part of what was applied"


def test_a_chunk_of_many_transactions_is_asked_about_once_and_applied_at_once(
    topic: Topic, connection: psycopg.Connection, own_database_url: str
) -> None:
    """One-message transactions leave a marker behind each. One that is to end stops before it has applied anything."""
    topic.send(0, 201)  # so that the log reaches as far as what is applied of it
    asked = list[Ranges]()

    def explain(_partition: Partition, holes: Ranges) -> Nothing:
        asked.append(holes)
        if len(asked) == 1:
            ingestion.end()
        return Nothing([(n, n + 1) for n in range(1, 200, 2)], markers=100)

    messages = [Fetched(n, b"tenant_1", event_json(request_id=f"req-{n}"), 1_793_534_400_000) for n in range(0, 201, 2)]
    partition = Partition(topic.name, PARTITION)
    counted = list[tuple[int, int, int]]()
    for _ in range(2):
        ingestion = Ingestion(topic.kafka, DatabaseSettings(own_database_url), say=lambda _: None, explain=explain)
        assert ingestion.take(partition, messages, time.monotonic()) is None
        ingestion.close()
        counted.append((len(asked), applied(connection), ingestion.tally.chunks))
    assert counted == [(1, 0, 0), (2, 101, 1)]
    chunks = connection.execute("select first_position, next_position, applied, empty from usage.applied_chunks")
    assert chunks.fetchall() == [(0, 201, 101, 100)]
    assert_positions_are_explained(connection)
    ingestion = Ingestion(topic.kafka, DatabaseSettings(own_database_url), say=lambda _: None, explain=explain)
    ingestion.take(partition, messages, time.monotonic())
    ingestion.close()
    assert (len(asked), ingestion.tally.skipped) == (2, 101), "what is applied is asked about no more"


def test_a_gap_that_the_log_does_not_explain_stops_the_partition_until_a_person_passes_over_it(
    topic: Topic, connection: psycopg.Connection, own_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gives nothing of what is there, next to a marker that is nothing."""
    topic.send(0, 3, f"{topic.kafka.topic_prefix}-tx")
    topic.wait_for_end(4)
    topic.send(3, 3)
    partition, said = Partition(topic.name, PARTITION), list[str]()
    ingestion = Ingestion(
        topic.kafka, DatabaseSettings(own_database_url), say=said.append, explain=partial(explain, topic.kafka)
    )
    messages = {n: Fetched(n, b"tenant_1", event_json(request_id=f"req-{n}"), 1_793_534_400_000) for n in (0, 1, 2, 6)}
    fetched = list(messages.values())
    monkeypatch.setattr(log_gaps, "GO_BACK_TIMES", 2)
    again = [ingestion.take(partition, each, time.monotonic()) for each in (fetched, fetched[3:], fetched[3:])]
    assert again == [3, 3, None]
    assert "the log has nothing at position 3, but at 6, and does not say why" in ingestion.tally.stopped[partition]
    assert applied(connection) == 3
    with pytest.raises(CannotResolve, match="outside"):
        resolve(topic, connection, 99)
    with pytest.raises(CannotResolve, match="not applied again"):
        resolve(topic, connection, 1)
    assert resolve(topic, connection, 6) == topic.source
    assert ingestion.resume(ingestion.stored()) == {partition: 6}
    assert ingestion.take(partition, [messages[6]], time.monotonic()) is None
    assert applied(connection) == 4
    ingestion.close()


def test_a_topic_that_was_made_again_stops_the_partition_until_a_person_has_looked(
    topic: Topic, drain: Drain, connection: psycopg.Connection
) -> None:
    topic.send(0, 3)
    assert (drain().returncode, applied(connection)) == (0, 3)
    topic.make_again()
    topic.send(3, 5)
    done = drain()
    assert (done.returncode, applied(connection)) == (1, 3)
    assert "deleted and made again" in done.stderr
    for partition in range(1, USAGE.partitions):
        resolve(topic, connection, 0, partition=partition)
    with pytest.raises(CannotResolve, match="messages from 0 on that were not applied"):
        resolve(topic, connection, 1)
    assert resolve(topic, connection, 0) == f"{source_name(topic.name, PARTITION)}@2"
    assert (drain().returncode, applied(connection)) == (0, 8)
    assert_positions_are_explained(connection)


def test_a_topic_that_is_made_again_under_a_running_worker_stops_the_partition(
    topic: Topic, line: Line, connection: psycopg.Connection
) -> None:
    """The worker finds positions that it has passed already: not skipped, for they are other messages."""
    topic.send(0, 5)
    worker = line.worker()
    line.wait_for_positions(5, worker)
    topic.make_again()
    topic.send(5, 20)
    stopped = "select stopped_because from usage.sources where source = %s"
    name = source_name(topic.name, PARTITION)

    def stands_still() -> bool:
        assert applied(connection) == 5, "messages of another log were taken for the rest of this one"
        return "deleted and made again" in str(connection.execute(stopped, (name,)).fetchone())

    wait_for(stands_still, "the partition stands still", worker)


def test_a_log_whose_beginning_is_gone_stops_the_partition(
    topic: Topic, drain: Drain, connection: psycopg.Connection
) -> None:
    topic.send(0, 3)
    assert drain().returncode == 0
    topic.send(3, 5)
    partition = TopicPartition(topic.name, PARTITION, 6)
    topic.admin.delete_records([partition])[partition].result()
    done = drain()
    assert (done.returncode, applied(connection)) == (1, 3)
    assert "the log begins at 6: positions from 3 on are gone" in done.stderr
    resolve(topic, connection, 6)
    assert (drain().returncode, applied(connection)) == (0, 5)
    assert_positions_are_explained(connection)


def test_a_hint_that_is_ahead_makes_the_worker_go_back(
    topic: Topic, drain: Drain, connection: psycopg.Connection
) -> None:
    topic.send(0, 5)
    ahead = TopicPartition(topic.name, PARTITION, 4)
    group = ConsumerGroupTopicPartitions(f"{topic.kafka.topic_prefix}.streams", [ahead])
    next(iter(topic.admin.alter_consumer_group_offsets([group]).values())).result()
    assert (drain().returncode, applied(connection)) == (0, 5)


def test_passing_over_is_audited_and_needs_a_reason(topic: Topic, drain: Drain, connection: psycopg.Connection) -> None:
    topic.send(0, 3)
    reader = LogReader(topic.kafka, topic.name)
    sources.register(connection, reader.read())
    with pytest.raises(CannotResolve, match="reason"):
        resolve(topic, connection, 2, reason="")
    with pytest.raises(CannotResolve, match="does not stand still"):
        resolve(topic, connection, 2)
    sources.mark_stopped(connection, source_name(topic.name, PARTITION), "a person is to look")
    resolve(topic, connection, 2)
    (act,) = connection.execute("select actor, action, detail ->> 'to' from usage.audit_log where actor = 'ada'")
    assert act == ("ada", "streams.resolve", "2")
    assert (drain().returncode, applied(connection)) == (0, 1)


def test_a_partition_that_goes_on_while_the_log_is_read_is_not_taken_for_one_that_was_cut(
    topic: Topic, connection: psycopg.Connection, own_database_url: str
) -> None:
    topic.send(0, 3)
    reader = LogReader(topic.kafka, topic.name)
    sources.register(connection, reader.read())
    moves_on = "update usage.sources set next_position = 5 where source = %s"
    name = source_name(topic.name, PARTITION)

    def read() -> Log:
        """The log as it is; more comes and is applied by a worker, unless it waits for the position's lock."""
        log = reader.read()
        topic.send(3, 2)
        with connect(own_database_url) as worker, contextlib.suppress(psycopg.errors.LockNotAvailable):
            worker.execute("set lock_timeout = '0.1s'")
            worker.execute(moves_on, (name,))
        return log

    with pytest.raises(CannotResolve, match="does not stand still"):
        resolve(topic, connection, 0, read=read)


def test_a_log_that_was_cut_is_noticed_while_other_partitions_are_busy(
    topic: Topic, line: Line, drain: Drain, connection: psycopg.Connection
) -> None:
    """A log is cut when an election takes a replica that lacks the end. Here the position is moved instead."""
    topic.send(0, 5)
    worker = line.worker()
    line.wait_for_positions(5, worker)
    name = source_name(topic.name, PARTITION)
    connection.execute("update usage.sources set next_position = 9 where source = %s", (name,))
    busy = Producer(topic.kafka.client())
    sent = iter(range(1_000_000))

    def stands_still() -> bool:
        busy.produce(topic.name, event_json(request_id=f"busy-{next(sent)}"), b"tenant_1", partition=PARTITION + 1)
        busy.flush()
        row = connection.execute("select stopped_because from usage.sources where source = %s", (name,)).fetchone()
        return "it was truncated" in str(row)

    wait_for(stands_still, "the partition stands still", worker)
    alert = connection.execute("select kind, key, subject ->> 'position' from usage.alerts").fetchall()
    assert alert == [("source_stopped", name, "9")]

    # It grows past the position: the stop holds, for this worker and for those that have not seen the cut
    topic.send(5, 7)
    of_partition = "select count(*) from usage.events where starts_with(request_id, 'req-')"
    done = drain()
    assert (done.returncode, connection.execute(of_partition).fetchone()) == (1, (5,))
    assert "it was truncated" in done.stderr
    other = line.worker(name="two")
    assert resolve(topic, connection, 5) == f"{name}@2"
    wait_for(lambda: connection.execute(of_partition).fetchone() == (12,), "what came after the cut is applied", worker)
    worker.kill()
    topic.send(12, 3)
    wait_for(lambda: connection.execute(of_partition).fetchone() == (15,), "another worker goes on", other)


def test_a_worker_that_goes_by_a_source_that_was_replaced_follows_to_the_new_one(
    topic: Topic, connection: psycopg.Connection, own_database_url: str
) -> None:
    """Another worker had the partition when it was stopped, and a person has resolved it since."""
    topic.send(0, 5)
    said: list[str] = []
    ingestion = Ingestion(topic.kafka, DatabaseSettings(own_database_url), say=said.append)
    partition = Partition(topic.name, PARTITION)
    name = source_name(topic.name, PARTITION)
    connection.execute("update usage.sources set next_position = 3 where source = %s", (name,))
    sources.mark_stopped(connection, name, f"the log ended at 1: {sources.TRUNCATED}")
    messages = [Fetched(n, b"tenant_1", event_json(request_id=f"req-{n}"), 1_793_534_400_000) for n in range(5)]
    assert ingestion.take(partition, messages[3:], time.monotonic()) is None
    assert list(ingestion.tally.stopped) == [partition]
    assert applied(connection) == 0
    ingestion.tally.stopped.clear()  # as one that has not looked yet
    assert resolve(topic, connection, 1, lose=True) == f"{name}@2"
    assert ingestion.take(partition, messages[3:], time.monotonic()) == 1
    assert ingestion.take(partition, messages[1:], time.monotonic()) is None
    assert (applied(connection), ingestion.tally.stopped) == (4, {})
    ingestion.close()


@pytest.mark.parametrize("fate", ["kept", "cut before this start", "cut while it ran", "led by an older leader"])
def test_after_another_leader_the_log_must_hold_what_was_applied(
    topic: Topic, connection: psycopg.Connection, own_database_url: str, fate: str
) -> None:
    """A log that was cut, and has grown past the position since. Played: what was applied is not what the log has."""
    topic.send(0, 6)
    database, partition, name = DatabaseSettings(own_database_url), Partition(topic.name, PARTITION), topic.source
    one = Ingestion(topic.kafka, database, say=lambda _: None)
    lost = 0 if fate in ("kept", "led by an older leader") else 2
    for first, after in ((0, lost), (lost, 4)):
        prefix = "lost" if after == lost else "req"
        values = {n: event_json(request_id=f"{prefix}-{n}") for n in range(first, after)}
        messages = [Fetched(n, b"tenant_1", value, 1_793_534_400_000) for n, value in values.items()]
        if messages:
            assert one.take(partition, messages, time.monotonic()) is None
        if fate == "cut before this start" and messages:
            break
    older = 7 if fate == "led by an older leader" else -1
    connection.execute("update usage.sources set leader_epoch = %s", (older,))
    if fate == "cut while it ran":
        one.read_logs()
    else:
        one.close()
        one = Ingestion(topic.kafka, database, say=lambda _: None)
    epochs = connection.execute("select leader_epoch from usage.sources where source = %s", (name,)).fetchone()
    if fate == "kept":
        assert (one.tally.stopped, epochs) == ({}, (0,))
    else:
        assert sources.TRUNCATED in one.tally.stopped[partition]
        assert epochs == (older,)
        alerts = connection.execute("select kind from usage.alerts where key = %s", (name,)).fetchall()
        assert alerts == [("source_stopped",)]
        resolve(topic, connection, 0 if lost else 4)
        one.resume(one.stored())
        one.read_logs()
        assert partition not in one.tally.stopped
    one.close()


def test_a_log_that_was_cut_chunks_ago_goes_on_from_where_it_still_is_what_was_applied(
    topic: Topic, connection: psycopg.Connection, own_database_url: str
) -> None:
    """It has grown past the position before anybody looks, and this start has seen nothing of it before."""
    topic.send(0, 12)
    database, partition, name = DatabaseSettings(own_database_url), Partition(topic.name, PARTITION), topic.source
    one = Ingestion(topic.kafka, database, say=lambda _: None)
    for first in (0, 2, 4, 6):
        values = {n: event_json(request_id=f"{'lost' if first else 'req'}-{n}") for n in (first, first + 1)}
        one.take(
            partition,
            [Fetched(n, b"tenant_1", each, 1_793_534_400_000) for n, each in values.items()],
            time.monotonic(),
        )
    one.close()
    connection.execute("update usage.sources set leader_epoch = -1")
    one = Ingestion(topic.kafka, database, say=lambda _: None)
    assert one.tally.stopped[partition].endswith("it was truncated; go on from 2")
    (alert,) = connection.execute("select detail from usage.alerts where key = %s", (name,)).fetchall()
    assert alert[0].endswith("go on from 2")
    for to in (5, 8, 10):
        with pytest.raises(CannotResolve, match="messages from 2 on that were not applied"):
            resolve(topic, connection, to)
    assert resolve(topic, connection, 5, lose=True) == f"{name}@2"
    passed = connection.execute("select source, from_position, to_position from usage.position_resolutions").fetchall()
    assert passed == [(f"{name}@2", 2, 5)]
    assert one.resume(one.stored()) == {partition: 5}
    one.close()
    assert_positions_are_explained(connection)


def unanswered() -> None:
    raise KafkaUnavailable("nobody answers")


def test_nothing_of_a_new_leader_is_applied_before_its_log_was_compared_and_nothing_that_was_fetched_before(
    topic: Topic, connection: psycopg.Connection, own_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the position it has other messages only if it has them below, too. Played: the leader is the first one."""
    topic.send(0, 6)
    monkeypatch.setattr("streams.ingest.ingestion.READ_LOGS_EVERY_S", math.inf)
    database, partition = DatabaseSettings(own_database_url), Partition(topic.name, PARTITION)
    one, other = (Ingestion(topic.kafka, database, say=lambda _: None) for _ in range(2))
    messages = [Fetched(n, b"tenant_1", event_json(request_id=f"req-{n}"), 1_793_534_400_000) for n in range(6)]
    assert one.take(partition, messages[:3], time.monotonic(), 0) is None
    before = time.monotonic()
    with monkeypatch.context() as away:
        away.setattr(one, "read_logs", unanswered)
        assert one.take(partition, messages[3:], before, 1) is None
        assert one.asked_in_vain == {partition}, "the sweep goes back"
    assert one.take(partition, messages[3:], before, 1) == 3, "it holds what was applied; by which leader it will tell"

    # What somebody fetched before another compared the log is fetched again, once
    connection.execute("update usage.sources set leader_epoch = 1 where source = %s", (topic.source,))
    assert other.take(partition, messages[3:], time.monotonic(), 0) == 3
    assert other.take(partition, messages[3:], before, 0) is None
    assert applied(connection) == 3
    assert other.take(partition, messages[3:4], time.monotonic(), 1) is None
    assert applied(connection) == 4

    # The log is another one than was read of it
    lost = [Fetched(4, b"tenant_1", event_json(request_id="lost"), 1_793_534_400_000)]
    assert other.take(partition, lost, time.monotonic(), 1) is None
    connection.execute("update usage.sources set leader_epoch = -1 where source = %s", (topic.source,))
    assert one.take(partition, messages[5:], time.monotonic(), 1) is None
    assert sources.TRUNCATED in one.tally.stopped[partition]
    assert applied(connection) == 5
    one.close()
    other.close()


def test_a_partition_that_stops_twice_at_one_place_is_alerted_and_resolved_twice(
    topic: Topic, connection: psycopg.Connection, own_database_url: str
) -> None:
    topic.send(0, 3)
    one, other = (Ingestion(topic.kafka, DatabaseSettings(own_database_url), say=lambda _: None) for _ in range(2))
    partition = Partition(topic.name, PARTITION)
    for stops in (1, 2):
        one.stand_still(partition, "nothing at position 0")
        other.stand_still(partition, "nothing at position 0")
        assert connection.execute("select count(*) from usage.alerts").fetchone() == (stops,)
        resolve(topic, connection, 0)
    one.stand_still(partition, "nothing at position 0")
    resolve(topic, connection, 2)
    passed_over = connection.execute("select from_position, to_position from usage.position_resolutions").fetchall()
    assert passed_over == [(0, 2)]

    # What was fetched before is of the log as it was then
    message = Fetched(2, b"tenant_1", event_json(), 1_793_534_400_000)
    before = time.monotonic()
    assert one.resume(one.stored()) == {partition: 2}
    assert one.take(partition, [message], before) is None
    assert applied(connection) == 0
    assert one.take(partition, [message], time.monotonic()) is None
    assert applied(connection) == 1
    one.close()
    other.close()


def test_a_log_that_lost_its_beginning_before_it_was_first_seen_is_alerted_once(
    topic: Topic, connection: psycopg.Connection
) -> None:
    topic.send(0, 5)
    partition = TopicPartition(topic.name, PARTITION, 2)
    topic.admin.delete_records([partition])[partition].result()
    log = LogReader(topic.kafka, topic.name).read()
    sources.register(connection, log)
    sources.register(connection, log)
    alerts = connection.execute("select kind, key, subject ->> 'position' from usage.alerts").fetchall()
    assert alerts == [("begun_late", source_name(topic.name, PARTITION), "2")]


def test_a_partition_that_was_added_is_read_from_its_beginning(
    topic: Topic, connection: psycopg.Connection, own_database_url: str
) -> None:
    ingestion = Ingestion(topic.kafka, DatabaseSettings(own_database_url))
    topic.admin.create_partitions([NewPartitions(topic.name, USAGE.partitions + 1)])[topic.name].result()
    added = Partition(topic.name, USAGE.partitions)
    wait_for(lambda: added.number in LogReader(topic.kafka, topic.name).read().ends, "the partition is there")
    record = SimpleNamespace(
        offset=0, key=b"tenant_1", value=event_json(), timestamp=int(time.time() * 1000), headers=()
    )
    assert ingestion.take(added, [record], time.monotonic()) is None
    assert applied(connection) == 1
    assert sources.states(connection, topic.name)[added.number].next_position == 1
    ingestion.close()


def test_sweeps_keep_one_connection_and_make_another_when_it_is_gone(
    topic: Topic, connection: psycopg.Connection, owner: psycopg.Connection, own_database_url: str
) -> None:
    ingestion = Ingestion(topic.kafka, DatabaseSettings(own_database_url))
    sessions = (
        "select pid from pg_stat_activity"
        " where application_name = 'tollbook streams sweep' and datname = current_database()"
    )

    def of_sweeps() -> list[tuple[int]]:
        assert len(ingestion.sweep()) > 1
        return owner.execute(sessions).fetchall()

    ((first,),) = of_sweeps()
    assert of_sweeps() == [(first,)]
    owner.execute("select pg_terminate_backend(%s)", (first,))
    with pytest.raises(psycopg.OperationalError):
        ingestion.sweep()
    ((second,),) = of_sweeps()
    assert second != first
    ingestion.close()
