"""`python -m tests.vllm.run`: the adapter in and before a real vLLM on the CPU, with a tiny random model and adapters.

REQUESTS=2000 mixed requests (QUICK=1: 100), TOLLBOOK_SEED; nothing here is a double. Three starts of the server: bare,
to see what is open and to meter it through the proxy; with the adapter, until `kill -9`; and once more, until SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving_adapter import engine_counters
from serving_adapter.clock import ReplicaClock
from serving_adapter.events import UsageEvent
from serving_adapter.prometheus_text import samples
from serving_adapter.spool.recovery import recover, replay
from tests.adapter_builders import events
from tests.vllm.environment import REPOSITORY
from tests.vllm.holes import CROWD, open_holes, overtakes
from tests.vllm.platform_steps import adapters_at_run_time, probed, proxied
from tests.vllm.server import Server

QUICK = bool(os.environ.get("QUICK"))
REQUESTS = int(os.environ.get("REQUESTS") or (100 if QUICK else 2000))
SEED = int(os.environ.get("TOLLBOOK_SEED") or 20261121)
LONG = "count every token once " * 12
"""60 tokens: one block of 32 can be cached."""
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6}
FOREVER = {"model": "tiny", "prompt": "z", "max_tokens": 900, "ignore_eos": True}

OK = ("ok", "none", "length")
GONE = ("aborted", "client", "client_gone")
REFUSED = ("rejected", "client", "http_400", 0, 0, None)
USAGE = {"stream": True, "stream_options": {"include_usage": True}}

# body, path, how the client leaves; then: status, fault, finish_reason, input, output, engine's input (None: any)
ENDS: Sequence[tuple[dict[str, Any], str, tuple[int, float] | None, tuple[Any, ...]]] = [
    ({"model": "tiny", "prompt": LONG, "max_tokens": 8}, "completions", None, (*OK, 60, 8, None)),
    ({"model": "fr", "prompt": LONG, "max_tokens": 4}, "completions", None, (*OK, 60, 4, None)),
    ({"model": "tiny", "prompt": "x y", "max_tokens": 5, "n": 3}, "completions", None, (*OK, 3, 15, 9)),
    ({"model": "tiny", "prompt": ["a b", "c d e"], "max_tokens": 4, "n": 2}, "completions", None, (*OK, 8, 16, 16)),
    (CHAT, "chat/completions", None, (*OK, 7, 6, None)),
    (CHAT | {"stream": True}, "chat/completions", None, (*OK, 7, 6, None)),
    (CHAT | USAGE, "chat/completions", None, (*OK, 7, 6, None)),
    ({"model": "tiny", "input": "hello there", "max_output_tokens": 6}, "responses", None, (*OK, 11, 6, None)),
    ({"model": "tiny", "prompt": "z", "max_tokens": 0, "echo": True}, "completions", None, (*OK, 1, 1, None)),
    ({"model": "tiny", "prompt": "z", "temperature": -1}, "completions", None, REFUSED),
    ({"model": "tiny", "prompt": "z " * 3000}, "completions", None, REFUSED),
    (FOREVER | {"stream": True}, "completions", (3000, 60.0), (*GONE, 1, None, None)),
    (FOREVER, "completions", (0, 1.0), (*GONE, 1, None, None)),
    (FOREVER | {"n": 3}, "completions", (0, 1.0), (*GONE, 1, None, 3)),
]  # fmt: skip
GPU = ("busy", "idle", "unowned")
CLOSED = ["/v1/load_lora_adapter", "/invocations", "/adapters", "/tokenize", "/v1/rerank", "/inference/v1/generate"]


async def settled(server: Server, least: int) -> list[UsageEvent]:
    """The boot's events, once there are so many and nothing is open."""
    for _ in range(1200):
        found = [event for event in events(server.boot) if event.kind == "usage"]
        if len(found) >= least and not replay(server.boot)[0].open:
            return found
        await asyncio.sleep(0.05)
    raise SystemExit(f"{len(found)} events of {least}; open: {len(replay(server.boot)[0].open)}")


