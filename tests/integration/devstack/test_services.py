"""Real services in a home of their own: what they keep survives every way of stopping them."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from io import StringIO
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from devstack import processes, status
from devstack.errors import DevstackError
from devstack.locations import prepare_home
from devstack.progress import Progress
from devstack.stack import Stack

TOPIC = "tollbook.usage.v1"
# Nothing of this process's own services; but what was fetched is where the environment says
CACHE = {name: os.environ[name] for name in ("TOLLBOOK_CACHE",) if name in os.environ}


def test_data_survives_kill_9_and_stopping_and_clean_leaves_nothing(tmp_path: Path) -> None:
    home, out = tmp_path / "home with a blank", StringIO()
    try:
        stack = up(home, out)
        addresses = stack.environment()
        produce(addresses["TOLLBOOK_KAFKA"], b"first")
        with psycopg.connect(addresses["TOLLBOOK_DATABASE_URL"]) as connection:
            assert connection.execute("SELECT current_setting('is_superuser')").fetchone() == ("off",)
            connection.execute("CREATE TABLE kept (at timestamptz NOT NULL)")
            connection.execute("SELECT create_hypertable('kept', 'at')")
            connection.execute("INSERT INTO kept VALUES (now())")

        for service in stack.services:
            process = service.running()
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)
            assert processes.wait_until(lambda process=process: not process.alive(), 60)  # type: ignore[misc]
        assert {row.state for row in status.status(Stack(home, CACHE))} == {"stopped"}

        assert up(home, out).environment() == addresses
        assert consume(addresses["TOLLBOOK_KAFKA"]) == [b"first"]
        with psycopg.connect(addresses["TOLLBOOK_DATABASE_URL"]) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1,)

        Stack(home, CACHE).down(Progress(out))
        assert up(home, out).environment() == addresses
        assert consume(addresses["TOLLBOOK_KAFKA"]) == [b"first"]
        with urllib.request.urlopen(addresses["TOLLBOOK_STRIPE_API"] + "/_twin/health", timeout=60) as reply:
            assert reply.status == 200

        rows = json.loads(status.as_json(status.status(Stack(home, CACHE))))
        assert [row["state"] for row in rows] == ["running"] * 3
        # A second `up` finds all of them, also without the records of their processes
        for record in (home / "run").iterdir():
            record.unlink()
        up(home, out)
        assert [row.pid for row in status.status(Stack(home, CACHE))] == [row["pid"] for row in rows]
    finally:
        data = [service.data for service in Stack(home, CACHE).services]
        Stack(home, CACHE).clean(Progress(out))
    assert not any(folder.exists() for folder in (home, *data))
    assert all(service.running() is None for service in Stack(home, CACHE).services)


def test_a_server_that_cannot_start_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    out = Progress(StringIO())
    prepare_home(tmp_path / "home")
    stack = Stack(tmp_path / "home", CACHE)
    try:
        stack.postgres.up(out)
        stack.postgres.down(out)
        with (stack.postgres.data / "postgresql.auto.conf").open("a") as configuration:
            configuration.write("shared_buffers = 'plenty'\n")
        with pytest.raises(DevstackError, match='invalid value for parameter "shared_buffers"'):
            stack.postgres.up(out)
    finally:
        stack.clean(out)


def up(home: Path, out: StringIO) -> Stack:
    stack = Stack(home, CACHE)
    stack.up(Progress(out))
    return stack


def produce(bootstrap: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all"})
    producer.produce(TOPIC, value, key=b"tenant", partition=0)
    assert producer.flush(60) == 0


def consume(bootstrap: str) -> list[bytes | None]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "devstack-test", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(TOPIC, 0, 0)])
        return [message.value() for message in consumer.consume(1, timeout=60)]
    finally:
        consumer.close()
