"""`python -m tests.vllm.run`: the adapter in and before a real vLLM on the CPU, with a tiny random model and adapters.

REQUESTS=2000 mixed requests (QUICK=1: 100), TOLLBOOK_SEED; nothing here is a double. Three starts of the server: bare,
to see what is open and to meter it through the proxy; with the adapter, until `kill -9`; and once more, until SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from devstack.errors import DevstackError
from devstack.progress import Progress
from devstack.testrun import environment_for_tests, own_stack
from serving_adapter import engine_counters
from serving_adapter.clock import ReplicaClock
from serving_adapter.events import UsageEvent
from serving_adapter.prometheus_text import samples
from serving_adapter.spool.recovery import recover, replay
from tests.adapter_builders import events
from tests.vllm.adapter_holes import ADAPTER_HOLES
from tests.vllm.embeddings import SERVED_SO, embeddings
from tests.vllm.environment import REPOSITORY, prepare
from tests.vllm.failing import FAILING, FAILS, FAILS_UNREAD
from tests.vllm.holes import HOLES
from tests.vllm.kills import random_kills
from tests.vllm.media_holes import MEDIA_HOLES
from tests.vllm.platform_steps import adapters_at_run_time, died_of_it, killed_while_it_loads, probed, proxied
from tests.vllm.server import Server

QUICK = bool(os.environ.get("QUICK"))
REQUESTS = int(os.environ.get("REQUESTS") or (100 if QUICK else 2000))
LIMIT_S = int(os.environ.get("LIMIT_S") or 3000)
"""Of the whole run, once vLLM is installed: then it ends, and its server with it."""
KILLS = int(os.environ.get("KILLS") or (1 if QUICK else 6))
SEED = int(os.environ.get("TOLLBOOK_SEED") or 20261121)
EVERY_HOLE = (*HOLES, *ADAPTER_HOLES)
TOO_LONG = "z " * 40_000
END_ID = 1
"""The tests' model ends a text by itself with this token alone."""
RESPONSE = {"model": "tiny", "input": "hello there"}
TOOL = {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "boolean"}}}}
CALL: dict[str, Any] = {
    "tools": [{"type": "function", "function": TOOL}], "max_tokens": 120,
    "tool_choice": {"type": "function", "function": {"name": "look"}},
}  # fmt: skip
LONG = "count every token once " * 12
"""60 tokens: one block of 32 can be cached."""
PROMPT_OF_1500 = "count every token once " * 300
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6}
FOREVER = {"model": "tiny", "prompt": "z", "max_tokens": 32_000, "ignore_eos": True}
"""Longer than any machine takes to look away: what ends it is what a test does to it."""

OK = ("ok", "none", "length")
GONE = ("aborted", "client", "client_gone")
REFUSED = ("rejected", "client", "http_400", 0, 0, None)
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
FAILED = ("error", "platform", "engine_error")
UNWELL = {"model": "tiny", "prompt": "z", "max_tokens": 40, "ignore_eos": True, "seed": FAILS}

