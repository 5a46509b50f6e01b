"""PostgreSQL and Kafka killed, stopped, started again and out of room under load, on services of these tests' own.

A worker waits, takes no more memory meanwhile, goes on by itself, and ends in order when it is told to.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from devstack.locations import prepare_home
from devstack.progress import Progress
from devstack.stack import Stack
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import USAGE, ensure_topics
from streams.ingest import sources
from streams.ingest.sources import source_name
from tests.fixtures_quota_server import add_key, start_quota_server
from tests.fixtures_services import Databases
from tests.integration.streams.quotas.driver import add_tenants, define
from tests.integration.streams.quotas.load import Load
from tests.simulation import full_disk, invariants
from tests.simulation.faults import Fault
from tests.simulation.line import Line, Worker, cpu_s_of, ended, memory_of, wait_for
from tests.simulation.services import kill, start
from tests.simulation.slow_link import SlowLink

pytestmark = pytest.mark.xdist_group("outages")  # one set of services for all of them
AWAY_S = 6
GROWS_AT_MOST_MIB = 50
"""Eight partitions' fetches and eight chunks of the largest size fit into that; the backlog does not."""
BUSY_AT_MOST = 0.3
"""Of the time that a service is away, the processor's; a worker that spins takes all that it gets."""
COUNTED = "select sum(requests)::int8, sum(output_tokens)::int8 from usage.windows_1h"
COMMIT_OF_A_CHUNK = (b"insert into usage.applied_chunks", b"COMMIT")
MakeLine = Callable[..., Line]


@dataclass(frozen=True)
class Used:
    """What workers had used of the machine when a service went away."""

    workers: Sequence[Worker]
    at: float
    cpu_s: list[float]
    memory_mib: list[int]

    @staticmethod
    def by(workers: Sequence[Worker]) -> Used:
        """Until now."""
        return Used(workers, time.monotonic(), list(map(cpu_s_of, workers)), list(map(memory_of, workers)))

    def but_little_since(self) -> None:
        """They wait: neither do they spin, nor gather what they cannot apply."""
        now = Used.by(self.workers)
        busy = [(after - before) / (now.at - self.at) for before, after in zip(self.cpu_s, now.cpu_s, strict=True)]
        grown = [after - before for before, after in zip(self.memory_mib, now.memory_mib, strict=True)]
        assert max(busy) < BUSY_AT_MOST, busy
        assert max(grown) < GROWS_AT_MOST_MIB, grown


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
def make_line(stack: Stack) -> Iterator[MakeLine]:
    """Makes a line on those services, read by the reader that is named."""
    with contextlib.ExitStack() as opened:

        def make(reader: str = "faust") -> Line:
            kafka = replace(KafkaSettings(stack.kafka.address()), topic_prefix=f"test-{secrets.token_hex(5)}")
            ensure_topics(kafka)
            line = opened.enter_context(Line(kafka, Databases(stack.postgres.address())(), 20261121))
            line.reader = reader
            return line

        yield make


@pytest.fixture
def line(make_line: MakeLine) -> Line:
    """A line on those services."""
    return make_line()


@pytest.fixture
def lines(make_line: MakeLine) -> list[Line]:
    """A line for each reader: an outage is the same for both, and is waited out once."""
    return [make_line(reader) for reader in ("faust", "bare")]


def applied(lines: Sequence[Line], workers: Sequence[Worker], but: int = 0) -> None:
    """Wait until of each line all but so many messages are applied."""
    for line, worker in zip(lines, workers, strict=True):
        line.wait_for_positions(line.traffic.expected.messages - but, worker)


def end_in_order(lines: Sequence[Line], workers: Sequence[Worker]) -> list[str]:
    """All is applied: nothing is missing, and the workers end when they are told to; what they said."""
    applied(lines, workers)
    for line, worker in zip(lines, workers, strict=True):
        line.settled()
        worker.terminate()
    return [ended(worker, 0) for worker in workers]