async def every_end(server: Server) -> int:
    """Each end of a request has one event with the engine's counts."""
    for number, (body, path, leave, expected) in enumerate(ENDS, 1):
        await server.ask(body, f"/v1/{path}", leave_after=leave)
        event = (await settled(server, number))[-1]
        found = (event.status, event.fault, event.finish_reason, event.input_tokens, event.output_tokens)
        told = (*found, event.engine_input_tokens)
        wrong = [f"{a} is not {b}" for a, b in zip(told, expected, strict=True) if b is not None and a != b]
        assert not wrong, (body, told, wrong)
        print(f"  {body.get('stream', False)!s:5} {path:17}", *told, flush=True)
    return len(ENDS)


async def isolation(server: Server) -> int:
    """The holes that are open in a bare vLLM."""
    body = {"model": "tiny", "prompt": "a tenant's own words " * 20, "max_tokens": 1}
    asked = [(body, "tenant_a"), (body, "tenant_a"), (body, "tenant_b"), (body | {"cache_salt": None}, "tenant_b")]
    lie = {"do_remote_prefill": True, "remote_prefill_cached_tokens": 60}
    before = len(await settled(server, 0))
    for sent, tenant in [*asked, (body | {"prompt": "z", "kv_transfer_params": lie}, "tenant_a")]:
        assert (await server.ask(sent, tenant=tenant))[0] == 200
    found = (await settled(server, before + 5))[before:]
    assert [event.cache_hit_tokens > 0 for event in found] == [False, True, False, True, False]
    for name in ("law", "tenant_b--law--1", "../adapters/tenant_b--law--1"):
        assert (await server.ask(body | {"model": name}))[0] == 404
    for path in CLOSED:
        assert (await server.ask(body, path))[0] == 404
    assert (await server.ask(body, headers={"x-tollbook-caller": "v1.k1.e30.AAAA"}))[0] == 401
    assert not await overtakes(server)
    listed = json.loads((await server.ask(None, "/v1/models", method="GET"))[1])
    assert [model["id"] for model in listed["data"]] == ["tiny", "fr"]
    print("  salts, adapters, routes, models, priorities: closed", flush=True)
    return before + 5 + CROWD


async def mixed(server: Server, before: int) -> None:
    """Random requests of three tenants, with aborts and refusals; the sums are the engine's own."""
    chance = random.Random(SEED)

    async def one() -> None:
        tenant = chance.choice(["tenant_a", "tenant_b", "tenant_c"])
        own = {"tenant_a": "fr", "tenant_b": "law"}.get(tenant, "tiny")
        body: dict[str, Any] = {
            "model": chance.choice(["tiny", own]), "prompt": "count tokens " * chance.randint(1, 30),
            "max_tokens": chance.randint(1, 30), "n": chance.choice([1, 1, 3]), "ignore_eos": True,
            "stream": chance.random() < 0.6,
        }  # fmt: skip
        if chance.random() < 0.05:
            body["temperature"] = -1
        gone = (chance.randint(200, 4000), 60.0) if body["stream"] else (0, chance.random())
        await server.ask(body, tenant=tenant, leave_after=gone if chance.random() < 0.3 else None)

    begun = time.monotonic()
    for first in range(0, REQUESTS, 20):
        await asyncio.gather(*(one() for _ in range(min(20, REQUESTS - first))))
    found = await settled(server, before + REQUESTS)
    page = (await server.ask(None, "/metrics", method="GET"))[1].decode()
    (engine,) = engine_counters.read(page).models
    sums = (
        sum(e.input_tokens if e.engine_input_tokens is None else e.engine_input_tokens for e in found),
        sum(e.output_tokens for e in found),
        sum(e.cache_hit_tokens if e.engine_cached_tokens is None else e.engine_cached_tokens for e in found),
    )
    assert len(found) == before + REQUESTS
    assert len({event.request_id for event in found}) == len(found)
    numbered = events(server.boot)
    assert [event.seq for event in numbered] == list(range(1, len(numbered) + 1))
    assert sums == (engine.prompt_tokens, engine.generation_tokens, engine.cached_tokens), (sums, engine)
    assert engine_counters.read(page).boot_id == server.boot.boot_id
    took = time.monotonic() - begun
    print(f"  {REQUESTS} requests in {took:.0f} s, {dict(Counter(e.status for e in found))}", flush=True)
    print(f"  events = engine: {sums[0]} prompt, {sums[1]} generated, {sums[2]} cached tokens", flush=True)
    await gpu_time(server)


