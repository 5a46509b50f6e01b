"""The proxy over HTTP before an engine double that answers what a real vLLM answered."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
from msgspec.structs import replace

from serving_adapter.adapters.registry_folder import RegistryFolder
from serving_adapter.command_line import main
from serving_adapter.engine import upstream
from serving_adapter.engine.upstream_connection import Connection
from serving_adapter.events import UsageEvent
from serving_adapter.isolation.callers import Caller, sign
from serving_adapter.serving import adapter_loading
from serving_adapter.serving.adapter_settings import AdapterSettings, ProxySection
from serving_adapter.serving.proxy import proxy_server
from serving_adapter.serving.replica import Replica
from serving_adapter.spool.folders import boots
from serving_adapter.spool.recovery import replay
from tests.adapter_builders import events
from tests.fixtures_adapter import KEY
from tests.lora_builders import lora
from tests.recorded_engine import RECORDED, RecordedEngine, key_of, recorded_engine, unchunked

COMPLETION = {"model": "tiny", "prompt": "count every token once", "max_tokens": 4}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
STREAM = {"stream": True}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


class Proxied:
    """A proxy, its engine, and how to ask."""

    def __init__(self, settings: AdapterSettings, engine: RecordedEngine, port: int, replica: Replica) -> None:
        self.settings = settings
        self.engine = engine
        self.port = port
        self.replica = replica

    async def connect(self, body: Any, path: str, tenant: str = "tenant_a") -> Any:
        """A connection on which a request was sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 16)
        data = json.dumps(body).encode()
        signed = sign(Caller(tenant_id=tenant, tier="paid"), "k1", KEY, now=int(time.time()))
        head = f"POST {path} HTTP/1.1\r\nhost: replica\r\nconnection: close\r\nx-tollbook-caller: {signed}\r\n"
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        return reader, writer

    async def ask(self, body: Any, path: str = "/v1/completions", **more: Any) -> tuple[int, str]:
        """Status and body; the status is 0 where the answer broke off."""
        reader, writer = await self.connect(body, path, **more)
        head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        if b"chunked" in head:
            whole, answer = answer.endswith(b"0\r\n\r\n"), unchunked(answer)
            if not whole:
                return 0, answer.decode()
        return int(head.split()[1]), answer.decode()

    async def page(self) -> str:
        """The metrics."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: replica\r\nconnection: close\r\n\r\n")
        page = (await reader.read()).decode()
        writer.close()
        return page

    async def told(self, least: int = 1) -> list[UsageEvent]:
        """The events on disk, once there are so many and nothing is open."""
        (boot,) = boots(Path(self.settings.spool.folder))
        while len(events(boot)) < least or replay(boot)[0].open:
            await asyncio.sleep(0.002)
        return events(boot)


@asynccontextmanager
async def proxying(
    settings: AdapterSettings, engine: dict[str, Any] | None = None, **proxy: Any
) -> AsyncIterator[Proxied]:
    async with recorded_engine(**(engine or {})) as double:
        proxy.setdefault("upstream", f"http://127.0.0.1:{double.port}")
        section = ProxySection(listen="127.0.0.1:0", drain_s=1, **proxy)
        settings = replace(settings, proxy=section)
        server = proxy_server(settings)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.002)
        try:
            port = server.servers[0].sockets[0].getsockname()[1]
            yield Proxied(settings, double, port, server.config.app._replica)  # type: ignore[union-attr]
        finally:
            server.should_exit = True
            await serving


def recorded(path: str, body: dict[str, Any]) -> str:
    return "".join(json.loads(RECORDED.read_text())[key_of(path, body)]["pieces"])


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/completions", COMPLETION, ("ok", "length", 4, 4)),
        ("/v1/completions", COMPLETION | STREAM, ("ok", "length", 4, 4)),
        ("/v1/completions", COMPLETION | USAGE, ("ok", "length", 4, 4)),
        ("/v1/chat/completions", CHAT, ("ok", "length", 7, 4)),
        ("/v1/chat/completions", CHAT | STREAM, ("ok", "length", 7, 4)),
        ("/v1/chat/completions", CHAT | USAGE, ("ok", "length", 7, 4)),
        ("/v1/responses", {"model": "tiny", "input": "hello there"}, ("ok", "incomplete", 11, 4)),
        ("/v1/responses", {"model": "tiny", "input": "hello there"} | STREAM, ("ok", "incomplete", 11, 4)),
        ("/v1/completions", COMPLETION | {"temperature": -1}, ("rejected", "http_400", 0, 0)),
    ],
)
def test_usage_is_read_from_every_answer_and_tenants_get_what_they_asked_for(
    adapter_settings: AdapterSettings, path: str, body: dict[str, Any], expected: tuple[Any, ...], continuous: bool
) -> None:
    async def run() -> None:
        async with proxying(adapter_settings, continuous_usage=continuous) as proxied:
            _, answer = await proxied.ask(body, path)
            (event,) = await proxied.told()
            assert (event.status, event.finish_reason, event.input_tokens, event.output_tokens) == expected
            assert (event.usage_source, event.model_revision, event.seq) == ("stream", "r1", 1)
            assert (event.ttft_ms is not None) == ("stream" in body), "nobody saw the first token of a whole answer"
            assert _without_ids(answer) == _without_ids(recorded(path, body))

    asyncio.run(run())


def _without_ids(text: str) -> list[Any]:
    """A stream's pieces, or an answer: ids, times and what was sampled differ from one recording to the other."""
    pieces = (
        [piece.partition("data: ")[2] for piece in text.split("\n\n")] if text.startswith(("data", "event")) else [text]
    )
    found = [json.loads(piece) if piece.startswith("{") else piece for piece in pieces]
    return [_plain(piece) for piece in found]


