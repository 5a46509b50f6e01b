"""The platform's own hand on a real vLLM: probing it, adapters that come and go, the proxy before it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from devstack import ports
from serving_adapter import engine_counters
from serving_adapter.adapters.registry_folder import RegistryFolder
from serving_adapter.probe import Probe
from serving_adapter.spool.recovery import replay
from tests.adapter_builders import events
from tests.lora_builders import AT, lora, safetensors
from tests.vllm.adapter_holes import all_served, register, removed
from tests.vllm.environment import REPOSITORY, folder
from tests.vllm.server import CONFIG, KEY, Server

ASKED: list[tuple[dict[str, Any], str]] = [
    ({"model": "tiny", "prompt": "count every token", "max_tokens": 7}, "completions"),
    ({"model": "tiny", "prompt": "count every token", "max_tokens": 7, "stream": True}, "completions"),
    ({"model": "fr", "prompt": "count every token", "max_tokens": 5, "stream": True}, "completions"),
    ({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "stream": True},
     "chat/completions"),
    ({"model": "tiny", "input": "hello there", "max_output_tokens": 6}, "responses"),
    ({"model": "tiny", "input": "hello there", "max_output_tokens": 6, "stream": True}, "responses"),
]  # fmt: skip
READ_ON = 2000
"""Tokens of a request whose client leaves half a second after it was read: no engine has made them by then."""


async def probed(server: Server) -> None:
    """Answers, events and the engine's counters agree, also on a stream that was left."""
    agreed = await asyncio.to_thread(Probe(f"http://127.0.0.1:{server.port}", "tiny", "k1", KEY).run)
    print(f"  all agree: {agreed}", flush=True)


