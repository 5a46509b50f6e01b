"""The shipper over a double of librdkafka: what Kafka would never take, and what it says."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from serving_adapter import producer
from serving_adapter.command_line import main
from serving_adapter.settings import KafkaSettings
from serving_adapter.shipping import direct, poison
from serving_adapter.shipping.archive import Archive
from serving_adapter.shipping.direct import DirectShipper
from serving_adapter.shipping.position import load
from serving_adapter.shipping.shipper import WITHOUT_ARCHIVE, Producers, Shipper, keep_shipping
from serving_adapter.shipping.shipping_figures import TURNS_WITHIN_S, ShippingFigures, serve
from tests.adapter_builders import ended, lost, open_journal


class Client:
    """librdkafka's producer: whole batches are taken, or refused for one of their messages."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.taken: list[bytes] = []
        self._queued: list[tuple[bytes, Callable[..., None]]] = []

    def produce(self, topic: str, value: bytes, key: bytes, *, headers: Any, on_delivery: Any) -> None:
        self._queued.append((value, on_delivery))

    def poll(self, timeout: float) -> None:
        if not timeout:
            return
        batch, self._queued = self._queued, []
        refused = any(b"poison" in value for value, _ in batch)
        for value, told in batch:
            if refused and self.code:
                told(KafkaError(self.code, "refused"), None)
            else:
                self.taken.append(value)
                told(None, None)

    def __len__(self) -> int:
        return len(self._queued)


@pytest.mark.parametrize("code", [KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD])
def test_an_event_that_the_broker_refuses_is_set_aside_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    client = Client(code)
    monkeypatch.setattr(producer, "open_producer", lambda *args, **more: client)
    journal = open_journal(tmp_path)

    async def run() -> None:
        for name in ("q1", "poison", "q2"):
            journal.end(await journal.start(lost(name)), ended(name))

    asyncio.run(run())
    said = list[str]()
    shipper = Shipper(tmp_path, Producers(KafkaSettings("nowhere:1")), say=said.append)
    assert journal._writer.flush(60), "the last end is on disk"
    assert shipper.ship() == 2
    journal.close()
    assert [b"q1" in value or b"q2" in value for value in client.taken] == [True, True]
    (aside,) = (tmp_path / "poison").iterdir()
    assert aside.read_bytes().count(b"\n") == 1
    assert b'"request_id":"poison"' in aside.read_bytes()
    assert (load(journal.folder).events, load(journal.folder).poison, len(said)) == (2, 1, 1)
    assert shipper.ship() == 0
    assert [(each.boot_id, each.request_id) for each in poison.listed(tmp_path)] == [(journal.boot_id, "poison")]
    monkeypatch.setenv("TOLLBOOK_KAFKA", "nowhere:1")
    assert main(["poison", "resend", "--spool", str(tmp_path)]) == 1, "it is still refused"
    assert len(poison.listed(tmp_path)) == 1
    client.code = 0
    assert main(["poison", "resend", "--spool", str(tmp_path)]) == 0
    assert (b'"request_id":"poison"' in client.taken[-1], poison.listed(tmp_path)) == (True, [])
    (kept,) = (tmp_path / "poison").iterdir()
    assert (kept.suffix, kept.read_bytes().count(b"\n")) == (".sent", 1)


def test_a_boot_that_is_over_is_not_looked_at_again_and_the_figures_say_how_far_shipping_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer, "open_producer", lambda *args, **more: Client(0))
    root, archive = tmp_path / "spool", tmp_path / "archive"
    over, open_one = open_journal(root), open_journal(root)
    for journal in (over, open_one):
        journal.end(asyncio.run(journal.start(lost("q1"))), ended("q1"))
    over.close()
    assert open_one._writer.flush(60)
    shipper = Shipper(root, Producers(KafkaSettings("nowhere:1")), archive=Archive.at(str(archive)))
    now = 100.0
    shipper.figures = ShippingFigures(clock=lambda: now)
    assert shipper.ship() == 2
    shipper.figures.turned(failed=False)
    (over.folder.path / "00000009.seg").write_bytes(b"nobody looks here")
    now = 107.0
    assert shipper.ship() == 0
    assert (over.folder.path / "00000009.seg").exists()
    shipper.figures.turned(failed=True)
    now = 110.0
    page = shipper.figures.page()
    for line in ("events_total 2", "boots 1", "lag_seconds 3.0", "failing 1", "failures_total 1", "poison_total 0"):
        assert f"\ntollbook_shipper_{line}\n" in page
    server = serve(shipper.figures, 0)
    try:
        for path, status in (("/metrics", 200), ("/health", 200), ("/x", 404)):
            asking = HTTPConnection("127.0.0.1", server.server_port)
            asking.request("GET", path)
            answer = asking.getresponse()
            assert (answer.status, answer.read().decode() == page) == (status, path == "/metrics")
            asking.close()
    finally:
        server.shutdown()
        server.server_close()
    now += TURNS_WITHIN_S
    assert not shipper.figures.is_alive
    open_one.close()


def test_a_shipper_that_frees_no_disk_says_so_at_once(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    producers, said = Producers(KafkaSettings("nowhere:1")), list[str]()
    for archive in (None, Archive.at(str(tmp_path / "archive"))):
        keep_shipping(Shipper(tmp_path / "spool", producers, archive=archive), producers, stop, said.append)
    assert said == [WITHOUT_ARCHIVE]


def test_what_memory_alone_holds_goes_on_behind_a_refused_event(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(KafkaError.INVALID_RECORD)
    monkeypatch.setattr(producer, "open_producer", lambda *args, **more: client)
    shipper = DirectShipper(lambda: producer.EventProducer(KafkaSettings("nowhere:1"), "usage"), "r1")
    for name in ("poison", "q1"):
        shipper.put(ended(name))
    shipper.stop()
    assert (shipper.sent, shipper.lost, len(client.taken)) == (1, 1, 1)


def test_what_memory_alone_holds_goes_on_with_another_producer_after_an_error_that_is_fatal_to_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Fenced(Client):
        def produce(self, *_: Any, **__: Any) -> None:
            raise KafkaException(KafkaError(KafkaError._FATAL, "fenced"))

    clients = [Fenced(0), Client(0)]
    taking = clients[-1]
    monkeypatch.setattr(producer, "open_producer", lambda *args, **more: clients.pop(0))
    monkeypatch.setattr(direct, "RETRY_AFTER_S", 0.0)
    shipper = DirectShipper(lambda: producer.EventProducer(KafkaSettings("nowhere:1"), "usage"), "r1")
    shipper.put(ended("q1"))
    while shipper._thread.is_alive() and not taking.taken:
        time.sleep(0.002)
    shipper.stop()
    assert (shipper.sent, shipper.lost) == (1, 0)