async def gpu_time(server: Server) -> None:
    """Shares of events, and of what was told after them, are what the engine was busy for, to the microsecond."""
    for _ in range(100):
        page = (await server.ask(None, "/metrics", method="GET"))[1].decode()
        told = {s.name: s.value for s in samples(page, {f"engine_gpu_{n}_seconds_total" for n in GPU})}
        busy, idle, unowned = (round(float(told[f"engine_gpu_{name}_seconds_total"]) * 1e6) for name in GPU)
        found = events(server.boot)
        shared = sum(event.gpu_us for event in found)
        if shared == busy:
            break
        await asyncio.sleep(0.1)
    assert (shared, unowned) == (busy, 0), (shared, busy, unowned)
    late = sum(event.kind == "correction" for event in found)
    print(f"  GPU time: shares = busy = {busy} µs, {late} corrections; idle {idle} µs", flush=True)


async def in_flight(server: Server, number: int) -> list[asyncio.Task[tuple[int, bytes]]]:
    """Requests that go on for a while, each with tokens in a progress record."""
    asked = [asyncio.create_task(server.ask(FOREVER | {"stream": True})) for _ in range(number)]
    while sum(so_far.output_tokens > 0 for _, so_far in replay(server.boot)[0].progress.values()) < number:
        await asyncio.sleep(0.1)
    return asked


async def killed(server: Server) -> None:
    """`kill -9` with requests in flight: each is lost, with the count of its last progress."""
    asked = await in_flight(server, 4)
    server.kill()
    await asyncio.gather(*asked, return_exceptions=True)
    found = recover(server.boot, ReplicaClock().now_ns)
    assert found is not None
    state, _, _ = replay(server.boot)
    lost = [event for event in events(server.boot) if event.status == "lost"]
    assert len(lost) == found.lost == 4
    assert state.started == state.ended + len(lost)
    assert all(event.output_tokens > 0 and event.input_tokens == 1 for event in lost)
    print(f"  kill -9: lost with {[event.output_tokens for event in lost]} tokens", flush=True)


async def stopped(server: Server) -> None:
    """SIGTERM with requests in flight: each has its event, and the boot its farewell."""
    asked = await in_flight(server, 4)
    await asyncio.get_running_loop().run_in_executor(None, server.stop)
    await asyncio.gather(*asked, return_exceptions=True)
    recovered = recover(server.boot, ReplicaClock().now_ns)
    state, _, _ = replay(server.boot)
    told = [(event.status, event.finish_reason, event.output_tokens) for event in events(server.boot)]
    assert len(told) == state.started == 4
    print(f"  SIGTERM: {told}; recovered afterwards: {recovered is not None}", flush=True)


def main() -> None:
    """All steps."""
    print(f"seed {SEED}")
    (REPOSITORY / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as name:
        server = Server(Path(name))
        try:
            server.start(metered=False)
            for bare in (open_holes, proxied):
                print(bare.__name__, flush=True)
                asyncio.run(bare(server))
            server.kill()
            for steps in ([every_end, isolation, probed, adapters_at_run_time, mixed, killed], [stopped]):
                server.start()
                before = 0
                for step in steps:
                    print(step.__name__, flush=True)
                    if step is mixed:
                        asyncio.run(mixed(server, before))
                    else:
                        before = asyncio.run(step(server)) or before  # type: ignore[operator]
        finally:
            server.kill()
    print("real vLLM: everything held")


if __name__ == "__main__":
    main()
