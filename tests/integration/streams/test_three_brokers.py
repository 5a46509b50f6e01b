"""Three brokers, as in production, of which one at a time is lost under load."""

from __future__ import annotations

import os
import secrets

from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient

from serving_adapter.settings import KafkaSettings
from serving_adapter.topic_check import require_fit
from serving_adapter.topics import USAGE, ensure_topics
from tests.fixtures_kafka import QUIET, BrokerOfThree
from tests.fixtures_services import Databases
from tests.simulation.line import Line, ended, reader_of, wait_for
from tests.simulation.services import kill, start

PARTITION = 0


def test_leaders_change_and_brokers_come_back(three_brokers: list[BrokerOfThree], make_database: Databases) -> None:
    """The leader of a partition is killed, another broker is stopped in order; each comes back under load."""
    bootstrap = ",".join(broker.address() for broker in three_brokers)
    kafka = KafkaSettings(bootstrap, topic_prefix=f"test-{secrets.token_hex(5)}")
    ensure_topics(kafka, replication=3)
    require_fit(kafka, USAGE, development=False)
    seed = int(os.environ.get("TOLLBOOK_SEED") or 20261121)
    print(f"seed {seed}: TOLLBOOK_SEED={seed} repeats it")
    with Line(kafka, make_database(), seed) as line:
        line.reader = reader_of(seed)
        worker = line.worker(None, "--chunk", "20")
        line.send(200)
        line.wait_for_positions(100, worker)
        lost = leader_of(line)
        kill(three_brokers[lost - 1])
        line.send(200)  # acknowledged by the two that are left
        assert leader_of(line) != lost
        line.wait_for_positions(line.traffic.expected.messages, worker)
        start(three_brokers[lost - 1])
        wait_for(lambda: copies_in_sync(line) == 3, "the killed broker has caught up", worker)
        stopped = three_brokers[leader_of(line) - 1]
        line.send(100)
        stopped.down(QUIET)
        line.send(100)
        start(stopped)
        line.send(100)
        line.wait_for_positions(line.traffic.expected.messages, worker)
        line.settled()
        worker.terminate()
        ended(worker, 0)


def leader_of(line: Line) -> int:
    """The broker that leads a partition; between two leaders it is waited for."""
    found: list[int] = []

    def there() -> bool:
        leader = _described(line).leader
        found.extend([] if leader is None else [int(leader.id)])
        return bool(found) and found[-1] >= 0

    wait_for(there, "the partition has a leader")
    return found[-1]


def copies_in_sync(line: Line) -> int:
    """How many brokers have all of that partition."""
    return len(_described(line).isr)


def _described(line: Line):  # type: ignore[no-untyped-def]
    admin = AdminClient(line.kafka.client())
    topics = admin.describe_topics(TopicCollection([line.topic]), request_timeout=60)
    return topics[line.topic].result().partitions[PARTITION]
