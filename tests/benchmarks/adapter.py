"""`make bench-adapter`: what the middleware adds to a request, beside the same server without it and a bare fdatasync.

In one process and without sockets, so that what is measured is the adapter: an engine that answers at once for what is
added to a request; one that takes 20 ms for requests a second with 32 in flight; 16 streams of a token each 2 ms, which
is vLLM's pace with the tests' model. Each request is a sequence of an engine's double, which calls what the adapter's
hooks are in; the one that is measured without has none. The loop is uvloop, as in vLLM's server. A request is over when
the last byte of its answer is handed to the server: what follows (the event, its counts) no client waits for; it is in
the CPU and the rate. Requests with and without take turns, because the machine is shared. The proxy is measured over
HTTP, as a process of its own (proxy.py).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any

import msgspec
import uvloop

from serving_adapter.isolation.callers import Caller, sign
from serving_adapter.isolation.rules import Rules
from serving_adapter.serving.adapter_settings import AdapterSettings, SpoolSection
from serving_adapter.serving.middleware import Middleware
from serving_adapter.serving.replica import Replica
from tests.benchmarks.proxy import measure_proxy
from tests.benchmarks.report import QUICK, REPOSITORY, Report
from tests.engine_double import engine_app

RUNS = 3 if QUICK else 5
REQUESTS = 300 if QUICK else 2000
TOKENS = 300 if QUICK else 3000
STREAMS = 16
TOKEN_S = 0.002
IN_FLIGHT = 32
TAKES_S = 0.02
KEY = b"k" * 32
GOAL_MS = 0.3
PARTS = ("cpu_us_checks", "cpu_us_start", "cpu_us_engine_and_answer", "cpu_us_end")
"""Of the loop's thread: until the start is handed over; until the engine sees it; the answer; what follows it."""
PROMPT = "count every token once " * 100
NUMBERS = itertools.count()

Message = MutableMapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


class Bench:
    """A bare app and the same app behind the middleware."""

    def __init__(self, folder: Path) -> None:
        (folder / "salt").write_bytes(b"s" * 32)
        (folder / "keys").write_bytes(b"k1 " + KEY)
        for name in ("salt", "keys"):
            (folder / name).chmod(0o600)
        settings = AdapterSettings(
            replica_id="bench", spool=SpoolSection(folder=str(folder / "spool")), salt_key=str(folder / "salt"),
            gateway_keys=str(folder / "keys"), rules=msgspec.convert({"models": {"tiny": [{"engine": "tiny"}]}}, Rules),
        )  # fmt: skip
        self._bare, self._hooked = engine_app(0), engine_app(0)
        self.replica = Replica(settings)
        self.metered: App = Middleware(at_once, self.replica)
        self.working: App = Middleware(in_a_while, self.replica)
        self.streaming: App = Middleware(streamed, self.replica)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """A caller that the gateway has just signed, as each request has."""
        caller = Caller(tenant_id="tenant_a", tier="paid")
        signed = sign(caller, "k1", KEY, now=int(time.time()))
        return [(b"content-type", b"application/json"), (b"x-tollbook-caller", signed.encode())]

    def scope(self, app: App) -> dict[str, Any]:
        """An HTTP request to the completions route, of the engine that is the app's."""
        engine = self._hooked if isinstance(app, Middleware) else self._bare
        return {
            "type": "http", "method": "POST", "path": "/v1/completions", "headers": self.headers(),
            "client": ("127.0.0.1", 1), "app": engine,
        }  # fmt: skip


BODY = json.dumps({"model": "tiny", "prompt": PROMPT, "max_tokens": 64, "temperature": 0.5}).encode()
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}


def generated(scope: Any, body: dict[str, Any], tokens: int) -> AsyncIterator[Any]:
    """The outputs of a sequence of the engine's, as vLLM's handlers ask for them."""
    params = SimpleNamespace(n=1, max_tokens=tokens, fail_at=None, stop_at=None, error_at=None)
    outputs: AsyncIterator[Any] = scope["app"].state.engine_client.generate(
        "x", params, f"cmpl-{next(NUMBERS)}", cache_salt=body.get("cache_salt")
    )
    return outputs


async def at_once(scope: Any, receive: Any, send: Any) -> None:
    """Reads the request, as any server does, and answers with a token."""
    async for _ in generated(scope, json.loads((await receive())["body"]), 1):
        pass
    await send(START)
    await send({"type": "http.response.body", "body": b'{"model":"tiny"}'})


async def in_a_while(scope: Any, receive: Any, send: Any) -> None:
    """The same, after the engine has worked."""
    await asyncio.sleep(TAKES_S)
    await at_once(scope, receive, send)


async def streamed(scope: Any, receive: Any, send: Any) -> None:
    """Tokens, each written as a server-sent event."""
    body = json.loads((await receive())["body"])
    await send(START)
    async for output in generated(scope, body, TOKENS):
        piece = json.dumps({"model": "tiny", "choices": [{"index": 0, "text": "token", "n": output.token}]}).encode()
        await send({"type": "http.response.body", "body": b"data: " + piece + b"\n\n", "more_body": True})
        await asyncio.sleep(TOKEN_S)
    await send({"type": "http.response.body", "body": b""})


