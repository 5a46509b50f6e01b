"""`make bench-vllm`: what the adapter costs on a real vLLM, and how tenants' LoRA adapters press on each other.

Two servers, with the adapter and without, are asked in turns: how long a request takes alone, the rate of streamed
tokens, and CPU per request by part.
Then, on the one with the adapter: how long an adapter takes to load with its first request; a request whose adapter is
in the engine's batch, in its memory, or on the disk again; and what one tenant sees while another works with as many
adapters as the engine has places for, and with more. The model is tiny, so that what is not the model shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from devstack.progress import Progress
from devstack.testrun import environment_for_tests, own_stack
from tests.benchmarks.proxy import cpu_s, running
from tests.benchmarks.report import QUICK, REPOSITORY, Report
from tests.lora_builders import lora
from tests.vllm.adapter_holes import all_served, register
from tests.vllm.server import Server

RUNS: Final = 2 if QUICK else 5
STREAMS: Final = 8
TOKENS: Final = 100 if QUICK else 400
REQUESTS: Final = 40 if QUICK else 300
ADAPTERS: Final = 8
"""Of one tenant; the engine has 2 in a batch (`--max-loras`) and 4 in memory (`--max-cpu-loras`)."""
IN_BATCH, IN_MEMORY = 2, 4
RATE_GOAL: Final = 0.98
ADDED_GOAL_MS: Final = 0.3


async def streamed(server: Server) -> float:
    """Tokens a second of all streams together."""
    body = {"model": "tiny", "prompt": "z", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    begun = time.perf_counter()
    answers = await asyncio.gather(*(server.ask(body) for _ in range(STREAMS)))
    took = time.perf_counter() - begun
    assert all(b"data: [DONE]" in answer for _, answer in answers), "a stream broke off"
    return STREAMS * TOKENS / took


async def asked(server: Server, model: str, tenant: str, tokens: int = 1) -> float:
    """A request; milliseconds."""
    body = {"model": model, "prompt": "x", "max_tokens": tokens, "ignore_eos": True}
    begun = time.perf_counter()
    status, answer = await server.ask(body, tenant=tenant)
    assert status == 200, answer
    return (time.perf_counter() - begun) * 1000


async def alone(bare: Server, metered: Server) -> tuple[list[float], list[float]]:
    """Requests of one token, one after another and in turns: milliseconds without the adapter, and with it."""
    without, watched = list[float](), list[float]()
    for _ in range(REQUESTS):
        without.append(await asked(bare, "tiny", "tenant_a"))
        watched.append(await asked(metered, "tiny", "tenant_a"))
    return without, watched


async def used(server: Server, number: int) -> tuple[float, float]:
    """Microseconds of CPU for a request of 16 tokens: of the server's process, and of the engine's."""
    process, engine = server.processes()
    server_s, engine_s = cpu_s(process), sum(map(cpu_s, engine))
    for _ in range(number // STREAMS):
        await asyncio.gather(*(asked(server, "tiny", "tenant_a", 16) for _ in range(STREAMS)))
    each = number // STREAMS * STREAMS / 1e6
    return (cpu_s(process) - server_s) / each, (sum(map(cpu_s, engine)) - engine_s) / each


async def both_ways(bare: Server, metered: Server, shipper: int, report: Report) -> None:
    """Rates and CPU with and without, in turns."""
    figures: dict[str, list[float]] = {}
    for server in (bare, metered):
        await streamed(server)
    for _ in range(RUNS):
        alone_without, alone_with = await alone(bare, metered)
        without, watched = await streamed(bare), await streamed(metered)
        shipped = cpu_s(shipper)
        server_without, engine_without = await used(bare, REQUESTS)
        server_with, engine_with = await used(metered, REQUESTS)
        await asyncio.sleep(1)
        for key, value in (
            ("request_ms_without", median(alone_without)),
            ("added_ms_p50", median(alone_with) - median(alone_without)),
            ("added_ms_p99", quantiles(alone_with, n=100)[98] - quantiles(alone_without, n=100)[98]),
            ("tokens_per_s_without", without), ("tokens_per_s", watched), ("token_rate_ratio", watched / without),
            ("cpu_us_server_without", server_without), ("cpu_us_server", server_with),
            ("cpu_us_engine_without", engine_without), ("cpu_us_engine", engine_with),
            ("cpu_us_shipper", (cpu_s(shipper) - shipped) / (REQUESTS // STREAMS * STREAMS) * 1e6),
        ):  # fmt: skip
            figures.setdefault(key, []).append(value)
    goals = {"token_rate_ratio": RATE_GOAL, "added_ms_p50": ADDED_GOAL_MS}
    for key, runs in figures.items():
        unit = "us" if key.startswith("cpu_us") else "ms" if "_ms" in key else "1/s" if "per_s" in key else ""
        report.add(key, unit, runs, goal=goals.get(key))


async def loads(server: Server, report: Report) -> None:
    """An adapter's ways into the engine."""
    for number in range(ADAPTERS):
        assert register(server, lora(server.home / f"a{number}", fill=number), "tenant_a", f"a{number}") == 0
    served = await all_served(server, ADAPTERS)
    assert {found.state for found in served.values()} == {"serving"}, served
    report.add("lora_load_and_first_ms", "ms", [found.load_ms for found in served.values()])
    for key, number in (("in_batch", IN_BATCH), ("in_memory", IN_MEMORY), ("from_disk", ADAPTERS)):
        took = []
        for turn in range(RUNS + 1):
            for adapter in range(number):
                ms = await asked(server, f"a{adapter}", "tenant_a")
                took += [ms] * (turn > 0)  # the first turn brings them there
        report.add(f"lora_request_ms_{key}", "ms", took)