async def adapters_at_run_time(server: Server) -> None:
    """A tenant's adapter is registered, loaded, served, and removed; one that the engine refuses is reported."""
    before = len(_usage(server, "tenant_c"))
    upload = shutil.copytree(folder() / "model" / "adapters" / "tenant_b--law--1", server.home / "upload")
    body = {"model": "late", "prompt": "x", "max_tokens": 3}
    assert (await server.ask(body, tenant="tenant_c"))[0] == 404
    called = json.loads((upload / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert register(server, upload, "tenant_c", "late", "--base-name", called) == 0
    shapes = {f"{AT}.lora_A.weight": [16, 64], f"{AT}.lora_B.weight": [64, 16]}
    large_files = lora(server.home / "large", weights=safetensors(shapes), r=16)
    assert register(server, large_files, "tenant_c", "large") == 0
    served = await all_served(server, 2)
    late, large = RegistryFolder(server.home / "registry").read().versions
    assert (served[late.engine].state, served[large.engine].state) == ("serving", "failed"), served
    began = time.monotonic()
    assert (await server.ask(body, tenant="tenant_c"))[0] == 200
    warm_ms = (time.monotonic() - began) * 1000
    assert (await server.ask(body, tenant="tenant_a"))[0] == 404
    status, answer = await server.ask(body | {"model": "large"}, tenant="tenant_c")
    assert (status, b"rank" in answer) == (503, True), answer
    await removed(server, "tenant_c", "late", "large")
    assert (await server.ask(body, tenant="tenant_c"))[0] == 404
    smoke, own = _usage(server, "tenant_c")[before:]
    assert (smoke.purpose, own.purpose, own.adapter_revision) == ("smoke", "tenant", late.revision)
    print(f"  cold {served[late.engine].load_ms} ms with its first request, warm {warm_ms:.0f} ms;"
          f" refused: {served[large.engine].why}", flush=True)  # fmt: skip


async def killed_while_it_loads(server: Server) -> None:
    """`kill -9` of all, while the engine does not answer to an adapter that is being loaded."""
    _, others = server.processes()
    for process, words in others.items():
        if b"EngineCore" in words:
            os.kill(process, signal.SIGSTOP)
    assert register(server, lora(server.home / "slow", fill=3), "tenant_c", "slow") == 0
    (version,) = RegistryFolder(server.home / "registry").read().versions
    while _standing(server, version.engine) != "trying":
        await asyncio.sleep(0.05)
    server.kill()


async def died_of_it(server: Server) -> None:
    """After a start, nobody loads again what the one before was at when it ended, and its tenant is told."""
    served = await all_served(server, 1)
    ((engine, standing),) = served.items()
    assert standing.state == "died", standing
    status, answer = await server.ask({"model": "slow", "prompt": "x", "max_tokens": 1}, tenant="tenant_c")
    assert (status, b"adapter_not_ready" in answer, b"ended while it was loaded" in answer) == (503, True, True), answer
    assert f"ALERT: adapter {engine}" in server.log.read_text()
    print(f"  {standing.why}", flush=True)
    await removed(server, "tenant_c", "slow")


def _standing(server: Server, engine: str) -> str | None:
    for status in RegistryFolder(server.home / "registry").statuses():
        if engine in status.adapters:
            return status.adapters[engine].state
    return None


async def proxied(server: Server) -> None:
    """The same engine, untouched, behind the proxy: what its answers state is what it counted."""
    home, port = server.home / "proxy", ports.choose()
    home.mkdir()
    file = CONFIG.format(home=server.home).replace(f"{server.home}/spool", f"{home}/spool")
    section = f'\n[proxy]\nupstream = "http://127.0.0.1:{server.port}"\nlisten = "127.0.0.1:{port}"\n'
    (home / "adapter.toml").write_text(f"{file}{section}continuous_usage = true\nread_on_s = 300\n")
    environ = {**os.environ, "TOLLBOOK_ADAPTER_CONFIG": str(home / "adapter.toml")}
    command_line = [sys.executable, "-m", "serving_adapter.command_line"]
    proxy = Server.at(server.home, port, home / "spool")
    process = subprocess.Popen([*command_line, "proxy"], env=environ, cwd=REPOSITORY)
    try:
        await proxy.answers()
        counted = await _counters(server)
        for body, path in ASKED:
            assert (await proxy.ask(body, f"/v1/{path}"))[0] == 200, body
        left = {"model": "tiny", "prompt": "z", "ignore_eos": True}
        await proxy.ask(left | {"max_tokens": 30_000, "stream": True}, leave_after=(6000, 60.0))
        await proxy.ask(left | {"max_tokens": READ_ON}, leave_after=(0, 0.5))
        while len(found := _usage(proxy)) < len(ASKED) + 2 or replay(proxy.boot)[0].open:
            await asyncio.sleep(0.05)
        grown = [now - then for now, then in zip(await _settled_counters(server), counted, strict=True)]
        *whole, cut, unstated = found
        assert {event.usage_source for event in found} == {"stream"}
        assert {event.status for event in whole} == {"ok"}
        for gone in (cut, unstated):
            assert (gone.status, gone.finish_reason) == ("aborted", "client_gone")
        assert (unstated.input_tokens, unstated.output_tokens) == (1, READ_ON), "its engine was read on from"
        assert sum(event.input_tokens for event in found) == grown[0]
        missed = grown[1] - sum(event.output_tokens for event in found)
        assert missed >= 0
        assert cut.output_tokens > 0
        await asyncio.to_thread(_took, server, proxy)
        probe = [*command_line, "probe", "--url", f"http://127.0.0.1:{port}", "--model", "tiny", "--no-cut"]
        assert await asyncio.to_thread(subprocess.call, probe, env=environ, cwd=REPOSITORY) == 0
        print(f"  {len(whole)} whole answers as the engine counted; a stream that was left: {missed} tokens"
              f" of {cut.output_tokens + missed} not stated", flush=True)  # fmt: skip
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)
    farewell = replay(proxy.boot)[0].farewell
    assert farewell is not None
    assert farewell.started == farewell.ended


def _took(server: Server, proxy: Server) -> None:
    """Prints what the proxy adds to a request."""
    body = {"model": "tiny", "prompt": "z", "max_tokens": 1}
    took: dict[Server, list[float]] = {server: [], proxy: []}
    for _ in range(60):
        for each in took:
            began = time.perf_counter()
            assert asyncio.run(each.ask(body))[0] == 200
            took[each].append((time.perf_counter() - began) * 1000)
    bare, metered = (sorted(times)[len(times) // 2] for times in took.values())
    print(f"  a request of one token: {bare:.1f} ms bare, {metered:.1f} ms through the proxy (p50)", flush=True)


async def _counters(server: Server) -> tuple[int, int]:
    page = (await server.ask(None, "/metrics", method="GET"))[1].decode()
    (model,) = engine_counters.read(page).models
    return model.prompt_tokens, model.generation_tokens


async def _settled_counters(server: Server) -> tuple[int, int]:
    """Once they grow no more."""
    before = (0, 0)
    while (now := await _counters(server)) != before:
        before = now
        await asyncio.sleep(0.5)
    return now


def _usage(server: Server, tenant_id: str | None = None) -> list[Any]:
    """What is durable by now, of all tenants or of one."""
    found = [event for event in events(server.boot) if event.kind == "usage"]
    return [event for event in found if tenant_id is None or event.tenant_id == tenant_id]
