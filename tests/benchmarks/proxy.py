"""A part of `make bench-adapter`: what `adapter proxy` adds to a request over HTTP, and its CPU.

The engine's server, the proxy and the asking process are three; requests with and without the proxy take turns on
connections that stay open. The engine answers at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import uvicorn

from devstack import ports
from serving_adapter.isolation.callers import Caller, sign
from tests.benchmarks.report import REPOSITORY, Report

KEY = b"k" * 32
BODY = json.dumps({"model": "tiny", "prompt": "count every token once " * 100, "max_tokens": 64}).encode()
USAGE = {"prompt_tokens": 400, "completion_tokens": 64, "total_tokens": 464}
ANSWER = json.dumps({"model": "tiny", "choices": [{"index": 0, "text": "x" * 250}], "usage": USAGE}).encode()
GOAL_MS = 1.0
CONFIG = """
replica_id = "bench"
salt_key = "{home}/salt"
gateway_keys = "{home}/keys"
spool = {{ folder = "{home}/proxy-spool" }}
rules.models.tiny = [{{ engine = "tiny" }}]
[proxy]
upstream = "http://127.0.0.1:{engine}"
listen = "127.0.0.1:{port}"
"""


async def answering(scope: Any, receive: Any, send: Any) -> None:
    """Reads the request, and answers."""
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": ANSWER})


class Connection:
    """One that stays open."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> None:
        """Once somebody listens; half a minute at most."""
        for _ in range(300):
            with contextlib.suppress(OSError):
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
                return
            await asyncio.sleep(0.1)
        raise SystemExit(f"nobody listens on port {self._port}")

    async def ask(self) -> float:
        """A request; seconds."""
        signed = sign(Caller(tenant_id="tenant_a", tier="paid"), "k1", KEY, now=int(time.time()))
        head = f"POST /v1/completions HTTP/1.1\r\nhost: h\r\nx-tollbook-caller: {signed}\r\n"
        begun = time.perf_counter()
        self._writer.write(f"{head}content-length: {len(BODY)}\r\n\r\n".encode() + BODY)
        told = await self._reader.readuntil(b"\r\n\r\n")
        assert told.startswith(b"HTTP/1.1 200"), told
        await self._reader.readexactly(len(ANSWER))
        return time.perf_counter() - begun


def cpu_s(process: int) -> float:
    """What a process has used, its own threads together."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(*words: str, **environ: str) -> Iterator[int]:
    """A process of ours while the block lasts; its id."""
    process = subprocess.Popen([sys.executable, "-m", *words], env={**os.environ, **environ}, cwd=REPOSITORY)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


async def measure_proxy(folder: Path, report: Report, runs: int, requests: int) -> None:
    """Its figures. `folder` has the keys."""
    engine, port = ports.choose(), ports.choose()
    file = folder / "proxy.toml"
    file.write_text(CONFIG.format(home=folder, engine=engine, port=port))
    command = ("serving_adapter.command_line", "proxy")
    with (
        running("tests.benchmarks.proxy", str(engine)),
        running(*command, TOLLBOOK_ADAPTER_CONFIG=str(file)) as proxy,
    ):
        direct, through = Connection(engine), Connection(port)
        await direct.open()
        await through.open()
        figures: dict[str, list[float]] = {"proxy_added_ms_p50": [], "proxy_added_ms_p99": [], "proxy_cpu_us": []}
        for _ in range(runs):
            without, with_it, cpu = [], [], cpu_s(proxy)
            for _ in range(requests):
                without.append(await direct.ask())
                with_it.append(await through.ask())
            figures["proxy_cpu_us"].append((cpu_s(proxy) - cpu) / requests * 1e6)
            figures["proxy_added_ms_p50"].append((median(with_it) - median(without)) * 1000)
            figures["proxy_added_ms_p99"].append((quantiles(with_it, n=100)[98] - quantiles(without, n=100)[98]) * 1000)
    for key, values in figures.items():
        report.add(key, "us" if key.endswith("us") else "ms", values, goal=GOAL_MS if key.endswith("p50") else None)


if __name__ == "__main__":
    uvicorn.run(answering, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
