"""PostgreSQL and Kafka killed, stopped, started again and out of room under load, on services of these tests' own.

A worker waits, takes no more memory meanwhile, goes on by itself, and ends in order when it is told to.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from devstack.locations import prepare_home
from devstack.progress import Progress
from devstack.stack import Stack
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import ensure_topics
from tests.fixtures_services import Databases
from tests.simulation import full_disk, invariants
from tests.simulation.line import Line, ended, memory_of, wait_for
from tests.simulation.services import kill, start

pytestmark = pytest.mark.xdist_group("outages")  # one set of services for all of them
AWAY_S = 10
GROWS_AT_MOST_MIB = 50
"""Eight partitions' fetches and eight chunks of the largest size fit into that; the backlog does not."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Kafka and PostgreSQL in a folder of their own, gone afterwards."""
    cache = {name: os.environ[name] for name in ("TOLLBOOK_CACHE",) if name in os.environ}
    out = Progress(StringIO())
    with tempfile.TemporaryDirectory(prefix="tollbook-outages-") as folder:
        home = Path(folder) / "home"
        prepare_home(home)
        made = Stack(home, cache)
        try:
            made.postgres.up(out)
            made.kafka.up(out)
            yield made
        finally:
            made.clean(out)


@pytest.fixture
def line(stack: Stack) -> Iterator[Line]:
    """A line on those services."""
    kafka = replace(KafkaSettings(stack.kafka.address()), topic_prefix=f"test-{secrets.token_hex(5)}")
    ensure_topics(kafka)
    with Line(kafka, Databases(stack.postgres.address())(), 20261121) as made:
        yield made


def test_postgres_killed_under_load(stack: Stack, line: Line) -> None:
    worker = line.worker(None, "--chunk", "20")
    for _ in range(2):
        line.send(300)
        line.wait_for_positions(line.traffic.expected.messages - 300, worker)
        kill(stack.postgres)
        start(stack.postgres)
    line.wait_for_positions(line.traffic.expected.messages, worker)
    line.settled()
    worker.terminate()
    assert "nothing is lost" in ended(worker, 0)


def test_a_worker_that_is_started_before_the_services(stack: Stack, line: Line) -> None:
    """Whoever starts everything at once need not know the order."""
    line.send(50)
    kill(stack.postgres)
    command = [sys.executable, "-m", "console.main", "streams", "run", "--dev", "--listen", "127.0.0.1:0"]
    worker = line.process(command)
    assert worker.stdout is not None
    assert "waiting for it" in worker.stdout.readline()
    assert worker.poll() is None
    start(stack.postgres)
    line.wait_for_positions(line.traffic.expected.messages, worker)
    line.settled()
    worker.terminate()
    ended(worker, 0)


def test_postgres_away_for_long(stack: Stack, line: Line) -> None:
    """The backlog stays in Kafka; a worker that is told to end while it waits does so."""
    workers = [line.worker(None, name=name) for name in ("one", "two")]
    line.send(300)
    line.wait_for_positions(line.traffic.expected.messages, workers[0])
    before = memory_of(workers[0])
    stack.postgres.down(Progress(StringIO()))
    line.traffic.padding = 8000
    line.send(8000)  # about 90 MB
    line.traffic.padding = 0
    time.sleep(AWAY_S)
    grown = memory_of(workers[0]) - before
    workers[1].terminate()
    ended(workers[1], 0)
    start(stack.postgres)
    line.wait_for_positions(line.traffic.expected.messages, workers[0])
    line.settled()
    assert grown < GROWS_AT_MOST_MIB
    workers[0].terminate()
    ended(workers[0], 0)


def test_kafka_killed_under_load(stack: Stack, line: Line) -> None:
    worker = line.worker(None, "--chunk", "20")
    for _ in range(2):
        line.send(300)
        line.wait_for_positions(line.traffic.expected.messages - 300, worker)
        kill(stack.kafka)
        start(stack.kafka)
    line.send(100)
    line.wait_for_positions(line.traffic.expected.messages, worker)
    line.settled()
    worker.terminate()
    ended(worker, 0)


def test_a_full_disk(stack: Stack, line: Line) -> None:
    """PostgreSQL refuses to write (53100): the chunk is tried again until there is room, and is not quarantined."""
    password = (stack.places.home / "postgres" / "superuser.password").read_text().strip()
    superuser = make_conninfo(line.database_url, user="postgres", password=password, passfile="")
    worker = line.worker(None, "--chunk", "50")
    line.send(100)
    line.wait_for_positions(line.traffic.expected.messages, worker)
    with full_disk.disk_of(line.database_url, superuser, stack.settings.postgres_user) as disk:
        disk.fill()
        seen = stack.postgres.log.stat().st_size
        line.send(300)
        wait_for(lambda: full_disk.SAID.encode() in stack.postgres.log.read_bytes()[seen:], "the disk is full", worker)
        invariants.consistent(line.connection)
        disk.free()
        line.wait_for_positions(line.traffic.expected.messages, worker)
        line.settled()
        worker.terminate()
        assert "nothing is lost" in ended(worker, 0)