def test_postgres_killed_before_a_commit_and_before_its_answer(stack: Stack, lines: list[Line]) -> None:
    """First nothing of the chunk is there, then all of it, and the worker cannot know: it tries again either way."""
    fault = Fault("advanced", nth=2, how="stop")
    for line in lines:
        line.send(300)
    workers = [line.struck(fault, "--chunk", "20") for line in lines]
    positions = [line.next_positions() for line in lines]
    kill(stack.postgres)
    start(stack.postgres)
    assert [line.next_positions() for line in lines] == positions
    for worker in workers:
        worker.send_signal(signal.SIGCONT)
    assert all("nothing is lost" in said for said in end_in_order(lines, workers))

    positions = [line.next_positions() for line in lines]
    with contextlib.ExitStack() as opened:
        links = [opened.enter_context(SlowLink(line.database_url, unheard=COMMIT_OF_A_CHUNK)) for line in lines]
        for line, link in zip(lines, links, strict=True):
            line.send(300)
            line.database_url = link.url
        workers = [line.worker(None, "--chunk", "20") for line in lines]
        for line, link, worker, before in zip(lines, links, workers, positions, strict=True):
            wait_for(link.answered.is_set, "the chunk is committed", worker)
            assert line.next_positions() != before
        kill(stack.postgres)
        start(stack.postgres)
        assert all("nothing is lost" in said for said in end_in_order(lines, workers))


def test_a_worker_that_is_started_before_the_services(stack: Stack, line: Line) -> None:
    """Whoever starts everything at once need not know the order."""
    line.send(50)
    kill(stack.kafka)
    kill(stack.postgres)
    command = [sys.executable, "-m", "console.main", "streams", "run", "--dev", "--listen", "127.0.0.1:0"]
    worker = line.process(command)
    assert worker.stdout is not None
    for service, missing in ((stack.kafka, "Kafka"), (stack.postgres, "PostgreSQL")):
        told = ""
        while missing not in told:
            told = worker.stdout.readline()
            assert "waiting for it" in told
        assert worker.poll() is None
        start(service)
    end_in_order([line], [worker])


def test_postgres_away_for_long(stack: Stack, lines: list[Line]) -> None:
    """The backlog stays in Kafka; a worker that is told to end while it waits does so."""
    workers = [line.worker(None) for line in lines]
    told_to_end = lines[0].worker(None, name="two")
    for line in lines:
        line.send(300)
    applied(lines, workers)
    before = Used.by(workers)
    stack.postgres.down(Progress(StringIO()))
    for line in lines:
        line.traffic.padding = 8000
        line.send(8000)  # about 90 MB
        line.traffic.padding = 0
    time.sleep(AWAY_S)
    before.but_little_since()
    told_to_end.terminate()
    ended(told_to_end, 0)
    start(stack.postgres)
    end_in_order(lines, workers)


def test_postgres_killed_and_restarted_under_the_quota_service(stack: Stack, line: Line) -> None:
    """Callers are told within a second to go by their fail mode; nothing that was promised is forgotten."""
    limit = 10**6
    add_tenants(line.connection, "t1")
    define(line.connection, limit=limit)
    server = start_quota_server(line.database_url, add_key(line.connection))
    load = Load(server)
    try:
        with load.running():
            for stop in (kill, lambda postgres: postgres.down(Progress(StringIO()))):
                before = len(load.admitted)
                load.until(lambda before=before: len(load.admitted) > before + 20)
                load.statuses.clear()
                stop(stack.postgres)
                load.until(lambda: 503 in load.statuses)
                start(stack.postgres)
            before = len(load.admitted)
            load.until(lambda: len(load.admitted) > before + 20)
        assert load.statuses <= {200, 503}
        assert sum(load.admitted.values()) <= server.quota()["reserved"] <= limit
        server.kill()
        server = start_quota_server(line.database_url, server.secret)
        assert sum(load.admitted.values()) <= server.quota()["reserved"] <= limit
    finally:
        server.kill()


def test_kafka_killed_under_load_and_away_for_long(stack: Stack, lines: list[Line]) -> None:
    workers = [line.worker(None, "--chunk", "20") for line in lines]
    for away_s in (0, AWAY_S):
        for line in lines:
            line.send(300)
        applied(lines, workers, but=300)
        kill(stack.kafka)
        if away_s:
            before = Used.by(workers)
            time.sleep(away_s)
            before.but_little_since()
        start(stack.kafka)
    for line in lines:
        line.send(100)
    end_in_order(lines, workers)