# body, path, when the client leaves (after so many bytes; 0: once each of its sequences has tokens; -1: once it was
# read); then: status, fault, finish_reason, input, output, engine's input (None: any)
ENDS: Sequence[tuple[dict[str, Any], str, int | None, tuple[Any, ...]]] = [
    ({"model": "tiny", "prompt": LONG, "max_tokens": 8}, "completions", None, (*OK, 60, 8, None)),
    ({"model": "fr", "prompt": LONG, "max_tokens": 4}, "completions", None, (*OK, 60, 4, None)),
    ({"model": "tiny", "prompt": "x y", "max_tokens": 5, "n": 3}, "completions", None, (*OK, 3, 15, 9)),
    ({"model": "tiny", "prompt": ["a b", "c d e"], "max_tokens": 4, "n": 2}, "completions", None, (*OK, 8, 16, 16)),
    (CHAT, "chat/completions", None, (*OK, 7, 6, None)),
    (CHAT | {"stream": True}, "chat/completions", None, (*OK, 7, 6, None)),
    (CHAT | USAGE, "chat/completions", None, (*OK, 7, 6, None)),
    ({"model": "tiny", "prompt": "z", "max_tokens": 0, "echo": True}, "completions", None, (*OK, 1, 1, None)),
    ({"model": "tiny", "prompt": "z", "temperature": -1}, "completions", None, REFUSED),
    ({"model": "tiny", "prompt": TOO_LONG}, "completions", None, REFUSED),
    ({"model": "tiny", "prompt": "z", "max_tokens": 1000, "ignore_eos": True, "stop": list("e tn")},
     "completions", None, ("ok", "none", "stop", 1, None, None)),
    ({"model": "tiny", "prompt": "z", "max_tokens": 3, "best_of": 1, "ignore_eos": True}, "completions", None,
     (*OK, 1, 3, None)),
    ({"model": "tiny", "prompt": "z", "max_tokens": 9, "allowed_token_ids": [END_ID]}, "completions", None,
     ("ok", "none", "stop", 1, 1, None)),
    (CHAT | USAGE | {"n": 2}, "chat/completions", None, (*OK, 7, 12, 14)),
    (CHAT | CALL, "chat/completions", None, ("ok", "none", None, 7, None, None)),
    (CHAT | CALL | {"stream": True}, "chat/completions", None, ("ok", "none", None, 7, None, None)),
    (RESPONSE | {"max_output_tokens": 6}, "responses", None, (*OK, 11, 6, None)),
    (RESPONSE | {"max_output_tokens": 6, "stream": True}, "responses", None, (*OK, 11, 6, None)),
    (UNWELL, "completions", None, (*FAILED, 1, None, None)),
    (UNWELL | {"stream": True}, "completions", None, (*FAILED, 1, None, None)),
    (UNWELL | {"n": 2, "stream": True}, "completions", None, (*FAILED, 1, None, 2)),
    (UNWELL | {"seed": FAILS_UNREAD}, "completions", None, (*FAILED, 0, 0, None)),
    (RESPONSE | {"max_output_tokens": 32_000, "ignore_eos": True, "stream": True}, "responses", 9000,
     (*GONE, 11, None, None)),
    (FOREVER, "completions", -1, ("aborted", "client", "client_gone", None, None, None)),
    (FOREVER | {"stream": True}, "completions", 3000, (*GONE, 1, None, None)),
    (FOREVER, "completions", 0, (*GONE, 1, None, None)),
    (FOREVER | {"n": 3}, "completions", 0, (*GONE, 1, None, 3)),
]  # fmt: skip
GPU = ("busy", "idle", "unowned")
ATTEMPTS = 5
"""Of one whose client leaves in the middle of it: on a busy machine it may be over before that is seen."""


async def settled(server: Server, least: int, orphans: bool = True) -> list[UsageEvent]:
    """The boot's events, once there are so many and nothing is open. `orphans`: those count, too."""
    for _ in range(2400):
        found = [event for event in events(server.boot) if event.kind == "usage"]
        if sum(orphans or not is_orphan(event) for event in found) >= least and not replay(server.boot)[0].open:
            return found
        await asyncio.sleep(0.05)
    raise SystemExit(f"{len(found)} events of {least}; open: {len(replay(server.boot)[0].open)}")


def is_orphan(event: UsageEvent) -> bool:
    """Whether the engine worked for nobody: a prompt of several whose client had left is taken in after its attempt."""
    return (event.tenant_id, event.finish_reason) == ("_platform", "orphaned")


async def left_at_work(server: Server, body: dict[str, Any], prompts: int) -> None:
    """A completion that is not streamed, and whose client leaves once all its sequences have tokens."""
    asked = asyncio.create_task(server.ask(body))
    while not asked.done() and not any(
        now.engine_input_tokens >= prompts for _, now in replay(server.boot)[0].progress.values()
    ):
        await asyncio.sleep(0.05)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


async def every_end(server: Server) -> None:
    """Each end of a request has one event with the engine's counts."""
    asked = 0
    for body, path, leave, expected in ENDS:
        for _ in range(1 if leave != 0 else ATTEMPTS):
            asked += 1
            if leave == 0:
                await left_at_work(server, body, body.get("n", 1))
            else:
                gone = None if leave is None else (max(leave, 0), 0.0 if leave < 0 else 60.0)
                await server.ask(body, f"/v1/{path}", leave_after=gone)
            event = (await settled(server, asked))[-1]
            if leave != 0 or event.finish_reason != "length":  # else the engine was done before its client left
                break
        found = (event.status, event.fault, event.finish_reason, event.input_tokens, event.output_tokens)
        told = (*found, event.engine_input_tokens)
        wrong = [f"{a} is not {b}" for a, b in zip(told, expected, strict=True) if b is not None and a != b]
        assert not wrong, (str(body)[:500], told, wrong)
        print(f"  {body.get('stream', False)!s:5} {path:17}", *told, flush=True)
    asked += await left_while_prefilling(server, asked)
    await out_of_time(server, asked + 1)


