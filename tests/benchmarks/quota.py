"""`make bench-quota`: decisions a second over HTTP and in the process, beside an empty handler of the same server.

The machine is shared: rates are also given per second of the server's own CPU time, which is what one core would do,
and latencies beside a bare fdatasync and a bare commit in the same run, and beside a server whose answers all wait for
their commits.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import psycopg
import uvloop

from serving_adapter.quota import GateSettings, QuotaGate
from serving_adapter.quota.slices import Slice
from streams import tenants
from streams.database import connect
from streams.errors import CannotServe
from streams.http import access_keys
from streams.quotas import definition_store
from streams.quotas.definitions import quota_from
from streams.quotas.http_protocol import Call, Connections
from streams.quotas.server import check_may_run_ahead
from tests.benchmarks.databases import database
from tests.benchmarks.quota_floor import committing_server
from tests.benchmarks.report import REPOSITORY, Report
from tests.benchmarks.traffic import tenant_weights
from tests.fixtures_quota_server import QuotaServerProcess, start_quota_server

QUICK = bool(os.environ.get("QUICK"))
SEED = int(os.environ.get("TOLLBOOK_SEED") or 20261121)
TENANTS = 1000 if QUICK else 10_000
SECONDS = 3.0 if QUICK else 15.0
PACED_SECONDS = 3.0 if QUICK else 8.0
RUNS = 1 if QUICK else 3
CONNECTIONS = 16
DEPTH = 64  # so many under way on each connection that the server never waits for one
PACED = 10_000
HOT_SHARE = 0.8
IN_FLIGHT_S = 5.0
"""How long a paced request runs before it is settled."""
BODY = b'{"tenant_id":"%s","request_id":"%s","model":"m-1","input_tokens":100,"max_tokens":256}'
SETTLEMENT = b'{"tenant_id":"tenant_%05d","request_id":"r-%012d","model":"m-1","input_tokens":100,"output_tokens":99}'
SETTLED_TOGETHER = 100
Settling = Callable[[int], list[bytes]]


def request(secret: str, tenant: str, request_id: str) -> bytes:
    """One reservation as it goes over the wire."""
    return post(secret, b"/v1/reservations", BODY % (tenant.encode(), request_id.encode()))


def post(secret: str, path: bytes, body: bytes) -> bytes:
    """A call."""
    head = b"POST %s HTTP/1.1\r\nhost: quota\r\nauthorization: Bearer %s\r\ncontent-length: %d\r\n\r\n"
    return head % (path, secret.encode(), len(body)) + body


class Client(asyncio.Protocol):
    """Keeps so many requests under way; counts the answers."""

    def __init__(self, requests: Callable[[int], bytes], depth: int) -> None:
        self._requests = requests
        self._depth = depth
        self._rest = b""
        self.answers = self.refused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._transport.write(self._requests(self._depth))

    def data_received(self, data: bytes) -> None:
        """Asyncio's."""
        text = self._rest + data
        came = text.count(b"HTTP/1.1 ")
        self.refused += came - text.count(b"HTTP/1.1 200")
        self.answers += came
        self._rest = data[-11:] if not data.endswith(b"}") else b""
        if came:
            self._transport.write(self._requests(came))


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float:
    """What a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def blast(port: int, pid: int, requests: Callable[[int], bytes], seconds: float) -> tuple[float, float, int]:
    """As fast as it goes: answers a second, answers per second of the server's CPU time, and how many were no 200."""
    loop = asyncio.get_running_loop()
    clients = [Client(requests, DEPTH) for _ in range(CONNECTIONS)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.sleep(0.5)
    began, cpu, before = time.perf_counter(), cpu_seconds(pid), sum(client.answers for client in clients)
    await asyncio.sleep(seconds)
    took, cpu = time.perf_counter() - began, cpu_seconds(pid) - cpu
    answers = sum(client.answers for client in clients) - before
    for client in clients:
        client._transport.abort()
    await asyncio.sleep(0.2)
    return answers / took, answers / max(cpu, 0.01), sum(client.refused for client in clients)


class Paced(asyncio.Protocol):
    """Sends when told; notes how long each answer took."""

    def __init__(self) -> None:
        self.sent: list[float] = []
        self.took: list[float] = []
        self.refused = 0
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Asyncio's. Answers come in the order of the requests."""
        now = time.perf_counter()
        came = (self._rest + data).count(b"HTTP/1.1 ")
        self.refused += data.count(b"HTTP/1.1 4") + data.count(b"HTTP/1.1 5")
        self._rest = data[-8:] if not data.endswith(b"}") else b""
        first = len(self.took)
        self.took += [now - sent for sent in self.sent[first : first + came]]


async def paced(
    port: int, requests: Callable[[int], bytes], settle: Settling, rate: int, seconds: float
) -> list[float]:
    """Seconds from sending to answer, at a steady rate over kept connections; each request is sent in the millisecond
    in which it is due. Raises AssertionError where one is not admitted.

    The requests are made before, and those that are due in one turn of the loop go over one connection together: what
    the generator does meanwhile, the server on the other core has to wait for. Each is settled some seconds later, with
    others in one call, as the adapter does it.
    """
    ready = [requests(1) for _ in range(int(rate * seconds))]
    settlements = settle(len(ready))
    gc.collect()
    gc.freeze()
    loop = asyncio.get_running_loop()
    clients = [Paced() for _ in range(CONNECTIONS)]
    settling = Paced()
    for client in (*clients, settling):
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
    began, sent, turn, settled = time.perf_counter(), 0, 0, 0
    while sent < len(ready) or settled < len(settlements):
        now = time.perf_counter()
        due = min(int((now - began) * rate), len(ready))
        if due > sent:
            client = clients[turn % CONNECTIONS]
            turn += 1
            client.sent += [now] * (due - sent)
            client.transport.write(b"".join(ready[sent:due]))
            sent = due
        if settled < min((now - began - IN_FLIGHT_S) * rate / SETTLED_TOGETHER - 1, len(settlements)):
            settling.transport.write(settlements[settled])
            settled += 1
        await asyncio.sleep(0.001)  # uvloop counts milliseconds: less is a loop without rest
    await asyncio.sleep(1.0)
    took = [each for client in clients for each in client.took]
    for client in (*clients, settling):
        client.transport.abort()
    assert not sum(client.refused for client in (*clients, settling)), "every request is admitted"
    return took


def percentile(values: list[float], percent: float) -> float:
    """Of values the one that so many percent are not above."""
    return sorted(values)[min(int(len(values) * percent / 100), len(values) - 1)]


@contextmanager
def empty_server():  # type: ignore[no-untyped-def]
    """The same HTTP server with nothing behind it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.quota", "empty"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield int(process.stdout.readline()), process.pid
    process.kill()
    process.wait()


async def serve_nothing() -> None:
    """Answer each call at once with a body of the usual size."""
    body = b"x" * 480

    def answer(call: Call) -> None:
        call.answer(200, body)

    connections = Connections(answer, 1000)
    server = await asyncio.get_running_loop().create_server(connections, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def prepare(connection: psycopg.Connection) -> str:
    """Tenants with quotas of every kind, as in production, none of which is reached; a caller's key."""
    tenants.register(connection, [(f"tenant_{n:05d}", "T") for n in range(TENANTS)], actor="bench")
    now = datetime.now(UTC)
    for period, metric in (
        ("month", "output_tokens"),
        ("month", "requests"),
        ("minute", "requests"),
        ("none", "concurrency"),
    ):
        document = {"tier": "bench", "period": period, "metric": metric, "limit": 10**14}
        definition_store.define(connection, quota_from(document, now=now), actor="bench")
    with (
        connection.cursor() as cursor,
        cursor.copy("copy usage.tenant_tiers (tenant_id, tier, starts_at, assigned_by) from stdin") as copy,
    ):
        for number in range(TENANTS):
            copy.write_row((f"tenant_{number:05d}", "bench", now, "bench"))
    secret = access_keys.secret_from(secrets.token_bytes(32))
    access_keys.add(
        connection, kind="quota", name="bench", tenant_ids=[], all_tenants=True, secret=secret, actor="bench"
    )
    return secret


def stream_of(secret: str, seed: int, numbers: list[int]) -> tuple[Callable[[int], bytes], Settling]:
    """Requests of tenants in this order, again and again, made before they are needed as far as possible; and the
    calls that settle the first so many of them."""
    name = b"r-000000000000"
    texts = {n: request(secret, f"tenant_{n:05d}", name.decode()) for n in set(numbers)}
    count = 0

    def next_ones(how_many: int) -> bytes:
        nonlocal count
        made = []
        for _ in range(how_many):
            count += 1
            made.append(texts[numbers[count % len(numbers)]].replace(name, b"r-%012d" % (seed * 10**9 + count)))
        return b"".join(made)

    def settlements(how_many: int) -> list[bytes]:
        calls = []
        for first in range(1, how_many + 1, SETTLED_TOGETHER):
            told = b",".join(
                SETTLEMENT % (numbers[no % len(numbers)], seed * 10**9 + no)
                for no in range(first, min(first + SETTLED_TOGETHER, how_many + 1))
            )
            calls.append(post(secret, b"/v1/settlements", b'{"settlements":[%s]}' % told))
        return calls

    return next_ones, settlements


def evenly(seed: int) -> list[int]:
    """All tenants alike."""
    rng = Random(seed)
    return [rng.randrange(TENANTS) for _ in range(100_000)]


def one_hot(seed: int) -> list[int]:
    """One of them has a share of all."""
    rng = Random(seed)
    return [0 if rng.random() < HOT_SHARE else rng.randrange(TENANTS) for _ in range(100_000)]


def skewed(seed: int) -> list[int]:
    """500 tenants of which ten make 80 %."""
    return Random(seed).choices(range(500), tenant_weights(), k=100_000)


def disk(url: str) -> tuple[float, float]:
    """What writing costs by itself, in ms at p99: a bare fdatasync, a bare commit of a row of a batch's size."""
    path = REPOSITORY / "build" / "fsync"
    path.parent.mkdir(exist_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_WRONLY)
    took = []
    for _ in range(300):
        os.write(handle, b"x" * 4096)
        began = time.perf_counter()
        os.fdatasync(handle)
        took.append(time.perf_counter() - began)
    os.close(handle)
    path.unlink()
    commits = []
    with connect(url, as_login=True) as connection:
        connection.execute("create table public.bare (entries bytea)")
        for _ in range(500):
            began = time.perf_counter()
            connection.execute("insert into public.bare values (%s)", (b"x" * 4096,), prepare=True)
            commits.append(time.perf_counter() - began)
    return percentile(took, 99) * 1000, percentile(commits, 99) * 1000


def leased() -> tuple[list[float], float, float]:
    """Decisions a second of CPU time out of a slice in the process; and one decision in µs: median and p99."""
    names = [f"r-{number}" for number in range(1000)]
    held = Slice("t~1.1", 1e18)
    held.add(10**9, 10**12, 10**12, 10**9, 1e18)
    admit, settle, now = held.admit, held.settle, time.monotonic
    rates = []
    for _ in range(5):
        spent = 0.0
        for _ in range(200):
            began = time.process_time()
            for name in names:
                admit(name, 1, 100, 256, now())
            spent += time.process_time() - began
            for name in names:
                settle(name, 1, 100, 50)
        rates.append(200 * len(names) / spent)
    single: list[float] = []
    for _ in range(20):
        for name in names:
            began_ns = time.perf_counter_ns()
            admit(name, 1, 100, 256, now())
            single.append(time.perf_counter_ns() - began_ns)
        for name in names:
            settle(name, 1, 100, 50)
    return rates, percentile(single, 50) / 1000, percentile(single, 99) / 1000


async def gated(port: int, secret: str) -> tuple[list[float], float, float]:
    """The same through the public gate, out of slices that the real service granted: decisions a second of CPU time,
    `try_slice`; one `await admit(…)` in µs: median and p99."""
    settings = GateSettings(port=port, secret=secret, slice_requests=10**6, slice_tokens=10**9, slice_ttl=60.0,
                            deadline=5.0)  # fmt: skip
    gate = QuotaGate(settings)
    await gate.start()
    number = 0
    while gate.try_slice("tenant_00000", f"g-{number}", "m-1", 100, 256) is None:
        number += 1
        await gate.admit("tenant_00000", f"g-{number}", "m-1", 100, 256)
    rates: list[float] = []
    single: list[float] = []
    for run in range(20):
        names = [f"g-{run}-{each}" for each in range(1000)]
        if run < 10:
            began = time.process_time()
            for name in names:
                gate.try_slice("tenant_00000", name, "m-1", 100, 256)
            rates.append(len(names) / (time.process_time() - began))
        else:
            for name in names:
                began_ns = time.perf_counter_ns()
                await gate.admit("tenant_00000", name, "m-1", 100, 256)
                single.append(time.perf_counter_ns() - began_ns)
        for name in names:
            gate.settle("tenant_00000", name, input_tokens=100, output_tokens=50)
        while gate.waiting:
            await asyncio.sleep(0.05)
    assert gate.counts["slice"] == 10_000, "all of them out of a slice"
    await gate.stop()
    return rates, percentile(single, 50) / 1000, percentile(single, 99) / 1000


def rebuilt(report: Report, url: str, secret: str) -> QuotaServerProcess:
    """All tenants at rest; then one request of each in flight, kill -9, and the time until the next process answers."""
    server = start_quota_server(url, secret)
    report.add("memory_at_rest_mib", "MiB", [memory_mib(server.process.pid)])
    requests, _ = stream_of(secret, 90, list(range(TENANTS)))
    uvloop.run(paced(server.port, requests, lambda _: [], TENANTS // 5, 5.0))
    took = []
    for _ in range(RUNS):
        server.kill()
        began = time.perf_counter()
        server = start_quota_server(url, secret)
        took.append(time.perf_counter() - began)
    report.add("rebuild_after_kill_s", "s", took)
    return server


def main(report: Report) -> None:
    """All parts."""
    rates, p50, p99 = leased()
    report.add("leased_decisions_per_s", "1/s", rates, goal=1_000_000, floor=500_000)
    report.add("leased_p50_us", "µs", [p50], goal=1, floor=2)
    report.add("leased_p99_us", "µs", [p99])
    with database() as url:
        with connect(url) as connection:
            secret = prepare(connection)
        fsync_ms, commit_ms = disk(url)
        report.add("bare_fdatasync_p99_ms", "ms", [fsync_ms])
        report.add("bare_commit_p99_ms", "ms", [commit_ms])
        server = rebuilt(report, url, secret)
        try:
            rates, p50, p99 = uvloop.run(gated(server.port, secret))
            report.add("gate_leased_decisions_per_s", "1/s", rates, goal=1_000_000, floor=500_000)
            report.add("gate_leased_p50_us", "µs", [p50], goal=1, floor=2)
            report.add("gate_leased_p99_us", "µs", [p99])
            remote(report, server.port, server.process.pid, secret)
        finally:
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(30)
        committed(report, url)
    paced_at_10k(report)


def remote(report: Report, port: int, pid: int, secret: str) -> None:
    """Over HTTP: the whole server beside the empty one, turn by turn."""
    warm, _ = stream_of(secret, 1, evenly(1))
    uvloop.run(blast(port, pid, warm, 2.0 if QUICK else 8.0))  # every tenant's windows are read once
    rates, per_cpu, empty_rates, empty_cpu, hot = [], [], [], [], []
    for run in range(RUNS):
        with empty_server() as (empty_port, empty_pid):
            requests, _ = stream_of(secret, 10 + run, evenly(10 + run))
            wall, cpu, _ = uvloop.run(blast(empty_port, empty_pid, requests, SECONDS / 2))
            empty_rates.append(wall)
            empty_cpu.append(cpu)
        requests, _ = stream_of(secret, 20 + run, evenly(20 + run))
        wall, cpu, refused = uvloop.run(blast(port, pid, requests, SECONDS))
        rates.append(wall)
        per_cpu.append(cpu)
        requests, _ = stream_of(secret, 30 + run, one_hot(30 + run))
        hot.append(uvloop.run(blast(port, pid, requests, SECONDS / 2))[1])
        if refused:
            print(f"  {refused} answers were no 200")
    report.add("remote_decisions_per_s", "1/s", per_cpu, goal=30_000, floor=15_000)
    report.add("remote_decisions_per_s_wall", "1/s", rates)
    report.add("hot_tenant_decisions_per_s", "1/s", hot, floor=15_000)
    report.add("empty_handler_per_s", "1/s", empty_cpu)
    report.add("ratio_to_empty_handler", "", [a / b for a, b in zip(per_cpu, empty_cpu, strict=True)])
    report.add("memory_mib", "MiB", [memory_mib(pid)])


def paced_at_10k(report: Report) -> None:
    """Latencies at an even pace: the platform's traffic (500 tenants, ten make 80 %), then all tenants alike.

    Each run on a service of its own: nobody confirms the usage, so that all requests stay in memory. The generator
    stands for other machines, so it runs before whatever else wants its core where that is allowed; then the service
    has turns with `--realtime` too.
    """
    ways = [(kind, numbers, realtime) for kind, numbers in (("", skewed), ("_evenly", evenly))
            for realtime in ([False, True] if may_run_ahead() else [False])]  # fmt: skip
    all_runs = [[paced_run(numbers(40 + run), 40 + run, realtime=realtime) for _, numbers, realtime in ways]
                for run in range(RUNS)]  # fmt: skip
    for at, (traffic, _, realtime) in enumerate(ways):
        kind, runs = traffic + ("_realtime" if realtime else ""), [each[at] for each in all_runs]
        took = [each for each, _ in runs]
        report.add(f"remote_p99_ms_at_10k{kind}", "ms", [percentile(each, 99) * 1000 for each in took], goal=1, floor=2)
        report.add(f"remote_p95_ms_at_10k{kind}", "ms", [percentile(each, 95) * 1000 for each in took])
        report.add(f"remote_p50_ms_at_10k{kind}", "ms", [percentile(each, 50) * 1000 for each in took])
        report.add(f"answered_share_at_10k{kind}", "", [len(each) / (PACED * PACED_SECONDS) for each in took])
        report.add(f"answered_at_once_share{kind}", "", [share for _, share in runs])


def may_run_ahead() -> bool:
    """Whether `--realtime` is allowed here."""
    try:
        check_may_run_ahead()
    except CannotServe as error:
        print(f"  generator and service wait for a core like others: {error}")
        return False
    return True


@contextmanager
def ahead(*, allowed: bool) -> Iterator[None]:
    """This thread runs before whatever else wants its core, if it may."""
    if allowed:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        if allowed:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def paced_run(numbers: list[int], seed: int, *, realtime: bool) -> tuple[list[float], float]:
    """How long each answer took, and the share of those before their commit."""
    with database() as url:
        with connect(url) as connection:
            secret = prepare(connection)
        server = start_quota_server(url, secret, *(["--realtime"] if realtime else []))
        try:
            everyone = sorted(set(numbers))
            requests, settle = stream_of(secret, 2 * seed, everyone)
            # Windows are read once, and a tenant's first request in a minute waits for its commit
            uvloop.run(paced(server.port, requests, settle, PACED // 5, len(everyone) * 5 / PACED))
            before = answers_so_far(server)
            requests, settle = stream_of(secret, 2 * seed + 1, numbers)
            with ahead(allowed=may_run_ahead()):
                took = uvloop.run(paced(server.port, requests, settle, PACED, PACED_SECONDS))
            admitted, at_once = (a - b for a, b in zip(answers_so_far(server), before, strict=True))
        finally:
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(30)
    return took, at_once / admitted


def answers_so_far(server: QuotaServerProcess) -> tuple[int, int]:
    """How many requests were admitted, and answered before their commit."""
    text = server.request("GET", "/metrics").body
    counted = dict(re.findall(r"^tollbook_quota_(\w+)_total (\d+)$", text, re.MULTILINE))
    return int(counted["admitted"]), int(counted["answered_at_once"])


def committed(report: Report, url: str) -> None:
    """The same pace where nothing is decided, and each answer waits for its commit all the same."""
    with committing_server(url) as port:
        took = []
        for run in range(RUNS):
            requests, _ = stream_of("none", 60 + run, skewed(60 + run))
            took.append(uvloop.run(paced(port, requests, lambda _: [], PACED, SECONDS)))
    for percent in (50, 99):
        report.add(f"committed_p{percent}_ms_at_10k", "ms", [percentile(each, percent) * 1000 for each in took])


if __name__ == "__main__":
    if sys.argv[1:] == ["empty"]:
        uvloop.run(serve_nothing())
    else:
        made = Report("bench-quota", SEED, QUICK)
        print(f"quota: {TENANTS} tenants, {CONNECTIONS} connections, one process")
        main(made)
        made.write()
