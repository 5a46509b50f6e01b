"""The shipper and heartbeats on a real Kafka: what is durable arrives, as one event each, whatever is killed when."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition
from msgspec.structs import replace

from serving_adapter.events import UsageEvent, decode
from serving_adapter.identity import content_digest_of, identity_of
from serving_adapter.replica_reports import BootReport, Farewell, Heartbeat, Report
from serving_adapter.replica_reports import decode as decode_report
from serving_adapter.report_sender import ReportSender
from serving_adapter.settings import KafkaSettings
from serving_adapter.shipping.archive import Archive
from serving_adapter.shipping.heartbeats import Heartbeats
from serving_adapter.shipping.position import load
from serving_adapter.shipping.shipper import Producers, Shipper, keep_shipping
from serving_adapter.spool.folders import BootFolder
from serving_adapter.spool.journal import BootJournal
from serving_adapter.topics import REPLICAS, USAGE
from tests.adapter_builders import ended, lost, open_journal

SEED = int(os.environ.get("TOLLBOOK_SEED", "20261121"))


def read_all(kafka: KafkaSettings, topic: str) -> Iterator[bytes]:
    """Every message of a topic, up to its end as it is now."""
    consumer = Consumer(kafka.client(**{"group.id": "reader", "enable.auto.commit": False}))
    try:
        numbers = consumer.list_topics(topic, timeout=60).topics[topic].partitions
        bounds = {n: consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=60) for n in numbers}
        consumer.assign([TopicPartition(topic, n, begin) for n, (begin, _) in bounds.items()])
        for _ in range(sum(end - begin for begin, end in bounds.values())):
            message = consumer.poll(60)
            assert message is not None
            assert message.error() is None
            yield message.value() or b""
    finally:
        consumer.close()


def shipped_events(kafka: KafkaSettings) -> list[UsageEvent]:
    return [decode(message) for message in read_all(kafka, USAGE.name(kafka.topic_prefix))]


def reports(kafka: KafkaSettings) -> list[Report]:
    return [decode_report(message) for message in read_all(kafka, REPLICAS.name(kafka.topic_prefix))]


def shipper_of(root: Path, kafka: KafkaSettings, **more: object) -> Shipper:
    return Shipper(root, Producers(kafka), say=lambda _: None, **more)  # type: ignore[arg-type]


def fill(journal: BootJournal, *names: str) -> None:
    async def run() -> None:
        for name in names:
            journal.end(await journal.start(lost(name)), ended(name))

    asyncio.run(run())


def test_a_boot_is_shipped_with_its_farewell_archived_and_never_sent_again(
    tmp_path: Path, kafka: KafkaSettings
) -> None:
    root = tmp_path / "spool"
    journal = open_journal(root, segment_bytes=4096)
    fill(journal, *(f"q{i}" for i in range(20)))
    shipper = shipper_of(root, kafka, batch=7, archive=Archive.at(str(tmp_path / "archive")))
    assert shipper.ship() == 20
    assert len(journal.folder.segments()) == 1, "what is shipped is in the archive, but the segment being written"
    fill(journal, "q20")
    journal.close()
    assert shipper.ship() == 1
    assert shipper.ship() == 0
    assert shipper_of(root, kafka).ship() == 0
    assert load(journal.folder).done
    found = shipped_events(kafka)
    assert sorted(event.seq or 0 for event in found) == list(range(1, 22))
    (farewell,) = reports(kafka)
    assert isinstance(farewell, Farewell)
    assert (farewell.last_seq, farewell.started, farewell.ended) == (21, 21, 21)
    assert [(total.tenant_id, total.events, total.output_tokens) for total in farewell.totals] == [("tenant_a", 21, 63)]
    archived = BootFolder(tmp_path / "archive" / "r1" / journal.boot_id)
    assert journal.folder.segments() == []
    assert len(archived.segments()) > 2


def test_an_event_that_kafka_will_never_take_is_set_aside_and_the_others_go_on(
    tmp_path: Path, kafka: KafkaSettings
) -> None:
    small = KafkaSettings(kafka.bootstrap, {"message.max.bytes": "1000"}, kafka.topic_prefix)
    journal = open_journal(tmp_path)
    fill(journal, "q1")
    big = replace(ended("big"), labels={f"label-{i}": "x" * 250 for i in range(16)})
    journal.end(asyncio.run(journal.start(lost("big"))), big)
    fill(journal, "q2")
    journal.close()
    assert shipper_of(tmp_path, small, batch=1).ship() == 2
    assert load(journal.folder).poison == 1
    (aside,) = (tmp_path / "poison").iterdir()
    assert b'"request_id":"big"' in aside.read_bytes()
    assert sorted(event.request_id for event in shipped_events(kafka)) == ["q1", "q2"]


SERVING = """
import asyncio, sys
from pathlib import Path
from tests.adapter_builders import ended, lost, open_journal

async def run():
    journal = open_journal(Path(sys.argv[1]), segment_bytes=65536)
    async def one(lane):
        for i in range(10**9):
            name = f"{journal.boot_id}-{lane}-{i}"
            number = await journal.start(lost(name))
            print(name, flush=True)
            await asyncio.sleep(0.002)
            journal.end(number, ended(name))
    await asyncio.gather(*(one(lane) for lane in range(8)))
