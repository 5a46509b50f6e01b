"""What a reader does beside reading, on a real log: does it hang, or is it at work?"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from confluent_kafka import Producer

from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import USAGE
from streams import tenants
from streams.errors import WorkerCrashed
from streams.ingest.ingestion import Ingestion
from streams.ingest.sources import Partition
from streams.settings import DatabaseSettings
from streams.workers import standstill, sweeping
from streams.workers.apply_queue import Fetched
from streams.workers.sweeping import Sweeper
from tests.builders import event_json
from tests.simulation.line import PATIENCE_S, wait_for

IDLE_S = 0.5
MESSAGES = [Fetched(n, b"tenant_1", event_json(request_id=f"req-{n}"), 1_793_534_400_000) for n in range(2)]


def test_a_reader_that_waits_for_the_database_is_at_work_and_one_that_gets_nothing_more_hangs(
    kafka: KafkaSettings, own_database_url: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standstill, "IDLE_S", IDLE_S)
    monkeypatch.setattr(sweeping, "LOG_CHECK_EVERY_S", 0.0)
    tenants.register(connection, [("tenant_1", "One")], actor="test")
    partition = Partition(USAGE.name(kafka.topic_prefix), 0)
    producer = Producer(kafka.client())
    for message in MESSAGES:
        producer.produce(partition.topic, message.value, message.key, partition.number)
    producer.flush()
    ingestion = Ingestion(kafka, DatabaseSettings(own_database_url), say=lambda _: None)
    sweeper = Sweeper(ingestion, lambda _: None)

    def check() -> None:
        sweeper.check_logs(ingestion.stored(), [partition])

    with ThreadPoolExecutor(1) as applying, psycopg.connect(own_database_url) as other:
        other.execute("lock table usage.windows_1h in share mode")
        taken = applying.submit(ingestion.take, partition, MESSAGES[:1], time.monotonic())
        wait_for(lambda: ingestion.busy_s > 0, "the chunk is taken in hand")
        until = time.monotonic() + 2 * IDLE_S
        while time.monotonic() < until:
            check()
        assert not taken.done(), "the chunk did not wait for the database"
        other.rollback()
        assert taken.result(PATIENCE_S) is None
    sweeper.took(partition)
    with pytest.raises(WorkerCrashed, match="nothing comes"):
        wait_for(lambda: bool(check()), "the hanging reader is told")  # type: ignore[func-returns-value]
    ingestion.close()
