"""`make bench-streams`: how fast events become windows, and what that costs.

Everything runs on this one machine: Kafka, PostgreSQL with TimescaleDB, the workers, and the producer. While a backlog
is worked off for ten minutes, events go on arriving at the rate of the whole platform. `QUICK=1` gives a first look in
under a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

import aiokafka
import psycopg
from psycopg.types.json import Jsonb

from devstack.traffic.azure_hour import TENANTS
from serving_adapter.events import decode
from serving_adapter.identity import event_id_of, identity_of
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import USAGE, ensure_topics
from streams import tenants
from streams.database import connect
from streams.ingest import positions, sources
from streams.ingest.apply import CREATE_STAGE, STAGE, ChunkApplier
from streams.ingest.logs import Log, LogReader
from streams.quotas import definition_store
from streams.quotas.definitions import quota_from
from streams.rules.chunks import Chunk, Record, Source, read
from streams.schema import upgrade
from streams.settings import CHUNK_MESSAGES
from tests.benchmarks.report import QUICK, Report
from tests.benchmarks.traffic import delays_ms, delays_of_first_ms, tenant_weights
from tests.fixtures_quota_server import QuotaServerProcess, add_key, start_quota_server

WORKERS = int(os.environ.get("WORKERS", "2"))
SEED = 20261121
BACKLOG = 400_000 if QUICK else int(os.environ.get("BACKLOG", "10_000_000"))
SUSTAINED_S = 8 if QUICK else 600
ARRIVING_RATE = 20_000
LATENCY_RATE = 10_000
COMPARE_EVERY_S = 5.0
LATENCY_S = 8 if QUICK else 60
IDENTITIES = "" if QUICK else os.environ.get("IDENTITIES", "1_000_000,10_000_000,100_000_000")
PRELOADED = tuple(int(count) for count in IDENTITIES.split(",") if count)
FULL_TABLE_EVENTS = 400_000
ONE_TENANT_EVENTS = 50_000 if QUICK else 200_000
FULL_TABLE_RUNS = 5
FURTHER_EVENTS = 10 * CHUNK_MESSAGES
STAGE_EVENTS = 40_000 if QUICK else 400_000
PAST_DAYS = 20
TICK_HZ = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Bench:
    """Services and a database of this run's own."""

    kafka: KafkaSettings
    url: str

    @property
    def topic(self) -> str:
        """The usage topic."""
        return USAGE.name(self.kafka.topic_prefix)

    def environ(self) -> dict[str, str]:
        """For processes that take part."""
        return os.environ | {
            "TOLLBOOK_TOPIC_PREFIX": self.kafka.topic_prefix,
            "TOLLBOOK_DATABASE_URL": self.url,
        }

    def beside(self) -> Bench:
        """The same database, with all that is in it, and topics that nothing waits in."""
        other = Bench(replace(self.kafka, topic_prefix=f"bench-{secrets.token_hex(4)}"), self.url)
        ensure_topics(other.kafka)
        return other

    @contextlib.contextmanager
    def workers(self) -> Iterator[list[int]]:
        """Workers as operators run them, one a core; gives their pids."""
        command = [sys.executable, "-m", "console.main", "streams", "run"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started = [subprocess.Popen(command, env=self.environ(), **quiet) for _ in range(WORKERS)]
        try:
            yield [worker.pid for worker in started]
        finally:
            for worker in started:
                worker.terminate()
            for worker in started:
                worker.wait(30)

    def produce(
        self, count: int, rate: int = 0, stamps: int = subprocess.PIPE, tenants: int = len(TENANTS)
    ) -> subprocess.Popen[str]:
        """A producer process of its own; `stamps` is where it says when it produced what."""
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.traffic",
            self.topic,
            str(count),
            str(rate),
            str(tenants),
        ]
        return subprocess.Popen(command, env=self.environ(), stdout=stamps, text=True)


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """A fresh database and fresh topics; the database is dropped at the end."""
    server = os.environ["TOLLBOOK_DATABASE_URL"]
    name = f"tollbook_bench_{secrets.token_hex(4)}"
    head, _, options = server.partition("?")
    url = f"{head.rsplit('/', 1)[0]}/{name}" + (f"?{options}" if options else "")
    kafka = KafkaSettings(os.environ["TOLLBOOK_KAFKA"], topic_prefix=f"bench-{secrets.token_hex(4)}")
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f'create database "{name}"')
        try:
            upgrade(url)
            ensure_topics(kafka)
            with connect(url) as connection:
                tenants.register(connection, [(tenant, tenant) for tenant in TENANTS], actor="bench")
            yield Bench(kafka, url)
        finally:
            admin.execute(f'drop database if exists "{name}"')


