"""Three brokers, as in production: one at a time is lost under load, and a copy that lacks the end becomes the log."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from serving_adapter.settings import KafkaSettings
from serving_adapter.topic_check import require_fit
from serving_adapter.topics import USAGE, ensure_topics
from streams.ingest.sources import TRUNCATED, source_name
from tests.fixtures_kafka import QUIET, BrokerOfThree
from tests.fixtures_services import Databases
from tests.simulation.line import Line, Worker, ended, wait_for
from tests.simulation.services import kill, start

pytestmark = pytest.mark.xdist_group("three_brokers")  # one set of them for both tests
PARTITION = 0


@contextmanager
def lines_on(
    brokers: list[BrokerOfThree], make_database: Databases, prepare: Callable[[KafkaSettings], None]
) -> Iterator[list[Line]]:
    """A line for each reader: what befalls the brokers is the same for both."""
    bootstrap = ",".join(broker.address() for broker in brokers)
    with ExitStack() as opened:
        lines = []
        for reader in ("faust", "bare"):
            kafka = KafkaSettings(bootstrap, topic_prefix=f"test-{secrets.token_hex(5)}")
            prepare(kafka)
            ensure_topics(kafka, replication=3)
            lines.append(opened.enter_context(Line(kafka, make_database(), 20261121)))
            lines[-1].reader = reader
        yield lines


def test_leaders_change_and_brokers_come_back(three_brokers: list[BrokerOfThree], make_database: Databases) -> None:
    """The leader of a partition is killed, another broker is stopped in order; each comes back under load."""
    with lines_on(three_brokers, make_database, lambda _: None) as lines:
        require_fit(lines[0].kafka, USAGE, development=False)
        workers = [line.worker(None, "--chunk", "20") for line in lines]
        for line, worker in zip(lines, workers, strict=True):
            line.send(200)
            line.wait_for_positions(100, worker)
        lost = leader_of(lines[0])
        kill(three_brokers[lost - 1])
        for line in lines:
            line.send(200)  # acknowledged by the two that are left
        assert leader_of(lines[0]) != lost
        for line, worker in zip(lines, workers, strict=True):
            line.wait_for_positions(line.traffic.expected.messages, worker)
        start(three_brokers[lost - 1])
        wait_for(lambda: all(copies_in_sync(line) == 3 for line in lines), "the killed broker has caught up")
        stopped = three_brokers[leader_of(lines[0]) - 1]
        for line in lines:
            line.send(100)
        stopped.down(QUIET)
        for line in lines:
            line.send(100)
        start(stopped)
        for line, worker in zip(lines, workers, strict=True):
            line.send(100)
            line.wait_for_positions(line.traffic.expected.messages, worker)
            line.settled()
            worker.terminate()
            ended(worker, 0)


def test_a_log_that_ends_before_what_was_applied(three_brokers: list[BrokerOfThree], make_database: Databases) -> None:
    """The copy that lacks the end is elected; nothing of what it gets is taken until a person has looked."""
    first, second, _ = three_brokers
    with lines_on(three_brokers, make_database, of_two_copies) as lines:
        workers = [line.worker(None) for line in lines]
        for line, worker in zip(lines, workers, strict=True):
            line.send(100)
            line.wait_for_positions(line.traffic.expected.messages, worker)
        kill(second)
        for line, worker in zip(lines, workers, strict=True):
            line.send(100)  # acknowledged by the first alone
            line.wait_for_positions(line.traffic.expected.messages, worker)
        applied = [line.next_positions() for line in lines]
        kill(first)
        start(second)
        for line, worker, positions in zip(lines, workers, applied, strict=True):
            goes_on_behind_the_cut(line, worker, positions, second.node)


def goes_on_behind_the_cut(line: Line, worker: Worker, applied: dict[int, int], leader: int) -> None:
    """Partitions of which more was applied than the log now has stand still until a person says from where."""
    wait_for(lambda: leaders_of(line) == {leader}, "the copy that lacks the end is the log", worker)
    ends = line.log().ends
    cut = {partition for partition, end in ends.items() if end < applied[partition]}
    assert cut
    wait_for(lambda: line.stopped().keys() == cut, "what was cut stands still", worker)
    assert all(TRUNCATED in why for why in line.stopped().values())
    assert line.alerted() == {source_name(line.topic, partition) for partition in cut}
    line.reconnect()
    line.send(300)  # beyond where the log had ended
    further = sum(end - ends[partition] for partition, end in line.log().ends.items() if partition not in cut)
    line.wait_for_positions(sum(applied.values()) + further, worker)
    assert [line.next_positions()[partition] for partition in cut] == [applied[partition] for partition in cut]
    line.resolve({partition: ends[partition] for partition in cut})
    wait_for(lambda: line.lag() == 0, "what came after the cut is applied", worker)
    line.settled()


def of_two_copies(kafka: KafkaSettings) -> None:
    """Make the usage topic with a leader and a follower, one of which is enough, up to date or not."""
    config = {"min.insync.replicas": "1", "unclean.leader.election.enable": "true"}
    topic = NewTopic(
        USAGE.name(kafka.topic_prefix), USAGE.partitions, replica_assignment=[[1, 2]] * USAGE.partitions, config=config
    )
    admin = AdminClient(kafka.client())  # held: its futures are never done once it is gone
    admin.create_topics([topic])[topic.topic].result()


def leader_of(line: Line) -> int:
    """The broker that leads a partition."""
    return int(_partitions(line)[PARTITION].leader.id)


def leaders_of(line: Line) -> set[int]:
    """The brokers that lead the partitions; -1 for none."""
    return {partition.leader.id if partition.leader else -1 for partition in _partitions(line)}


def copies_in_sync(line: Line) -> int:
    """How many brokers have all of that partition."""
    return len(_partitions(line)[PARTITION].isr)


def _partitions(line: Line) -> list[Any]:
    admin = AdminClient(line.kafka.client())
    topics = admin.describe_topics(TopicCollection([line.topic]), request_timeout=30)
    return list(topics[line.topic].result().partitions)