DIFFERS = {"id", "created", "created_at", "item_id", "text", "content", "delta", "system_fingerprint"}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in DIFFERS}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def test_tenants_stay_apart_before_an_engine_that_knows_nothing_of_them(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        async with proxying(adapter_settings) as proxied:
            for body, path in (
                (COMPLETION | {"model": "law"}, "/v1/completions"),
                (COMPLETION, "/v1/load_lora_adapter"),
                (COMPLETION, "/tokenize"),
            ):
                assert (await proxied.ask(body, path))[0] == 404
            load = b'{"lora_name":"evil","lora_path":"/"}'
            hidden = b"POST /v1/load_lora_adapter HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(load), load)
            reader, writer = await asyncio.open_connection("127.0.0.1", proxied.port)
            head = b"GET /health HTTP/1.1\r\nhost: replica\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
            writer.write(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(hidden), hidden))
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
            assert proxied.engine.asked == []
            await proxied.ask(COMPLETION | {"cache_salt": "mine", "priority": -99, "kv_transfer_params": {}})
            (asked,), (headers,) = proxied.engine.asked, proxied.engine.headers
            assert len(asked["cache_salt"]) == 43
            assert (asked["priority"], "kv_transfer_params" in asked) == (-5, False)
            assert proxied.engine.loras == [], "no body of whom nobody vouches for was a request"
            assert "x-tollbook-caller" not in headers
        async with proxying(adapter_settings, engine_fields=False, fields=["grammar"]) as proxied:
            status, refused = await proxied.ask(COMPLETION | {"lora_path": "tenant_b"})
            assert (status, json.loads(refused)["error"]["param"], proxied.engine.asked) == (400, "lora_path", [])
            await proxied.ask(COMPLETION | {"cache_salt": "mine", "priority": -99, "grammar": "g"})
            assert proxied.engine.asked[0]["grammar"] == "g"
            for several in ({"n": 2}, {"prompt": ["a", "b"]}):
                assert (await proxied.ask(COMPLETION | several))[0] == 400, "it may state the tokens of one alone"
            assert {"cache_salt", "priority"} & set(proxied.engine.asked[0]) == set()
            await proxied.ask(CHAT, "/v1/chat/completions")
            asked = proxied.engine.asked[-1]
            assert (asked["max_tokens"], asked["max_completion_tokens"]) == (4, 4), "whichever of them it reads"

    asyncio.run(run())