def test_a_broker_that_was_wiped_while_the_database_was_kept(stack: Stack, lines: list[Line]) -> None:
    """Another cluster, whose positions begin anew: those that are stored say nothing about it."""
    workers = [line.worker(None) for line in lines]
    for line in lines:
        line.send(100)
    applied(lines, workers)
    before = {line.reader: line.traffic.expected.messages for line in lines}
    counted = [line.connection.execute(COUNTED).fetchall() for line in lines]
    kill(stack.kafka)
    stack.kafka.remove_data()
    start(stack.kafka)
    for line in lines:
        ensure_topics(line.kafka)
        line.reconnect()
        line.send(300)  # beyond the positions that are stored
    workers = [stands_still(line, worker) for line, worker in zip(lines, workers, strict=True)]
    assert [line.connection.execute(COUNTED).fetchall() for line in lines] == counted
    for line, worker in zip(lines, workers, strict=True):
        line.resolve(dict.fromkeys(line.stopped(), 0))
        due = line.traffic.expected.messages - before[line.reader]
        supervised(
            line, worker, lambda line=line, due=due: sum(line.next_positions().values()) >= due, "all is applied"
        )
        line.settled()


def test_a_log_that_lost_its_end_with_the_power(stack: Stack, lines: list[Line]) -> None:
    """Kafka syncs nothing: what no disk had is gone, though it was applied, and the log grows past the position."""
    workers = [line.worker(None) for line in lines]
    for _ in range(2):
        for line in lines:
            line.send(100)
        applied(lines, workers)
    positions = [line.next_positions() for line in lines]
    busiest = [max(each, key=lambda partition, each=each: each[partition]) for each in positions]
    kill(stack.kafka)
    for line, partition in zip(lines, busiest, strict=True):
        (segment,) = stack.places.home.glob(f"kafka/**/{line.topic}-{partition}/*.log")
        os.truncate(segment, segment.stat().st_size - 1)  # the broker lets go of the whole last batch
    start(stack.kafka)
    for line, worker, partition, before in zip(lines, workers, busiest, positions, strict=True):
        cut_at = line.log().ends[partition]
        assert 0 < cut_at < before[partition]
        line.reconnect()
        line.send(300)
        wait_for(lambda line=line: bool(line.stopped()), "it stands still", worker)
        assert list(line.stopped()) == [partition]
        assert sources.TRUNCATED in line.stopped()[partition]
        assert line.alerted() == {source_name(line.topic, partition)}
        assert line.next_positions()[partition] == before[partition] < line.log().ends[partition]
        go_on_from = sources.go_on_from(line.stopped()[partition])
        assert go_on_from is not None
        assert go_on_from <= cut_at
        line.resolve({partition: go_on_from})
    for line, worker in zip(lines, workers, strict=True):
        wait_for(lambda line=line: line.lag() == 0, "all that the log has now is applied", worker)
        line.settled()
        worker.terminate()
        ended(worker, 0)


def supervised(line: Line, worker: Worker, happened: Callable[[], bool], what: str) -> Worker:
    """Wait for something; a worker whose topics were gone may have ended, and is started again, as supervisors do."""
    workers = [worker]

    def has_happened() -> bool:
        if workers[-1].poll() is not None:
            assert "the worker crashed" in workers[-1].communicate()[0]
            workers.append(line.worker(None))
        return happened()

    try:
        wait_for(has_happened, what)
    except AssertionError as error:
        workers[-1].kill()
        raise AssertionError(f"{error}; the worker: {workers[-1].communicate()[0]}") from None
    return workers[-1]


def stands_still(line: Line, worker: Worker) -> Worker:
    """All partitions of a line that another cluster has now do, and are alerted; the worker that runs by then."""
    worker = supervised(line, worker, lambda: len(line.stopped()) == USAGE.partitions, "all stand still")
    assert all("the cluster was" in why for why in line.stopped().values())
    assert line.alerted() >= {source_name(line.topic, partition) for partition in range(USAGE.partitions)}
    return worker


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