async def left_while_prefilling(server: Server, asked: int) -> int:
    """Some of a request's prompts are read when its client leaves, and others never are: billed is what was.

    Gives how many requests that took.
    """
    for attempt in range(1, ATTEMPTS + 1):
        prompts = [f"{attempt} {number} {PROMPT_OF_1500}" for number in range(24)]
        before = await read_by_engine(server)
        asking = asyncio.create_task(server.ask({"model": "tiny", "prompt": prompts, "max_tokens": 1}))
        while not asking.done() and await read_by_engine(server) == before:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        event = (await settled(server, asked + attempt))[-1]
        read = await read_by_engine(server) - before
        assert event.input_tokens == read, (event, read)
        if (event.status, event.fault, event.finish_reason) == GONE and read < 24 * 1500:
            break  # else it was over before its client left
    assert 0 < read < 24 * 1500, read
    print("  False completions      ", event.status, event.finish_reason, read, "of 24 prompts of 1500", flush=True)
    return attempt


async def read_by_engine(server: Server) -> int:
    """Prompt tokens that the engine has counted."""
    (model,) = engine_counters.read((await server.ask(None, "/metrics", method="GET"))[1].decode()).models
    return model.prompt_tokens


async def out_of_time(server: Server, number: int) -> None:
    """A request that takes longer than it may ends as an error of ours, counted as far as it came."""
    with server.other_rules("rules.limits.seconds = 2"):
        status, _ = await server.ask(FOREVER)
    event = (await settled(server, number))[-1]
    told = (status, event.status, event.fault, event.finish_reason)
    assert told == (504, "error", "platform", "timeout"), told
    assert event.output_tokens > 0
    print("  False completions      ", *told[1:], event.input_tokens, event.output_tokens, flush=True)


async def open_holes(server: Server) -> None:
    """Each hole of a bare vLLM, gone through."""
    for hole in EVERY_HOLE:
        told = await hole.opened(server)
        print(f"  open: {hole.what}{f' ({told})' if told else ''}", flush=True)


async def closed_holes(server: Server) -> None:
    """The same, with the adapter."""
    for hole in EVERY_HOLE:
        told = await hole.closed(server)
        print(f"  closed: {hole.what}{f' ({told})' if told else ''}", flush=True)


async def open_media(server: Server) -> None:
    """Those of images, on a bare server with a model that sees."""
    for hole in MEDIA_HOLES:
        told = await hole.opened(server)
        print(f"  open: {hole.what}{f' ({told})' if told else ''}", flush=True)


async def closed_media(server: Server) -> None:
    """The same, with the adapter; what is answered of images is counted as the engine counts it."""
    before, read = len(await settled(server, 0)), await read_by_engine(server)
    for hole in MEDIA_HOLES:
        told = await hole.closed(server)
        print(f"  closed: {hole.what}{f' ({told})' if told else ''}", flush=True)
    found = (await settled(server, before + 2))[before:]
    read = await read_by_engine(server) - read
    assert sum(event.input_tokens for event in found) == read > 0, (found, read)
    print(f"  {len(found)} events, {read} prompt tokens with images, as the engine's", flush=True)


def any_request(chance: random.Random) -> tuple[dict[str, Any], str]:
    """A body without its model, and its path: of each kind some, some that the engine refuses, or fails at."""
    words, tokens = "count tokens " * chance.randint(1, 30), chance.randint(1, 30)
    asked: dict[str, Any] = {"max_tokens": tokens, "n": chance.choice([1, 1, 3]), "ignore_eos": True}
    kind = chance.choices(
        ["prompt", "prompts", "chat", "responses", "stop", "refused", "too long", "fails"], [46, 12, 15, 10, 5, 4, 4, 4]
    )[0]
    if kind == "responses":
        return {"input": words, "max_output_tokens": tokens}, "responses"
    if kind == "chat":
        return asked | {"messages": [{"role": "user", "content": words}]}, "chat/completions"
    if kind == "prompts":
        return asked | {"prompt": [words] * chance.randint(2, 4)}, "completions"
    if kind == "stop":
        return asked | {"prompt": words, "stop": ["e", " "]}, "completions"
    if kind == "refused":
        return asked | {"prompt": words, "temperature": -1}, "completions"
    if kind == "fails":
        asked |= {"seed": FAILS, "max_tokens": tokens + 5}
        if chance.random() < 0.5:
            return asked | {"messages": [{"role": "user", "content": words}]}, "chat/completions"
        return asked | {"prompt": words}, "completions"
    return asked | {"prompt": TOO_LONG if kind == "too long" else words}, "completions"