asyncio.run(run())
"""
SHIPPING = """
import sys, threading
from pathlib import Path
from serving_adapter.settings import KafkaSettings
from serving_adapter.shipping.shipper import Producers, Shipper, keep_shipping
producers = Producers(KafkaSettings(sys.argv[2], topic_prefix=sys.argv[3]))
keep_shipping(Shipper(Path(sys.argv[1]), producers, batch=50), producers, threading.Event())
"""


def test_replica_and_shipper_killed_at_random_leave_exactly_one_event_of_each_request(
    tmp_path: Path, kafka: KafkaSettings
) -> None:
    """Started = ended + lost, none twice with other content, for each boot that was killed; prints its seed."""
    print("seed", SEED)
    chance = random.Random(SEED)
    told: set[str] = set()
    ship = [sys.executable, "-c", SHIPPING, str(tmp_path), kafka.bootstrap, kafka.topic_prefix]
    shipping = subprocess.Popen(ship, stdout=subprocess.DEVNULL)
    for _ in range(3):
        serving = subprocess.Popen([sys.executable, "-c", SERVING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert serving.stdout is not None
        told |= {serving.stdout.readline() for _ in range(chance.randrange(100, 300))}
        if chance.random() < 0.7:
            shipping.send_signal(signal.SIGKILL)
            shipping.wait()
            shipping = subprocess.Popen(ship, stdout=subprocess.DEVNULL)
        serving.send_signal(signal.SIGKILL)
        told |= {line for line in serving.stdout if line.endswith("\n")}
        serving.wait()
    shipping.send_signal(signal.SIGKILL)
    shipping.wait()
    shipper = shipper_of(tmp_path, kafka)
    shipper.ship()
    by_identity: dict[object, set[bytes]] = {}
    per_boot: dict[str | None, set[int | None]] = {}
    lost_by_boot: dict[str | None, set[str]] = {}
    for event in shipped_events(kafka):
        by_identity.setdefault(identity_of(event), set()).add(content_digest_of(event))
        per_boot.setdefault(event.boot_id, set()).add(event.seq)
        if event.status == "lost":
            lost_by_boot.setdefault(event.boot_id, set()).add(event.request_id)
    assert {name.strip() for name in told} <= {identity.request_id for identity in by_identity}  # type: ignore[attr-defined]
    assert all(len(contents) == 1 for contents in by_identity.values())
    farewells = {report.boot_id: report for report in reports(kafka) if isinstance(report, Farewell)}
    assert len(farewells) == 3
    assert farewells.keys() == per_boot.keys()
    for boot, said in farewells.items():
        assert per_boot[boot] == set(range(1, said.last_seq + 1))
        assert said.started == said.ended + len(lost_by_boot.get(boot, ())) == said.last_seq


def test_heartbeats_say_how_far_a_boot_is_and_repeat_what_did_not_arrive(tmp_path: Path, kafka: KafkaSettings) -> None:
    journal = open_journal(tmp_path)
    beats = Heartbeats(journal, ReportSender(kafka).send)
    beats.beat()
    fill(journal, "q1", "q2")
    number = asyncio.run(journal.start(lost("q3")))
    beats.beat()
    beats.beat()
    journal.end(number, ended("q3"))
    journal.close()
    boot, first, second, third = reports(kafka)
    assert isinstance(boot, BootReport)
    assert isinstance(first, Heartbeat)
    assert isinstance(second, Heartbeat)
    assert isinstance(third, Heartbeat)
    assert boot.at <= first.at <= second.at
    assert (first.last_seq, first.started, first.open) == (0, 0, 0)
    assert (second.last_seq, second.started, second.ended, second.open) == (2, 3, 2, 1)
    assert [total.events for total in second.totals] == [2]
    assert third.totals == []


def test_while_no_broker_answers_nothing_is_lost_and_shipping_goes_on_by_itself(
    tmp_path: Path, kafka: KafkaSettings
) -> None:
    journal = open_journal(tmp_path)
    producers, stop, said = Producers(replaced(kafka, "127.0.0.1:9")), threading.Event(), list[str]()
    shipper = Shipper(tmp_path, producers, say=said.append)
    shipping = threading.Thread(target=keep_shipping, args=(shipper, producers, stop, said.append))
    fill(journal, *(f"q{i}" for i in range(30)))
    shipping.start()
    while len(said) < 2:
        time.sleep(0.02)
    assert "the spool keeps what is not shipped" in said[1]
    assert load(journal.folder).events == 0
    producers.kafka = kafka
    while load(journal.folder).events < 30:
        time.sleep(0.02)
    stop.set()
    shipping.join()
    assert sorted(event.seq or 0 for event in shipped_events(kafka)) == list(range(1, 31))
    assert any("shipping again" in line for line in said)
    journal.close()


def replaced(kafka: KafkaSettings, bootstrap: str) -> KafkaSettings:
    return KafkaSettings(bootstrap, kafka.properties, kafka.topic_prefix)