async def call(app: App, scope: dict[str, Any]) -> float:
    """One request; seconds until its answer is given."""
    asked = False
    answered = 0.0

    async def receive() -> Message:
        nonlocal asked
        if asked:
            await asyncio.Event().wait()
        asked = True
        return {"type": "http.request", "body": BODY}

    async def send(message: Message) -> None:
        nonlocal answered
        answered = time.perf_counter()

    begun = time.perf_counter()
    await app(scope, receive, send)
    return answered - begun


def bare_sync(folder: Path, number: int) -> list[float]:
    """Appending 700 bytes and syncing them, where the file was allocated before; seconds each."""
    found = []
    fd = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT)
    os.posix_fallocate(fd, 0, 16 * 1024 * 1024)
    for i in range(number):
        begun = time.perf_counter()
        os.pwrite(fd, b"x" * 700, i * 700)
        os.fdatasync(fd)
        found.append(time.perf_counter() - begun)
    os.close(fd)
    return found


async def rate(app: App, bench: Bench) -> float:
    """Requests a second, so many at once."""
    left = REQUESTS

    async def lane() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call(app, bench.scope(app))

    begun = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
    return REQUESTS / (time.perf_counter() - begun)


async def token_rate(app: App, bench: Bench) -> tuple[float, float]:
    """Tokens a second of all streams together, and microseconds of CPU for each."""
    begun, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(call(app, bench.scope(app)) for _ in range(STREAMS)))
    tokens = STREAMS * TOKENS
    return tokens / (time.perf_counter() - begun), (time.process_time() - cpu) / tokens * 1e6


async def by_part(bench: Bench) -> dict[str, float]:
    """Microseconds of CPU of a request, one after another: of the loop's thread by part, and of the writer's."""
    writer, marks, parts = bench.replica.journal._writer, list[int](), defaultdict[str, list[int]](list)
    put, clock = writer.put_durably, time.pthread_getcpuclockid(writer._thread.ident or 0)

    def marked(record: Any, *, kept: bool) -> Any:
        marks.append(time.thread_time_ns())
        return put(record, kept=kept)

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        marks.append(time.thread_time_ns())
        await at_once(scope, receive, send)
        marks.append(time.thread_time_ns())

    metered = Middleware(engine, bench.replica)
    writer.put_durably = marked  # type: ignore[method-assign]
    written = time.clock_gettime_ns(clock)
    for _ in range(REQUESTS // 2):
        marks[:] = [time.thread_time_ns()]
        await call(metered, bench.scope(metered))
        marks.append(time.thread_time_ns())
        for name, (begun, ended) in zip(PARTS, pairwise(marks), strict=True):
            parts[name].append(ended - begun)
    del writer.put_durably
    found = {name: median(took) / 1000 for name, took in parts.items()}
    return found | {"cpu_us_writer": (time.clock_gettime_ns(clock) - written) / 1000 / (REQUESTS // 2)}


async def measure(bench: Bench, folder: Path, report: Report) -> None:
    """All figures."""
    figures: dict[str, list[float]] = {}
    for _ in range(RUNS):
        bare, metered, syncs = [], [], []
        for _ in range(REQUESTS // 2):
            bare.append(await call(at_once, bench.scope(at_once)))
            metered.append(await call(bench.metered, bench.scope(bench.metered)))
        syncs = bare_sync(folder, REQUESTS // 2)
        cpu, groups = time.process_time(), bench.replica.journal.syncs
        metered_rate = await rate(bench.working, bench)
        cpu, groups = (time.process_time() - cpu) / REQUESTS, bench.replica.journal.syncs - groups
        bare_rate = await rate(in_a_while, bench)
        plain, plain_cpu = await token_rate(streamed, bench)
        watched, watched_cpu = await token_rate(bench.streaming, bench)
        for key, value in (
            *(await by_part(bench)).items(),
            ("added_ms_p50", (median(metered) - median(bare)) * 1000),
            ("added_ms_p99", (quantiles(metered, n=100)[98] - quantiles(bare, n=100)[98]) * 1000),
            ("fdatasync_ms_p50", median(syncs) * 1000),
            ("fdatasync_ms_p99", quantiles(syncs, n=100)[98] * 1000),
            ("beside_fdatasync_ms_p50", (median(metered) - median(bare) - median(syncs)) * 1000),
            ("requests_per_s", metered_rate),
            ("requests_per_s_without", bare_rate),
            ("throughput_ratio", metered_rate / bare_rate),
            ("syncs_per_request", groups / REQUESTS),
            ("cpu_us_per_request", cpu * 1e6),
            ("cpu_us_added_per_token", watched_cpu - plain_cpu),
            ("tokens_per_s", watched),
            ("token_rate_ratio", watched / plain),
        ):
            figures.setdefault(key, []).append(value)
    floor = median(figures["fdatasync_ms_p50"])
    for key, runs in figures.items():
        unit = "ms" if "_ms_" in key else "us" if "_us" in key else "1/s" if "per_s" in key else ""
        report.add(key, unit, runs, goal=GOAL_MS if key == "added_ms_p50" else None,
                   floor=floor if key == "added_ms_p50" else None)  # fmt: skip


async def main() -> None:
    """Measure, print, write."""
    report = Report("bench-adapter", 0, QUICK)
    (REPOSITORY / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as name:
        bench = Bench(Path(name))
        try:
            await measure(bench, Path(name), report)
            await measure_proxy(Path(name), report, RUNS, REQUESTS // 2)
        finally:
            await bench.replica.stop()
    report.write()


if __name__ == "__main__":
    uvloop.run(main())