async def mixed(server: Server) -> None:
    """Random requests of three tenants, with aborts, refusals, errors; all sums of the boot are the engine's own."""
    chance, before = random.Random(SEED), sum(not is_orphan(event) for event in await settled(server, 0))
    failing: set[str] = set()
    unwell = sum("seed" in body for body, *_ in ENDS)

    async def one() -> None:
        tenant = chance.choice(["tenant_a", "tenant_b", "tenant_c"])
        own = {"tenant_a": "fr", "tenant_b": "law"}.get(tenant, "tiny")
        body, path = any_request(chance)
        body |= {"model": chance.choice(["tiny", own]), "stream": chance.random() < 0.6}
        gone = (chance.randint(200, 4000), 60.0) if body["stream"] else (0, chance.random())
        nonlocal unwell
        unwell += "seed" in body
        leave = gone if chance.random() < 0.3 else None
        request_id = f"fails-{len(failing)}" if "seed" in body and leave is None else None
        if request_id is not None:
            failing.add(request_id)
        await server.ask(body, f"/v1/{path}", tenant=tenant, leave_after=leave, request_id=request_id)

    begun = time.monotonic()
    for first in range(0, REQUESTS, 20):
        await asyncio.gather(*(one() for _ in range(min(20, REQUESTS - first))))
    found = await settled(server, before + REQUESTS, orphans=False)
    page = (await server.ask(None, "/metrics", method="GET"))[1].decode()
    (engine,) = engine_counters.read(page).models
    sums = (
        sum(e.input_tokens if e.engine_input_tokens is None else e.engine_input_tokens for e in found),
        sum(e.output_tokens for e in found),
        sum(e.cache_hit_tokens if e.engine_cached_tokens is None else e.engine_cached_tokens for e in found),
    )
    own = [event for event in found if not is_orphan(event)]
    assert len(own) == before + REQUESTS, Counter((e.tenant_id, e.status, e.finish_reason) for e in found)
    assert len({event.request_id for event in found}) == len(found)
    failed = {e.request_id for e in found if (e.status, e.fault, e.finish_reason) == FAILED and e.output_tokens >= 2}
    assert failing <= failed, failing - failed
    numbered = events(server.boot)
    assert [event.seq for event in numbered] == list(range(1, len(numbered) + 1))
    assert sums == (engine.prompt_tokens, engine.generation_tokens, engine.cached_tokens), (sums, engine)
    assert engine_counters.read(page).boot_id == server.boot.boot_id
    took = time.monotonic() - begun
    told = dict(Counter(e.status for e in found))
    print(f"  {REQUESTS} requests in {took:.0f} s, {told}; the engine failed at {len(failing)}, and worked for nobody"
          f" {len(found) - len(own)} times", flush=True)  # fmt: skip
    print(f"  events = engine: {sums[0]} prompt, {sums[1]} generated, {sums[2]} cached tokens", flush=True)
    print(f"  between tokens: {between_tokens(page, unwell)} s, as the engine's", flush=True)
    await gpu_time(server)


def between_tokens(page: str, unwell: int) -> tuple[int, float]:
    """How often a token followed another, and how long they took in all: of all tenants as of the engine.

    Of each request that fails, of which there are `unwell` at most, the engine counts an end without a token as one.
    """
    ours, engine = "tenant_inter_token_latency_seconds", "vllm:inter_token_latency_seconds"
    sums = Counter[str]()
    for sample in samples(page, {f"{name}_{part}" for name in (ours, engine) for part in ("sum", "count")}):
        sums[sample.name] += float(sample.value)  # type: ignore[assignment]
    assert 0 <= sums[f"{engine}_count"] - sums[f"{ours}_count"] <= unwell < sums[f"{ours}_count"], sums
    assert abs(sums[f"{ours}_sum"] - sums[f"{engine}_sum"]) < 0.001, sums
    return int(sums[f"{ours}_count"]), round(sums[f"{ours}_sum"], 3)


async def gpu_time(server: Server) -> None:
    """Shares of events, and of what was told after them, are what the engine was busy for, to the microsecond."""
    for _ in range(600):
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


async def embedded(server: Server) -> None:
    """The route that generates nothing."""
    await embeddings(server, settled)
    await gpu_time(server)


async def in_flight(server: Server, number: int) -> list[asyncio.Task[tuple[int, bytes]]]:
    """Requests that go on for a while, each with tokens in a progress record."""
    asked: list[asyncio.Task[tuple[int, bytes]]] = []
    while sum(so_far.output_tokens > 0 for _, so_far in replay(server.boot)[0].progress.values()) < number:
        if all(task.done() for task in asked):  # a busy machine saw none of them in time: others
            asked = [asyncio.create_task(server.ask(FOREVER | {"stream": True})) for _ in range(number)]
        await asyncio.sleep(0.1)
    return asked


