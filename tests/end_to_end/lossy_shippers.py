"""Two days of three replicas in October, whose spools are real and whose shippers may drop what they should send.

Everything is the adapter's own: journals, heartbeats, the shipper, its archive. Time is made: the journals' clock is
moved by hand, and Kafka is told the times at which it would have had the messages (a topic that takes them).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from serving_adapter.clock import ReplicaClock
from serving_adapter.events import UsageEvent, completed_at, decode
from serving_adapter.kafka_client import admin_client
from serving_adapter.producer import EventProducer, Refused, open_producer
from serving_adapter.replica_reports import Report, encode, reported_at
from serving_adapter.settings import KafkaSettings
from serving_adapter.shipping.archive import Archive, Folder
from serving_adapter.shipping.heartbeats import Heartbeats
from serving_adapter.shipping.shipper import Producers, Shipper
from serving_adapter.spool.journal import BootJournal, SpoolSettings
from serving_adapter.topics import REPLICAS, USAGE

BEGIN = datetime(2026, 10, 14, tzinfo=UTC)
END = datetime(2026, 10, 16, tzinfo=UTC)
LOST_FROM, LOST_TO = BEGIN.replace(hour=8), BEGIN.replace(hour=14)
STEP = timedelta(minutes=20)
TENANTS = ("acme", "beta", "gamma", "delta")
LOSERS = ("acme", "beta", "gamma")
REPLICAS_OF_IT = ("replica-1", "replica-2", "replica-3")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Drops = Callable[[UsageEvent], bool]


def six_hours_of_three_tenants(event: UsageEvent) -> bool:
    """What the shippers of two replicas drop."""
    is_then = LOST_FROM <= completed_at(event) < LOST_TO
    return is_then and event.tenant_id in LOSERS and event.replica_id in REPLICAS_OF_IT[:2]


@contextmanager
def times_of_producers(kafka: KafkaSettings) -> Iterator[None]:
    """Let the topics take the producers' times for a while, and keep such old messages for good."""
    _configure(kafka, "message.timestamp.type", "CreateTime")
    _configure(kafka, "retention.ms", "-1")
    yield
    _configure(kafka, "message.timestamp.type", "LogAppendTime")


def _configure(kafka: KafkaSettings, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    admin = admin_client(kafka)
    topics = [USAGE.name(kafka.topic_prefix), REPLICAS.name(kafka.topic_prefix)]
    asked = [ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry]) for topic in topics]
    for done in admin.incremental_alter_configs(asked).values():
        done.result()


class _Stamped(EventProducer):
    """Sends with the time at which the message would have come; of events not those that it drops."""

    def __init__(self, kafka: KafkaSettings, topic: str, at: Callable[[bytes], datetime], drops: Drops | None) -> None:
        self._sender: Producer = open_producer(kafka, topic)
        self._name, self._at, self._drops = topic, at, drops

    def send(
        self, key: bytes | None, value: bytes, headers: Iterable[tuple[str, bytes]] = (), told: object = None,
        *, may_be_refused: bool = False,
    ) -> None:  # fmt: skip
        if self._drops is None or not self._drops(decode(value)):
            stamp = round((self._at(value) - _EPOCH) / timedelta(milliseconds=1))
            self._sender.produce(self._name, value, key, headers=list(headers) or None, timestamp=stamp)
            self._sender.poll(0)

    def flush(self) -> None:
        assert self._sender.flush(60) == 0

    def settle(self) -> list[Refused]:
        self.flush()
        return []


@dataclass
class _StampedProducers(Producers):
    """What the shipper sends with."""

    drops: Drops = six_hours_of_three_tenants
    _made: dict[str, _Stamped] = field(default_factory=dict)

    def usage(self) -> EventProducer:
        topic = USAGE.name(self.kafka.topic_prefix)
        if topic not in self._made:
            self._made[topic] = _Stamped(self.kafka, topic, lambda event: completed_at(decode(event)), self.drops)
        return self._made[topic]

    def replicas(self) -> EventProducer:
        topic = REPLICAS.name(self.kafka.topic_prefix)
        if topic not in self._made:
            self._made[topic] = _Stamped(self.kafka, topic, lambda _: END, None)
        return self._made[topic]


class Fleet:
    """The replicas, what they made, and their archive."""

    def __init__(self, kafka: KafkaSettings, folder: Path, seed: int = 8) -> None:
        self.spool, self.archive = folder / "spool", folder / "archive"
        self.made: list[UsageEvent] = []
        self._kafka = kafka
        self._dice = random.Random(seed)
        self._now = BEGIN

    def serve(self) -> None:
        """Two days of traffic, with heartbeats straight to Kafka; then farewells, and the shipper does what it does."""
        clock = ReplicaClock(self._ns, self._ns)
        settings = SpoolSettings(self.spool, segment_bytes=65_536)
        journals = [BootJournal(settings, name, clock) for name in REPLICAS_OF_IT]
        topic = REPLICAS.name(self._kafka.topic_prefix)
        reports = open_producer(self._kafka, topic)

        def send(report: Report) -> None:
            stamp = round((reported_at(report) - _EPOCH) / timedelta(milliseconds=1))
            reports.produce(topic, encode(report), report.replica_id.encode(), timestamp=stamp)

        beats = [Heartbeats(journal, send) for journal in journals]
        for beat in beats:
            beat.beat()
        while self._now < END:
            for number, journal in enumerate(journals):
                for tenant in TENANTS:
                    self._now += timedelta(seconds=1, microseconds=self._dice.randrange(1, 999))
                    self._one(journal, tenant, number)
            for beat in beats:
                beat.beat()
            self._now = BEGIN + ((self._now - BEGIN) // STEP + 1) * STEP
        for journal in journals:
            journal.close()
        assert reports.flush(60) == 0
        shipper = Shipper(
            self.spool, _StampedProducers(self._kafka), archive=Archive(Folder(self.archive)), say=lambda _: None
        )  # fmt: skip
        shipper.ship()

    def lost(self) -> list[UsageEvent]:
        """What never came."""
        return [event for event in self.made if six_hours_of_three_tenants(event)]

    def _one(self, journal: BootJournal, tenant: str, number: int) -> None:
        request_id = f"{tenant}-{number}-{len(self.made)}"
        given = self._dice.randrange(100, 2000)
        event = UsageEvent(
            tenant_id=tenant, request_id=request_id, model="llama", input_tokens=given,
            output_tokens=self._dice.randrange(10, 500), cache_hit_tokens=given // 4, timestamp=0,
        )  # fmt: skip
        no = journal.start_now(event)
        self.made.append(journal.end(no, event))

    def _ns(self) -> int:
        return (self._now - _EPOCH) // timedelta(microseconds=1) * 1000


def summed(events: Iterable[UsageEvent]) -> dict[str, tuple[int, int, int, int]]:
    """(requests, input, cached, output tokens) by tenant."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for e in events:
        for at, count in enumerate((1, e.input_tokens, e.cache_hit_tokens, e.output_tokens)):
            found[e.tenant_id][at] += count
    return {tenant: (sums[0], sums[1], sums[2], sums[3]) for tenant, sums in found.items()}