def main() -> None:
    """Measure, print, and write build/bench-streams.json."""
    report = Report("bench-streams", SEED, QUICK)
    with bench() as b:
        print(f"producing a backlog of {BACKLOG:,} events", flush=True)
        begun = time.monotonic()
        produced = b.produce(BACKLOG)
        assert produced.wait() == 0, "the producer failed"
        report.add("produced_events_per_s", "1/s", [BACKLOG / (time.monotonic() - begun)])
        sustained(b, report)
        latency(b.beside(), report)
        report.add(
            "one_tenant_events_per_s",
            "1/s",
            [drained(b.beside(), ONE_TENANT_EVENTS, tenants=1).per_s for _ in range(3)],
        )
        stages(b, report)
        further_arrivals(b, report)
        bare_read(b, report)
        bare_copy(b, report)
    for preloaded in PRELOADED:
        full_table(report, preloaded)
    ratios(report)
    report.write()


def sustained(b: Bench, report: Report) -> None:
    """Drain the backlog for a while: events a second, CPU an event by process, memory of the worker."""
    log = LogReader(b.kafka, b.topic).read()
    total = sum(log.ends.values())
    with b.workers() as workers, connect(b.url) as connection:
        wait_for_progress(connection, log, total)
        producer = b.produce(ARRIVING_RATE * SUSTAINED_S, ARRIVING_RATE, subprocess.DEVNULL)
        rates, memory = [], [resident_mib(workers)]
        cpu_before, at_before, begun = cpu_by_part(workers, connection), lag(connection, log), time.monotonic()
        wal_before = wal_bytes(connection)
        at, then = at_before, begun
        while at > -ARRIVING_RATE * (time.monotonic() - begun) and time.monotonic() - begun < SUSTAINED_S:
            time.sleep(2.0 if QUICK else 10.0)
            now_at, now = lag(connection, log), time.monotonic()
            rates.append((at - now_at) / (now - then))
            at, then = now_at, now
            memory.append(resident_mib(workers))
        applied, wal = at_before - at, wal_bytes(connection) - wal_before
        cpu = {part: after - cpu_before[part] for part, after in cpu_by_part(workers, connection).items()}
        assert producer.poll() in (None, 0), "the producer failed"
        producer.kill()
        producer.wait()
    report.add("sustained_s", "s", [then - begun], goal=SUSTAINED_S)
    report.add("sustained_events", "1", [applied])
    report.add("sustained_events_per_s", "1/s", [applied / (then - begun)], goal=25_000)
    report.add("ingest_events_per_s", "1/s", rates, goal=25_000)
    report.add("cpu_us_per_event", "us", [sum(cpu.values()) / applied * 1e6])
    for part, seconds in cpu.items():
        report.add(f"cpu_us_per_event_{part}", "us", [seconds / applied * 1e6])
    report.add("wal_bytes_per_event", "B", [wal / applied])
    report.add("workers_memory_mib", "MiB", [memory[-1]])
    report.add("workers_memory_growth_mib", "MiB", [memory[-1] - memory[len(memory) // 4]])


def latency(b: Bench, report: Report) -> None:
    """Produce evenly and watch positions: from produce() to visible.

    An event is in its window and in the quota feed when its position is passed, since all three move in one
    transaction. That is measured too: now and then all are read in one snapshot, and must have moved alike.
    """
    with connect(b.url) as connection, quota_watch(b, connection) as in_quota, b.workers():
        wait_for_members(b, connection)
        producer = b.produce(LATENCY_RATE * LATENCY_S, LATENCY_RATE)
        visible = watch(connection, b, producer)
        in_quota.wait_for(LATENCY_RATE * LATENCY_S)
    assert producer.stdout is not None
    stamped = list(producer.stdout)
    for place, delays in (
        ("visible", delays_ms(stamped, visible)), ("in_quota", delays_of_first_ms(stamped, in_quota.seen))
    ):  # fmt: skip
        cuts = quantiles(delays, n=100)
        report.add(f"{place}_p50_ms_at_10k", "ms", [cuts[49]])
        report.add(f"{place}_p99_ms_at_10k", "ms", [cuts[98]], goal=1000)


class QuotaWatch:
    """Asks the quota service all the time how much of the first tenant's usage is confirmed."""

    def __init__(self, server: QuotaServerProcess) -> None:
        self._server = server
        self._began_with = self._confirmed()
        self.seen: list[tuple[float, int]] = []
        """How many events since, over time."""
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._ask_again_and_again)
        self._thread.start()

    def wait_for(self, produced: int) -> None:
        """Until its share of what was produced has come, or long enough."""
        until = time.monotonic() + 30
        while self.seen[-1][1] < produced * tenant_weights()[0] * 0.9 and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(3.0)

    def stop(self) -> None:
        """End."""
        self._ends.set()
        self._thread.join()

    def _ask_again_and_again(self) -> None:
        while not self._ends.wait(0.01):
            count = self._confirmed() - self._began_with
            self.seen.append((time.time(), count))

    def _confirmed(self) -> int:
        return int(self._server.quota("month-requests", TENANTS[0])["confirmed"])


@contextlib.contextmanager
def quota_watch(b: Bench, connection: psycopg.Connection) -> Iterator[QuotaWatch]:
    """The quota service beside the workers, with a budget of requests for the first tenant, watched."""
    document = {"tenant_id": TENANTS[0], "period": "month", "metric": "requests", "limit": 10**14}
    definition_store.define(connection, quota_from(document, now=datetime.now(UTC)), actor="bench")
    server = start_quota_server(b.url, add_key(connection))
    try:
        while server.request("GET", f"/v1/tenants/{TENANTS[0]}/quota").status != 200:
            time.sleep(0.2)
        watched = QuotaWatch(server)
        try:
            yield watched
        finally:
            watched.stop()
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)


def watch(
    connection: psycopg.Connection, b: Bench, producer: subprocess.Popen[str]
) -> list[tuple[float, dict[int, int]]]:
    """Positions over time, every few milliseconds, until the producer has ended and all is applied."""
    seen: list[tuple[float, dict[int, int]]] = []
    before, compared_at = moved(connection, {}), time.monotonic()
    ends: dict[int, int] | None = None
    deadline = time.monotonic() + LATENCY_S + 60
    while time.monotonic() < deadline:
        positions = {p: state.next_position for p, state in sources.states(connection, b.topic).items()}
        seen.append((time.time(), positions))
        if time.monotonic() - compared_at > COMPARE_EVERY_S:
            require_moved_alike(connection, before)
            compared_at = time.monotonic()
        if producer.poll() is not None:
            ends = ends or LogReader(b.kafka, b.topic).read().ends
            if all(positions[p] >= end for p, end in ends.items()):
                require_moved_alike(connection, before)
                break
        time.sleep(0.01)
    return seen


class Moved(NamedTuple):
    """How many events are applied, in windows, and in the feed since the given ingests, in one snapshot."""

    ingest_no: dict[str, int]
    applied: int
    in_windows: int
    in_feed: int


def moved(connection: psycopg.Connection, since: Mapping[str, int]) -> Moved:
    """What has moved; of the feed only what came after the ingests `since`, by source."""
    row = connection.execute(
        "with at as (select * from usage.sources where feed = 'usage') select"
        " (select jsonb_object_agg(source, ingest_no) from at), (select sum(applied)::int8 from at),"
        " (select coalesce(sum(events), 0)::int8 from usage.windows_1h),"
        " (select coalesce(sum(f.n), 0)::int8 from jsonb_each_text(%s) as since (source, ingest_no),"
        "  lateral (select count(*) as n from usage.quota_feed as f"
        "           where f.source = since.source and f.ingest_no > since.ingest_no::int8) as f)",
        (Jsonb(dict(since)),),
    ).fetchone()
    assert row is not None, "an aggregate always has a row"
    return Moved(*row)


def require_moved_alike(connection: psycopg.Connection, before: Moved) -> None:
    """All that positions passed since is in windows and in the feed, in whatever moment one looks."""
    now = moved(connection, before.ingest_no)
    in_windows, in_feed = now.in_windows - before.in_windows, now.in_feed - before.in_feed
    assert now.applied - before.applied == in_windows == in_feed, "a window or the feed lags behind the positions"


class StageClock:
    """A checkpoint that adds up the CPU between two steps of a chunk, ours and that of our session in PostgreSQL."""

    def __init__(self, backend: int) -> None:
        self._backend = Path(f"/proc/{backend}/schedstat")
        self._at = self._now()
        self.spent: dict[str, tuple[float, float]] = {}
        """Seconds of ours and of PostgreSQL's up to a step."""

    def __call__(self, step: str) -> None:
        now = self._now()
        ours, theirs = self.spent.get(step, (0.0, 0.0))
        self.spent[step] = (ours + now[0] - self._at[0], theirs + now[1] - self._at[1])
        self._at = now

    def _now(self) -> tuple[float, float]:
        return time.thread_time(), int(self._backend.read_text().split()[0]) / 1e9


def stages(b: Bench, report: Report) -> None:
    """CPU an event, from one step of a chunk's transaction to the next."""
    from tests.benchmarks.traffic import events

    received, source = datetime.now(UTC), Source("bench:stages", "bench", "bench")
    records = [Record(i, key, value, received) for i, (key, value) in enumerate(events(STAGE_EVENTS, SEED + 1))]
    with connect(b.url) as connection:
        connection.execute(
            "insert into usage.sources (source, cluster_id, topic_id, leader_epoch, first_position, next_position)"
            " values (%s, %s, %s, 0, 0, 0)",
            (source.name, source.cluster_id, source.topic_id),
        )
        clock = StageClock(connection.info.backend_pid)
        applier = ChunkApplier(connection, clock)
        for start in range(0, STAGE_EVENTS, CHUNK_MESSAGES):
            applier.apply(Chunk(source, records[start : start + CHUNK_MESSAGES]))
            if not start:
                clock.spent.clear()  # plans are made, caches are filled
    for step, seconds in clock.spent.items():
        for part, spent in zip(("worker", "postgres"), seconds, strict=True):
            report.add(f"stage_{step}_{part}_us", "us", [spent / (STAGE_EVENTS - CHUNK_MESSAGES) * 1e6])


def further_arrivals(b: Bench, report: Report) -> None:
    """Messages a second that take the place of another source's event, and that correct one, in chunks of nothing else,
    by one applier.
    """
    from tests.benchmarks.traffic import events

    received, source = datetime.now(UTC), Source("bench:further", "bench", "bench")
    engine = [value for _, value in events(FURTHER_EVENTS, SEED + 2)]
    gateway = [value[:-1] + b',"usage_source":"gateway"}' for value in engine]
    corrections = [gpu_time_of(value) for value in engine]
    records = [Record(i, None, value, received) for i, value in enumerate([*gateway, *engine, *corrections])]
    rates: list[float] = []
    with connect(b.url) as connection:
        positions.register(connection, source)
        applier = ChunkApplier(connection)
        for start in range(0, len(records), CHUNK_MESSAGES):
            begun = time.monotonic()
            done = applier.apply(Chunk(source, records[start : start + CHUNK_MESSAGES]))
            rates.append(CHUNK_MESSAGES / (time.monotonic() - begun))
            assert done.applied == CHUNK_MESSAGES, done
    chunks = FURTHER_EVENTS // CHUNK_MESSAGES
    report.add("superseding_events_per_s", "1/s", rates[chunks : 2 * chunks], goal=5000)
    report.add("correcting_events_per_s", "1/s", rates[2 * chunks :], goal=5000)


def gpu_time_of(value: bytes) -> bytes:
    """The correction by which a usage event's GPU time follows (docs/spec/metering.md 1.9)."""
    event = decode(value)
    named = {"tenant_id": event.tenant_id, "request_id": event.request_id, "model": event.model,
             "timestamp": event.timestamp, "kind": "correction", "correction_no": 1,
             "corrects": str(event_id_of(identity_of(event)))}  # fmt: skip
    return json.dumps(named | {"input_tokens": 0, "output_tokens": 0, "cache_hit_tokens": 0, "gpu_us": 5}).encode()


def bare_read(b: Bench, report: Report) -> None:
    """The floor of reading: aiokafka alone, doing nothing."""

    async def read_all() -> float:
        consumer = aiokafka.AIOKafkaConsumer(
            b.topic, bootstrap_servers=b.kafka.bootstrap, auto_offset_reset="earliest", enable_auto_commit=False
        )
        await consumer.start()
        try:
            count, begun = 0, 0.0
            while not begun or time.monotonic() - begun < 5:
                batch = await consumer.getmany(timeout_ms=1000, max_records=8000)
                if not batch:
                    break
                begun = begun or time.monotonic()
                count += sum(map(len, batch.values()))
            return count / (time.monotonic() - begun)
        finally:
            await consumer.stop()

    report.add("bare_read_events_per_s", "1/s", [asyncio.run(read_all()) for _ in range(3)])


def bare_copy(b: Bench, report: Report) -> None:
    """The floor of writing: the same rows by binary COPY into a plain table, in the same chunks, committed each."""
    from streams.ingest.apply import _stage_row, adapt
    from tests.benchmarks.traffic import events

    received = datetime.now(UTC)
    accepted = [read(Record(i, key, value, received)) for i, (key, value) in enumerate(events(20_000, SEED))]
    rows = [_stage_row(message) for message in accepted]  # type: ignore[arg-type]
    runs = []
    with connect(b.url, as_login=True) as connection:
        connection.execute(
            CREATE_STAGE.replace("temporary table", "table")
            .replace("stage (", "bench_copy (")
            .replace(" on commit delete rows", "")
        )
        adapt(connection)
        for _ in range(3):
            begun, count = time.monotonic(), 0
            while time.monotonic() - begun < 5:
                for start in range(0, len(rows), 2000):
                    with (
                        connection.cursor() as cursor,
                        cursor.copy(
                            f"copy bench_copy ({', '.join(name for name, _ in STAGE)}) from stdin (format binary)"
                        ) as copy,
                    ):
                        copy.set_types([kind for _, kind in STAGE])
                        for row in rows[start : start + 2000]:
                            copy.write_row(row)
                    count += 2000
            runs.append(count / (time.monotonic() - begun))
            connection.execute("truncate bench_copy")
    report.add("bare_copy_events_per_s", "1/s", runs)


def full_table(report: Report, preloaded: int) -> None:
    """The rate with so many identities there already (UUIDv7, older), in turns with the same on an empty table."""
    with bench() as empty, bench() as full:
        print(f"preloading {preloaded:,} identities", flush=True)
        preload(full.url, preloaded)
        slower, cost = [], []
        for _ in range(FULL_TABLE_RUNS):
            before, after = drained(empty, FULL_TABLE_EVENTS), drained(full, FULL_TABLE_EVENTS)
            slower.append(before.per_s / after.per_s)
            cost.append((before.cpu_us, after.cpu_us))
    label = f"{preloaded // 1_000_000}m_ids"
    report.add(f"slowdown_{label}", "ratio", slower, goal=1.2)
    report.add(f"cpu_us_per_event_{label}", "us", [after for _, after in cost])
    report.add(f"cpu_us_per_event_beside_{label}_empty", "us", [before for before, _ in cost])


class Drained(NamedTuple):
    """Events a second, and CPU an event of workers, PostgreSQL and Kafka."""

    per_s: float
    cpu_us: float


def drained(b: Bench, count: int, tenants: int = len(TENANTS)) -> Drained:
    """Workers drain so many events of so many tenants; one tenant's are one partition's."""
    assert b.produce(count, tenants=tenants).wait() == 0, "the producer failed"
    log = LogReader(b.kafka, b.topic).read()
    with b.workers() as workers, connect(b.url) as connection:
        wait_for_progress(connection, log, count)
        begun, at, cpu = time.monotonic(), lag(connection, log), sum(cpu_by_part(workers, connection).values())
        while lag(connection, log):
            time.sleep(0.05)
        cpu = sum(cpu_by_part(workers, connection).values()) - cpu
        return Drained(at / (time.monotonic() - begun), cpu / at * 1e6)


def preload(url: str, count: int) -> None:
    """Identities of the past, in order of time as they came."""
    with connect(url, as_login=True) as connection:
        connection.execute("set synchronous_commit = off")
        for start in range(0, count, 1_000_000):
            connection.execute(
                "insert into usage.event_identities"
                " (key, completed_at, position, source_no, usage_source, content_digest, numbered_by)"
                " select (lpad(to_hex(%(begin)s + n * %(span)s / %(count)s), 12, '0') || substr(r, 13))::uuid,"
                " now() - interval '20 days', n, 1, 'engine', decode(r, 'hex'), null"
                " from (select n, md5(n::text) as r"
                " from generate_series(%(first)s::bigint, %(last)s::bigint) as n) as made",
                {
                    "begin": int((time.time() - PAST_DAYS * 86_400) * 1000),
                    "span": PAST_DAYS * 86_400_000,
                    "count": count,
                    "first": start,
                    "last": min(start + 1_000_000, count) - 1,
                },
            )
        connection.execute("analyze usage.event_identities")
        connection.execute("checkpoint") if is_superuser(connection) else None


def is_superuser(connection: psycopg.Connection) -> bool:
    """Whether a checkpoint can be asked for."""
    row = connection.execute("select usesuper from pg_user where usename = current_user").fetchone()
    return bool(row and row[0])


def ratios(report: Report) -> None:
    """The figures beside their floors, and the slow-down at the largest table measured."""
    ingest = report.figures["ingest_events_per_s"].value
    report.add("ratio_to_bare_read", "ratio", [report.figures["bare_read_events_per_s"].value / ingest], floor=1.0)
    report.add("ratio_to_bare_copy", "ratio", [report.figures["bare_copy_events_per_s"].value / ingest], floor=1.0)
    measured = [figure.value for key, figure in report.figures.items() if key.startswith("slowdown_")]
    if measured:
        report.add("slowdown_full_table", "ratio", [measured[-1]], goal=1.2)


def lag(connection: psycopg.Connection, log: Log) -> int:
    """Messages of the log that are not applied."""
    return sources.lag(connection, log)


def wait_for_progress(connection: psycopg.Connection, log: Log, total: int) -> None:
    """Until the worker has joined and applied something."""
    deadline = time.monotonic() + 60
    while lag(connection, log) >= total:
        assert time.monotonic() < deadline, "the worker does not begin"
        time.sleep(0.05)


def wait_for_members(b: Bench, connection: psycopg.Connection) -> None:
    """Until the workers have all partitions and have caught up: a few messages go through before the clock starts."""
    deadline = time.monotonic() + 90
    for _ in range(2):
        assert b.produce(len(TENANTS)).wait() == 0
        while sources.lag(connection, LogReader(b.kafka, b.topic).read()):
            assert time.monotonic() < deadline, "the workers do not begin"
            time.sleep(0.5)
        time.sleep(5)  # a second worker that joins moves partitions once more


def wal_bytes(connection: psycopg.Connection) -> int:
    """WAL written so far, whoever wrote it."""
    row = connection.execute("select (pg_current_wal_lsn() - '0/0')::int8").fetchone()
    assert row is not None
    return int(row[0])


def cpu_by_part(workers: list[int], connection: psycopg.Connection) -> dict[str, float]:
    """CPU seconds so far of the workers, of the connection's PostgreSQL with all its processes, and of Kafka."""
    server = parent(connection.info.backend_pid)
    found = {"workers": sum(map(cpu_seconds, workers)), "postgres": cpu_seconds(server, ended=True), "kafka": 0.0}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            pid = int(path.parent.name)
            if parent(pid) == server:
                found["postgres"] += cpu_seconds(pid)
            elif b"kafka.Kafka" in path.read_bytes():
                found["kafka"] += cpu_seconds(pid)
    return found


def parent(pid: int) -> int:
    """The process that started it."""
    return int(stat(pid)[1])


def cpu_seconds(pid: int, *, ended: bool = False) -> float:
    """User and system time of a process; with that of those it started that have `ended`."""
    fields = stat(pid)
    return sum(map(int, fields[11 : 15 if ended else 13])) / TICK_HZ


def stat(pid: int) -> list[str]:
    """What the kernel tells of a process, from its state on (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def resident_mib(pids: list[int]) -> float:
    """Resident memory of processes together."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