async def pressed(server: Server, adapters: int) -> list[float]:
    """What tenant_b's requests of 8 tokens take while tenant_a asks 8 at a time, with so many adapters of its own."""
    over = asyncio.Event()

    async def lane(number: int) -> None:
        while not over.is_set():
            model = f"a{number % adapters}" if adapters else "tiny"
            await asked(server, model, "tenant_a", 8)

    lanes = [asyncio.create_task(lane(number)) for number in range(STREAMS)]
    try:
        return [await asked(server, "law", "tenant_b", 8) for _ in range(REQUESTS)]
    finally:
        over.set()
        await asyncio.gather(*lanes)


async def pressure(server: Server, report: Report) -> None:
    """One tenant beside another that has more and more adapters."""
    for name, number in (("base_model", 0), ("1_adapter", 1), ("2_adapters", 2), ("8_adapters", ADAPTERS)):
        took = await pressed(server, number)
        report.add(f"lora_beside_{name}_ms_p50", "ms", [median(took)])
        report.add(f"lora_beside_{name}_ms_p99", "ms", [quantiles(took, n=100)[98]])


def main() -> None:
    """Measure, print, write."""
    report = Report("bench-vllm", 0, QUICK)
    (REPOSITORY / "build").mkdir(exist_ok=True)
    with own_stack(Progress()) as stack, contextlib.ExitStack() as held:
        environ: dict[str, str] = {**environment_for_tests(), **stack.environment()}
        servers: list[Any] = []
        for metered in (False, True):
            folder = held.enter_context(tempfile.TemporaryDirectory(dir=REPOSITORY / "build"))
            server = Server(Path(folder))
            held.callback(server.kill)
            server.start(metered=metered, TOLLBOOK_KAFKA=environ["TOLLBOOK_KAFKA"])
            servers.append(server)
        ship = ("serving_adapter.command_line", "ship", "--spool", str(servers[1].spool), "--dev")
        with running(*ship, **environ) as shipper:
            asyncio.run(both_ways(*servers, shipper, report))
        servers[0].kill()
        asyncio.run(loads(servers[1], report))
        asyncio.run(pressure(servers[1], report))
    report.write()


if __name__ == "__main__":
    main()