async def killed(server: Server) -> None:
    """`kill -9` with requests in flight, and an adapter: each is lost, with the count of its last progress."""
    asked = await in_flight(server, 4)
    await killed_while_it_loads(server)
    await asyncio.gather(*asked, return_exceptions=True)
    found = recover(server.boot, ReplicaClock().now_ns)
    assert found is not None
    state, _, _ = replay(server.boot)
    lost = [event for event in events(server.boot) if event.status == "lost"]
    assert len(lost) == found.lost == 4
    assert state.started == state.ended + len(lost)
    assert all(event.output_tokens > 0 and event.input_tokens == 1 for event in lost)
    print(f"  kill -9: lost with {[event.output_tokens for event in lost]} tokens", flush=True)


async def refused_meanwhile(server: Server) -> int:
    """What a request is answered once a server goes down; 0 where nobody listens any more."""
    try:
        while (await server.ask(None, "/health", method="GET"))[0] == 200:
            await asyncio.sleep(0.02)
        return (await server.ask(FOREVER))[0]
    except OSError:
        return 0


async def stopped(server: Server) -> None:
    """SIGTERM with requests in flight: each has its event, and the boot its farewell; what comes meanwhile has none."""
    before = len(await settled(server, 0))
    asked = await in_flight(server, 4)
    stopping = asyncio.create_task(asyncio.to_thread(server.stop))
    refused = await refused_meanwhile(server)
    assert refused in (0, 503), refused
    await stopping
    await asyncio.gather(*asked, return_exceptions=True)
    recovered = recover(server.boot, ReplicaClock().now_ns)
    state, _, _ = replay(server.boot)
    ended = [event for event in events(server.boot) if event.kind == "usage"]
    told = [(event.status, event.finish_reason, event.output_tokens) for event in ended[before:]]
    assert recovered is None, "the server has ended by itself, and said farewell"
    assert len(ended) == state.started == before + 4
    assert {(event.status, event.fault, event.finish_reason) for event in ended[before:]} == {
        ("aborted", "platform", "shutdown")
    }, told
    print(f"  SIGTERM: {told}; who came meanwhile: {refused}", flush=True)


def main() -> None:
    """All steps."""
    prepare()
    for number in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, _ended_from_outside)
    signal.alarm(LIMIT_S)
    print(f"seed {SEED}")
    began = time.monotonic()
    with _home() as home:
        server = Server(home)
        try:
            for how, flags, steps in STEPS:
                server.start(*flags, **how)
                for step in steps:
                    print(step.__name__, flush=True)
                    asyncio.run(step(server))
                server.kill()
        finally:
            server.kill()
    with own_stack(Progress()) as stack, _home() as home:
        print("random_kills", flush=True)
        random_kills(home, {**environment_for_tests(), **stack.environment()}, SEED, KILLS)
    print(f"real vLLM: everything held ({time.monotonic() - began:.0f} s once it was installed)")


@contextlib.contextmanager
def _home() -> Iterator[Path]:
    """A folder for a server. Where something fails, the logs in it are kept: build/vllm-server.log."""
    build = REPOSITORY / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build) as name:
        try:
            yield Path(name)
        except BaseException:
            for log in Path(name).glob("*.log"):
                shutil.copy(log, build / f"vllm-{log.name}")
            raise


def _ended_from_outside(number: int, _: object) -> None:
    why = f"not done within {LIMIT_S} s" if number == signal.SIGALRM else "told to stop"
    raise SystemExit(f"{why}; the server's log: build/vllm-server.log")


Step = Callable[[Server], Coroutine[Any, Any, None]]
BARE: Final = {"metered": False}
SEEING: Final = {"sees": True}
STEPS: Final[list[tuple[dict[str, bool], Sequence[str], list[Step]]]] = [
    (BARE, (), [proxied, open_holes]),
    (BARE | SEEING, (), [open_media]),
    ({}, FAILING, [every_end, closed_holes, probed, adapters_at_run_time, mixed, killed]),
    ({}, SERVED_SO, [embedded]),
    (SEEING, (), [died_of_it, closed_media, stopped]),
]
"""Each start of the server: how, with which further flags, and what is done with it."""


if __name__ == "__main__":
    try:
        main()
    except DevstackError as error:
        sys.exit(f"Error: {error}")