def test_a_client_that_leaves_takes_the_engines_request_with_it(adapter_settings: AdapterSettings) -> None:
    async def run(continuous: bool, expected: tuple[Any, ...]) -> None:
        how = {"continuous_usage": continuous, "read_on_s": 0}
        async with proxying(adapter_settings, {"stay_after": 2}, **how) as proxied:
            reader, writer = await proxied.connect(COMPLETION | STREAM, "/v1/completions")
            while b"text" not in await reader.readline():
                pass
            writer.transport.abort()
            await asyncio.wait_for(proxied.engine.gone.wait(), 60)
            (event,) = await proxied.told()
            told = (event.status, event.fault, event.finish_reason, event.usage_source)
            assert (*told, event.input_tokens, event.output_tokens) == ("aborted", "client", "client_gone", *expected)
            assert ('tenant_uncounted_total{tenant="tenant_a"} 1' in await proxied.page()) == (not continuous)

    asyncio.run(run(True, ("stream", 4, 2)))
    for boot in boots(Path(adapter_settings.spool.folder)):
        os.rename(boot.path, boot.path.with_name(f".{boot.path.name}"))
    asyncio.run(run(False, ("estimate", 0, 2)))


@pytest.mark.parametrize(
    ("body", "stays", "continuous", "least"),
    [(COMPLETION, 0, True, 4), (COMPLETION | STREAM, 2, False, 4), (COMPLETION | STREAM, 0, True, 1)],
    ids=["whole", "usage at the end", "before the first piece"],
)
def test_who_leaves_before_anything_was_stated_is_read_on_for_until_it_is(
    adapter_settings: AdapterSettings, body: dict[str, Any], stays: int, continuous: bool, least: int
) -> None:
    async def run() -> None:
        async with proxying(adapter_settings, {"stay_after": stays}, continuous_usage=continuous) as proxied:
            _, writer = await proxied.connect(body, "/v1/completions")
            while not proxied.engine.asked:
                await asyncio.sleep(0.002)
            writer.transport.abort()
            while not any(attempt.seen.client_gone for attempt, *_ in proxied.replica._open.values()):
                await asyncio.sleep(0.002)
            assert not proxied.engine.gone.is_set()
            proxied.engine.go_on.set()
            (event,) = await proxied.told()
            told = (event.status, event.fault, event.finish_reason, event.usage_source)
            assert told == ("aborted", "client", "client_gone", "stream")
            assert (event.input_tokens, least <= event.output_tokens <= 4) == (4, True)

    asyncio.run(run())


def test_nobody_is_read_on_for_beyond_the_time_that_a_request_may_take(adapter_settings: AdapterSettings) -> None:
    limits = replace(adapter_settings.rules.limits, seconds=2.0)  # who leaves is gone before that
    settings = replace(adapter_settings, rules=replace(adapter_settings.rules, limits=limits))

    async def run() -> None:
        async with proxying(settings, {"stay_after": 0}, read_on_s=3600) as proxied:
            _, writer = await proxied.connect(COMPLETION, "/v1/completions")
            while not proxied.engine.asked:
                await asyncio.sleep(0.002)
            writer.transport.abort()
            await asyncio.wait_for(proxied.engine.gone.wait(), 60)
            (event,) = await proxied.told()
            assert (event.finish_reason, event.usage_source, event.input_tokens) == ("client_gone", "estimate", 0)

    asyncio.run(run())


@pytest.mark.parametrize("spaced", [False, True])
def test_a_tenant_sees_its_own_name_for_the_model_however_the_engine_writes_it(
    adapter_settings: AdapterSettings, spaced: bool
) -> None:
    async def run() -> None:
        async with proxying(adapter_settings, {"spaced": spaced}) as proxied:
            for more in ({}, STREAM):
                status, answer = await proxied.ask(COMPLETION | {"model": "fast"} | more)
                assert (status, '"tiny"' in answer) == (200, False)
                assert '"model":"fast"' in answer

    asyncio.run(run())


