"""Two days of three replicas, whose spools are real, and of which two shippers drop six hours of three tenants.

Everything is the adapter's own: journals, heartbeats, the shipper, its archive. Time is made: the journals' clock is
moved by hand, and Kafka is told the times at which it would have had the messages (a topic that takes them).
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

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

DAYS: Final = timedelta(days=2)
LOST: Final = timedelta(hours=8), timedelta(hours=14)
"""From when to when after the beginning the shippers drop."""
STEP: Final = timedelta(minutes=20)
TENANTS: Final = ("acme", "beta", "gamma", "delta")
LOSERS: Final = ("acme", "beta", "gamma")
REPLICAS_OF_IT: Final = ("replica-1", "replica-2", "replica-3")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
Drops = Callable[[UsageEvent], bool]


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
    """What the shipper sends with, and when its reports come."""

    drops: Drops = lambda event: False
    reported: datetime = _EPOCH
    _made: dict[str, _Stamped] = field(default_factory=dict)

    def usage(self) -> EventProducer:
        topic = USAGE.name(self.kafka.topic_prefix)
        if topic not in self._made:
            self._made[topic] = _Stamped(self.kafka, topic, lambda event: completed_at(decode(event)), self.drops)
        return self._made[topic]

    def replicas(self) -> EventProducer:
        topic = REPLICAS.name(self.kafka.topic_prefix)
        if topic not in self._made:
            self._made[topic] = _Stamped(self.kafka, topic, lambda _: self.reported, None)
        return self._made[topic]


class Fleet:
    """The replicas, what they made of two days from `begin` on, and their archive."""

    def __init__(self, kafka: KafkaSettings, folder: Path, begin: datetime, *, model: str, seed: int = 8) -> None:
        self.spool, self.archive = folder / "spool", folder / "archive"
        self.begin, self.end = begin, begin + DAYS
        self.lost_from, self.lost_to = (begin + each for each in LOST)
        self.made: list[UsageEvent] = []
        self._kafka = kafka
        self._model = model
        self._dice = random.Random(seed)
        self._now = begin

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
        while self._now < self.end:
            for number, journal in enumerate(journals):
                for tenant in TENANTS:
                    self._now += timedelta(seconds=1, microseconds=self._dice.randrange(1, 999))
                    self._one(journal, tenant, number)
            for journal, beat in zip(journals, beats, strict=True):
                while journal.standing(0).lost_from is not None:  # the disk takes its time
                    time.sleep(0.001)
                beat.beat()
            self._now = self.begin + ((self._now - self.begin) // STEP + 1) * STEP
        for journal in journals:
            journal.close()
        assert reports.flush(60) == 0
        producers = _StampedProducers(self._kafka, drops=self.is_lost, reported=self.end)
        Shipper(self.spool, producers, archive=Archive(Folder(self.archive)), say=lambda _: None).ship()

    def lost(self) -> list[UsageEvent]:
        """What never came."""
        return [event for event in self.made if self.is_lost(event)]

    def is_lost(self, event: UsageEvent) -> bool:
        """What the shippers of two replicas drop."""
        is_then = self.lost_from <= completed_at(event) < self.lost_to
        return is_then and event.tenant_id in LOSERS and event.replica_id in REPLICAS_OF_IT[:2]

    def _one(self, journal: BootJournal, tenant: str, number: int) -> None:
        request_id = f"{tenant}-{number}-{len(self.made)}"
        given = self._dice.randrange(100, 2000)
        event = UsageEvent(
            tenant_id=tenant, request_id=request_id, model=self._model, input_tokens=given,
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
