"""Real workers between a real Kafka and a real database: reports and events in, gaps and alerts out, with a restart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from os import environ
from typing import Any

import psycopg
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from serving_adapter import replica_reports
from serving_adapter.producer import EventProducer
from serving_adapter.replica_reports import BootReport, Farewell, Heartbeat
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import ALERTS, REPLICAS, USAGE
from streams import tenants
from streams.completeness import completeness_store
from tests.builders import event_json
from tests.waiting import wait_for

WAIT_S = 120


class Workers:
    """`tollbook streams run` in processes, with delays of a second."""

    def __init__(self, kafka: KafkaSettings, database_url: str) -> None:
        self._environ = environ | {
            "TOLLBOOK_KAFKA": kafka.bootstrap,
            "TOLLBOOK_TOPIC_PREFIX": kafka.topic_prefix,
            "TOLLBOOK_DATABASE_URL": database_url,
            "TOLLBOOK_GAP_ALERT_AFTER_S": "1",
            "TOLLBOOK_REPLICA_SILENT_AFTER_S": "3600",  # the boot beats once, and this machine may be busy
        }
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "console.main", "streams", "run", *options]
        worker = subprocess.Popen(command, env=self._environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._running.append(worker)
        return worker

    def drain(self) -> None:
        assert self.start("--drain").wait(WAIT_S) == 0

    def kill(self) -> None:
        for worker in self._running:
            worker.kill()
            worker.wait()
        self._running.clear()


@pytest.fixture
def workers(kafka: KafkaSettings, own_database_url: str) -> Iterator[Workers]:
    made = Workers(kafka, own_database_url)
    yield made
    made.kill()


def test_a_gap_is_alerted_over_a_restart_and_closed_by_a_late_event(
    workers: Workers, kafka: KafkaSettings, connection: psycopg.Connection
) -> None:
    tenants.register(connection, [("tenant_1", "One")], actor="test")
    usage = EventProducer(kafka, USAGE.name(kafka.topic_prefix))
    reports = EventProducer(kafka, REPLICAS.name(kafka.topic_prefix))

    def send(*seqs: int) -> None:
        for seq in seqs:
            more = {"request_id": f"req-{seq}", "replica_id": "r1", "boot_id": "b1", "seq": seq}
            usage.send(b"tenant_1", event_json(**more))
        usage.flush()

    now = datetime.now(UTC)
    replica_reports.send(reports, BootReport(replica_id="r1", boot_id="b1", at=now.isoformat()))
    replica_reports.send(
        reports, Heartbeat(replica_id="r1", boot_id="b1", at=now.isoformat(), last_seq=4, started=4, ended=4, open=0)
    )
    reports.flush()
    send(1, 2, 4)
    workers.drain()
    assert completeness_store.complete_to_overall(connection).complete_to == now

    workers.start()
    workers.start()
    wait_for(lambda: len(alerts_sent(kafka)) > 0, "an alert")
    workers.kill()
    (gap,) = completeness_store.open_gaps(connection)
    assert (gap.first_number, gap.last_number) == (3, 3)
    assert {alert["subject"]["first_number"] for alert in alerts_sent(kafka)} == {3}
    assert len({alert["alert_id"] for alert in alerts_sent(kafka)}) == 1

    send(3)
    replica_reports.send(reports, Farewell(replica_id="r1", boot_id="b1", at=datetime.now(UTC).isoformat(), last_seq=4))
    reports.flush()
    workers.drain()
    assert completeness_store.open_gaps(connection) == []
    complete = completeness_store.complete_to_overall(connection)
    assert complete.held_back_by == ()
    assert complete.complete_to is not None
    assert complete.complete_to > now
    counted = connection.execute("select kind, count(*) from usage.alerts group by kind").fetchall()
    assert counted == [("gap", 1)]


def alerts_sent(kafka: KafkaSettings) -> list[dict[str, Any]]:
    """All that is in the alerts topic."""
    consumer = Consumer(
        kafka.client(**{"group.id": "test", "enable.auto.commit": False, "auto.offset.reset": "earliest",
                        "enable.partition.eof": True})
    )  # fmt: skip
    try:
        consumer.assign([TopicPartition(ALERTS.name(kafka.topic_prefix), 0, OFFSET_BEGINNING)])
        found = []
        while True:
            message = consumer.poll(5)
            if message is None or message.error() is not None:
                return found
            assert message.key() == b"r1"
            found.append(json.loads(message.value() or b""))
    finally:
        consumer.close()