def test_an_engine_that_breaks_off_breaks_off_for_the_tenant(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        async with proxying(adapter_settings, {"cut_after": 2}, continuous_usage=True) as proxied:
            status, answer = await proxied.ask(COMPLETION | STREAM)
            assert (status, answer.count("data:")) == (0, 2)
            (event,) = await proxied.told()
            assert (event.status, event.fault, event.finish_reason) == ("error", "platform", "engine_error")
            assert (event.input_tokens, event.output_tokens) == (4, 2)
        async with proxying(adapter_settings, upstream="http://127.0.0.1:1") as proxied:
            status, answer = await proxied.ask(COMPLETION)
            assert (status, json.loads(answer)["error"]["code"]) == (502, "engine_unreachable")

    asyncio.run(run())


def test_a_connection_to_the_engine_is_used_again_while_it_is_fresh_and_its_answers_are_whole(
    adapter_settings: AdapterSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with proxying(adapter_settings) as proxied:
            for body in (COMPLETION, COMPLETION | STREAM, COMPLETION | {"temperature": -1}, COMPLETION):
                assert (await proxied.ask(body))[0] in (200, 400)
            assert proxied.engine.connections == 1
            both = await asyncio.gather(proxied.ask(COMPLETION), proxied.ask(COMPLETION | STREAM))
            assert [status for status, _ in both] == [200, 200]
            before = proxied.engine.connections
            assert before <= 2
            monkeypatch.setattr(upstream, "IDLE_AT_MOST_S", -1)
            assert (await proxied.ask(COMPLETION))[0] == 200
            assert proxied.engine.connections == before + 1

    asyncio.run(run())


@pytest.mark.parametrize(
    ("came", "expected"),
    [
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n", b"a"], (200, b"a", True, True)),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na"], (200, b"a", True, True)),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\naHTTP/1.1 200 OK\r\n"], (200, b"a", True, False)),
        ([b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\na"], (200, b"a", True, False)),
        ([b"HTTP/1.0 200 OK\r\n\r\na", None], (200, b"a", True, False)),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na", None], (200, b"a", False, False)),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na", None], (200, b"a", True, False)),
        ([b"SSH-2.0\r\n"], (0, b"", False, False)),
    ],
)
def test_an_answer_ends_where_it_says_and_its_connection_is_used_again_only_if_that_is_safe(
    came: list[bytes | None], expected: tuple[int, bytes, bool, bool]
) -> None:
    async def run() -> None:
        connection, transport = Connection(), create_autospec(asyncio.Transport, instance=True)
        transport.get_write_buffer_size.return_value, transport.is_closing.return_value = 0, False
        connection.connection_made(transport)
        connection.ask(b"")
        for data in came:
            if data is None:
                connection.eof_received()
            else:
                connection.data_received(data)
        more = await connection.more()
        assert (connection.status, more.body, more.is_whole, connection.is_reusable) == expected
        assert connection.done or connection.ended

    asyncio.run(run())


def test_an_engine_sends_no_faster_than_the_tenant_reads(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        async with proxying(adapter_settings, {"endless": True}, read_on_s=0) as proxied:
            reader, writer = await proxied.connect(COMPLETION | STREAM, "/v1/completions")
            await reader.readuntil(b"keep-alive")
            before = -1
            while proxied.engine.sent_bytes > before:  # until nothing more fits between them
                before = proxied.engine.sent_bytes
                await asyncio.sleep(0.1)
            for _ in range(200):
                await reader.readexactly(1 << 16)
            assert proxied.engine.sent_bytes > before
            writer.transport.abort()
            await asyncio.wait_for(proxied.engine.gone.wait(), 60)

    asyncio.run(run())


def test_a_tenants_adapter_is_loaded_through_the_proxy_and_nobody_else_loads_one(
    adapter_settings: AdapterSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_loading, "EACH_S", 0.02)
    root = tmp_path / "registry"
    words = ["register", "--registry", str(root), "--tenant", "tenant_a", "--name", "it", "--base", "tiny"]
    assert main([*words, str(lora(tmp_path / "upload"))]) == 0
    (version,) = RegistryFolder(root).read().versions

    async def run() -> None:
        async with proxying(replace(adapter_settings, registry=str(root))) as proxied:
            (smoke,) = await proxied.told()
            assert (smoke.purpose, smoke.tenant_id, smoke.usage_source) == ("smoke", "tenant_a", "stream")
            while (trial := RegistryFolder(root).trial(version.engine)) is None or trial.state != "serving":
                await asyncio.sleep(0.01)
            load = {"lora_name": "x", "lora_path": "/"}
            assert (await proxied.ask(load, "/v1/load_lora_adapter"))[0] == 404
            assert proxied.engine.loras == [("/v1/load_lora_adapter", version.engine)]
            assert (await proxied.ask(COMPLETION | {"model": "it"}))[0] == 200
            assert (await proxied.ask(COMPLETION | {"model": "it"}, tenant="tenant_b"))[0] == 404
            assert [body["model"] for body in proxied.engine.asked] == [version.engine] * 2

    asyncio.run(run())
