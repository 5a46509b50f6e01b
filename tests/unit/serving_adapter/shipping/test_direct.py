"""Events that only memory holds reach Kafka by themselves, also after it was away."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from serving_adapter.errors import DeliveryFailed, KafkaUnavailable
from serving_adapter.events import decode
from serving_adapter.shipping import direct
from serving_adapter.shipping.direct import DirectShipper
from serving_adapter.shipping.heartbeats import Heartbeats
from tests.adapter_builders import ended, open_journal


class Kafka:
    """Takes what it is given, but for its first failures."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.taken: list[str] = []
        self.opened = 0
        self._queued: list[str] = []

    def open(self) -> Any:
        self.opened += 1
        self._queued = []
        if self.failures and isinstance(self.failures[0], KafkaUnavailable):
            raise self.failures.pop(0)
        return self

    def send(self, key: bytes, value: bytes, headers: Any, *, may_be_refused: bool) -> None:
        assert key == b"tenant_a"
        assert ("ce_source", b"tollbook-adapter/r1") in headers
        self._queued.append(decode(value).request_id)

    def settle(self) -> list[Any]:
        if self.failures:
            raise self.failures.pop(0)
        self.taken += self._queued
        self._queued = []
        return []


def test_what_memory_alone_holds_arrives_though_kafka_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "RETRY_AFTER_S", 0.01)
    kafka = Kafka(KafkaUnavailable("away"), DeliveryFailed("lost"))
    shipper = DirectShipper(kafka.open, "r1")
    for number in range(50):
        shipper.put(ended(f"q{number}"))
    until = time.monotonic() + 60
    while shipper.sent < 50 and time.monotonic() < until:
        time.sleep(0.005)
    shipper.put(ended("last"))
    shipper.stop()
    assert kafka.taken == [*(f"q{number}" for number in range(50)), "last"]
    assert (shipper.sent, shipper.lost) == (51, 0)
    assert kafka.opened == 3, "a producer that lost a message is not used again"


def test_it_ends_though_kafka_stays_away_and_memory_is_full_and_says_what_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct, "MOST_KEPT", 2)
    kafka = Kafka(*[KafkaUnavailable("away")] * 100)
    shipper = DirectShipper(kafka.open, "r1")
    shipper.put(ended("q0"))
    while not kafka.opened:
        time.sleep(0.005)
    for number in range(1, 4):
        shipper.put(ended(f"q{number}"))
    stopping = threading.Thread(target=shipper.stop, daemon=True)
    stopping.start()
    stopping.join(60)
    assert not stopping.is_alive()
    assert (shipper.sent, shipper.lost) == (0, 4)


def test_a_heartbeat_says_that_a_boot_is_not_durable(tmp_path: Any) -> None:
    journal, said = open_journal(tmp_path), list[Any]()
    heartbeats = Heartbeats(journal, said.append)
    heartbeats.beat()
    journal.not_durable = True
    heartbeats.beat()
    journal.close()
    assert [report.not_durable for report in said[1:]] == [False, True]
