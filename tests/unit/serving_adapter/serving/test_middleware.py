"""The middleware in front of an engine double: one event for each attempt whatever its end, and tenants kept apart."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving_adapter.engine.vllm_hooks import EngineUnfit, check_version
from serving_adapter.events import UsageEvent
from serving_adapter.isolation.callers import Caller, sign
from serving_adapter.isolation.rules import Rules
from serving_adapter.serving.adapter_settings import AdapterSettings, SpoolSection
from serving_adapter.serving.middleware import Middleware
from serving_adapter.serving.replica import Replica
from serving_adapter.spool.records import Farewell, Start
from tests.adapter_builders import events, records
from tests.engine_double import EngineClient, OutputProcessor, engine_app

KEY = b"k" * 32
RULES = {
    "models": {"tiny": [{"engine": "tiny", "revision": "r1"}], "fast": [{"engine": "tiny", "revision": "r1"}]},
    "adapters": [
        {"tenant_id": "tenant_a", "name": "fr", "engine": "tenant_a--fr--1", "base": "tiny", "revision": "1"},
        {"tenant_id": "tenant_b", "name": "law", "engine": "tenant_b--law--1", "base": "tiny", "revision": "1"},
    ],
    "tiers": {"paid": {"priority": -5}, "free": {"priority": 10, "may_be_shed": True}},
    "limits": {"body_bytes": 20_000, "prompts": 4, "n": 4, "max_tokens": 500, "seconds": 5.0},
}


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    pieces: int = 0
    whole: bool = False


class Served:
    """An engine double behind the middleware, and how to ask it."""

    def __init__(self, replica: Replica, step: float) -> None:
        self.app = engine_app(step)
        self.replica = replica
        self.middleware = Middleware(self.app, replica)

    @property
    def engine(self) -> EngineClient:
        client: EngineClient = self.app.state.engine_client
        return client

    def signed(self, tenant: str = "tenant_a", **more: Any) -> dict[str, str]:
        now = self.replica.clock.now_ns() // 10**9
        return {"x-tollbook-caller": sign(Caller(tenant_id=tenant, **more), "k1", KEY, now=now)}

    async def ask(
        self,
        body: Any,
        path: str = "/v1/completions",
        *,
        method: str = "POST",
        tenant: str = "tenant_a",
        headers: dict[str, str] | None = None,
        leave_after: int | None = None,
        leave_when: Callable[[], Awaitable[Any]] | None = None,
        **caller: Any,
    ) -> Answer:
        """`leave_after`: the client is gone after so many pieces; 0 with the request still being sent."""
        sent = self.signed(tenant, **caller) if headers is None else headers
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer, gone, asked = Answer(), asyncio.Event(), False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked and leave_after != 0:
                asked = True
                return {"type": "http.request", "body": payload, "more_body": False}
            if leave_when is not None:
                await leave_when()
            elif leave_after != 0:
                await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
                return
            answer.body += message.get("body", b"")
            answer.pieces += bool(message.get("body"))
            answer.whole = not message.get("more_body", False)
            if answer.whole or answer.pieces == leave_after:
                gone.set()

        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(k.encode(), v.encode()) for k, v in sent.items()], "client": ("10.0.0.9", 1),
            "app": self.app, "http_version": "1.1", "scheme": "http", "root_path": "", "server": ("replica", 80),
        }  # fmt: skip
        await self.middleware(scope, receive, send)
        return answer

    async def told(self, least: int = 1) -> list[UsageEvent]:
        """The events that are on disk, once there are so many and nothing is open."""
        while self.replica.journal.standing().open or len(events(self.replica.journal.folder)) < least:
            await asyncio.sleep(0.002)
        return events(self.replica.journal.folder)


@pytest.fixture
def settings(tmp_path: Path) -> AdapterSettings:
    def secret(name: str, text: bytes) -> str:
        (tmp_path / name).write_bytes(text)
        os.chmod(tmp_path / name, 0o600)
        return str(tmp_path / name)

    return AdapterSettings(
        replica_id="r1", spool=SpoolSection(folder=str(tmp_path / "spool")), region="eu", pool="h100",
        salt_key=secret("salt", b"s" * 32), gateway_keys=secret("keys", b"k1 " + KEY),
        rules=msgspec.convert(RULES, Rules),
    )  # fmt: skip


@asynccontextmanager
async def serving(settings: AdapterSettings, step: float = 0.0005) -> AsyncIterator[Served]:
    served = Served(Replica(settings), step)
    try:
        yield served
    finally:
        await served.replica.stop()


PROMPT = "one two three four five six seven eight nine"


def test_the_start_is_on_disk_before_the_engine_sees_the_request(settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(settings) as served:
            started: list[bool] = []
            add = served.engine.output_processor.add_request

            def looking(request: Any, *args: Any) -> None:
                started.append(any(isinstance(record, Start) for record in records(served.replica.journal.folder)))
                add(request, *args)

            served.engine.output_processor.add_request = looking  # type: ignore[method-assign]
            await served.ask({"model": "tiny", "prompt": PROMPT})
            assert started == [True]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 6}, ("ok", "none", "length", 9, 6, None)),
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 6, "stream": True}, ("ok", "none", "length", 9, 6, None)),
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 6, "stop_at": 2}, ("ok", "none", "stop", 9, 2, None)),
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 4, "n": 3}, ("ok", "none", "length", 9, 12, 27)),
        ("/v1/completions", {"prompt": ["a b", "c d e"], "max_tokens": 2, "n": 2}, ("ok", "none", "length", 5, 8, 10)),
        ("/v1/chat/completions", {"messages": [{"content": PROMPT}]}, ("ok", "none", "length", 9, 8, None)),
        ("/v1/responses", {"prompt": PROMPT, "max_output_tokens": 3}, ("ok", "none", "length", 9, 3, None)),
        ("/v1/embeddings", {"input": ["a b", "c d e"]}, ("ok", "none", "", 5, 0, None)),
        ("/v1/completions", {"prompt": PROMPT, "temperature": -1}, ("rejected", "client", "http_400", 0, 0, None)),
        (
            "/v1/completions",
            {"prompt": PROMPT, "max_tokens": 9, "fail_at": 4, "stream": True},
            ("error", "platform", "engine_error", 9, 3, None),
        ),
    ],
    ids=["plain", "stream", "stop", "n3", "batch", "chat", "responses", "embeddings", "refused", "fails-midway"],
)  # fmt: skip
def test_each_attempt_has_one_event_with_the_engines_own_counts(
    settings: AdapterSettings, path: str, body: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    async def run() -> None:
        async with serving(settings) as served:
            await served.ask({"model": "tiny", **body}, path, tier="paid")
            (event,) = await served.told()
            found = (event.status, event.fault, event.finish_reason, event.input_tokens, event.output_tokens)
            assert (*found, event.engine_input_tokens) == expected
            assert (event.tenant_id, event.model, event.model_revision) == ("tenant_a", "tiny", "r1")
            assert (event.usage_source, event.region, event.pool, event.tier) == ("engine", "eu", "h100", "paid")
            check_conservation(served, [event])

    asyncio.run(run())


def check_conservation(served: Served, found: list[UsageEvent]) -> None:
    """Σ `engine_*` of events = the engine's counters, exactly."""
    counters = served.engine.output_processor.counters
    assert sum(e.output_tokens for e in found) == counters["generation"]
    assert (
        sum(e.input_tokens if e.engine_input_tokens is None else e.engine_input_tokens for e in found)
        == (counters["prompt"])
    )
    assert (
        sum(e.cache_hit_tokens if e.engine_cached_tokens is None else e.engine_cached_tokens for e in found)
        == (counters["cached"])
    )


def test_a_client_that_leaves_has_what_the_engine_did_until_then(settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(settings, step=0.01) as served:
            await served.ask({"model": "tiny", "prompt": PROMPT, "max_tokens": 400, "stream": True}, leave_after=3)

            async def some_tokens() -> None:
                while served.engine.output_processor.counters["generation"] < 8:
                    await asyncio.sleep(0.002)

            async def in_the_engine() -> None:
                while not served.engine.output_processor.request_states:
                    await asyncio.sleep(0)

            quiet = await served.ask({"model": "tiny", "prompt": "a b", "max_tokens": 400}, leave_when=some_tokens)
            await served.ask({"model": "tiny", "prompt": "c d", "max_tokens": 400}, leave_when=in_the_engine)
            await served.ask({"model": "tiny", "prompt": "e f"}, leave_after=0)
            streamed, silent, prefilling = await served.told(3)
            assert (streamed.status, streamed.fault, streamed.finish_reason) == ("aborted", "client", "client_gone")
            assert 3 <= streamed.output_tokens < 100
            assert quiet.body == b"null"
            assert (silent.status, silent.input_tokens) == ("aborted", 2)
            assert silent.output_tokens > 0
            assert (prefilling.status, prefilling.input_tokens, prefilling.output_tokens) == ("aborted", 0, 0)
            check_conservation(served, [streamed, silent, prefilling])
            assert len(await served.told()) == 3, "who was gone before asking has no event"

    asyncio.run(run())


def test_a_dead_engine_a_timeout_and_a_shutdown_end_what_is_open(settings: AdapterSettings) -> None:
    limits = msgspec.structs.replace(settings.rules.limits, seconds=0.3)
    settings = msgspec.structs.replace(settings, rules=msgspec.structs.replace(settings.rules, limits=limits))

    async def run() -> None:
        async with serving(settings, step=0.01) as served:
            answer = await served.ask({"model": "tiny", "prompt": "a b", "max_tokens": 400})
            assert answer.status == 504
            (late,) = await served.told()
            assert (late.status, late.fault, late.finish_reason) == ("error", "platform", "timeout")
            assert 3 < late.output_tokens < 100
            asked = asyncio.create_task(
                served.ask({"model": "tiny", "prompt": "c d", "max_tokens": 25, "stream": True})
            )
            while not served.engine.output_processor.request_states:
                await asyncio.sleep(0.002)
            served.engine.shutdown()
            await asked
            down = (await served.told(2))[1]
            assert (down.status, down.fault, down.finish_reason) == ("aborted", "platform", "shutdown")
            answer = await served.ask({"model": "tiny", "prompt": "e f", "stream": True})
            dead = (await served.told(3))[2]
            assert (dead.status, dead.fault, dead.output_tokens) == ("error", "platform", 0)

    asyncio.run(run())


def test_what_runs_without_a_request_is_the_platforms(settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(settings) as served:
            served.replica.attach(served.engine)
            await asyncio.get_running_loop().create_task(drained(served.engine), context=None)
            (row,) = await served.told()
            assert (row.tenant_id, row.finish_reason, row.input_tokens, row.output_tokens) == (
                "_platform",
                "orphaned",
                2,
                3,
            )

    async def drained(engine: EngineClient) -> None:
        params = msgspec.defstruct(
            "P", [("n", int, 1), ("max_tokens", int, 3), ("fail_at", Any, None), ("stop_at", Any, None)]
        )()
        async for _ in engine.generate("a b", params, "x"):
            pass

    asyncio.run(run())


def test_an_engine_that_cannot_be_metered_stops_the_server_before_it_begins(
    settings: AdapterSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def started() -> list[str]:
        replica = Replica(settings)
        app, said = engine_app(), list[str]()
        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            if any(isinstance(record, Farewell) for record in records(replica.journal.folder)):
                said.append("farewell")
            said.append(message["type"])

        await Middleware(app, replica)({"type": "lifespan", "app": app, "state": {}}, receive, send)
        return said

    assert asyncio.run(started()) == ["lifespan.startup.complete", "farewell", "lifespan.shutdown.complete"]
    monkeypatch.setattr(OutputProcessor, "log_stats", False)
    assert asyncio.run(started()) == ["lifespan.startup.failed"]
    monkeypatch.undo()
    monkeypatch.delattr(OutputProcessor, "_finish_request")
    assert asyncio.run(started()) == ["lifespan.startup.failed"]


def test_other_versions_of_vllm_than_those_looked_at_are_refused() -> None:
    for version in ("0.29.0", "0.32.0+cpu", "0.33.1.dev3"):
        check_version(version)
    for version in ("0.28.1", "0.34.0", "0.3.2", "1.32.0"):
        with pytest.raises(EngineUnfit):
            check_version(version)


@pytest.mark.parametrize(
    ("path", "method", "headers", "status"),
    [
        ("/v1/rerank", "POST", None, 404),
        ("/v1/load_lora_adapter", "POST", None, 404),
        ("/v1/completions/", "POST", None, 404),
        ("/v1//completions", "POST", None, 404),
        ("/v1/completions", "PUT", None, 404),
        ("/v1/completions", "POST", {}, 401),
        ("/v1/completions", "POST", {"x-tollbook-caller": "v1.k1.e30.AAAA"}, 401),
        ("/v1/completions", "POST", {"authorization": "Bearer x"}, 401),
        ("/metrics", "GET", {}, 403),
    ],
)
def test_what_is_not_named_is_closed_and_nobody_comes_without_a_name(
    settings: AdapterSettings, path: str, method: str, headers: dict[str, str] | None, status: int
) -> None:
    async def run() -> None:
        async with serving(settings) as served:
            answer = await served.ask({"model": "tiny", "prompt": PROMPT}, path, method=method, headers=headers)
            assert answer.status == status
            assert "error" in json.loads(answer.body)
            assert served.engine.seen == []
            assert served.replica.journal.standing().started == 0

    asyncio.run(run())


def test_a_tenants_blocks_are_found_by_that_tenant_alone_whatever_salt_it_sends(settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(settings) as served:
            body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1}
            for _ in range(2):
                await served.ask(body, tenant="tenant_a")
            stolen = served.engine.seen[0].cache_salt
            await served.ask(body | {"cache_salt": stolen}, tenant="tenant_b")
            await served.ask(body | {"cache_salt": None}, tenant="tenant_b")
            first, again, foreign, own = await served.told(4)
            assert [e.cache_hit_tokens for e in (first, again, foreign, own)] == [0, 8, 0, 8]
            assert stolen not in {request.cache_salt for request in served.engine.seen[2:]}
            assert len(stolen) == 43

    asyncio.run(run())


def test_priority_is_the_tiers_and_dangerous_fields_do_not_reach_the_engine(settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(settings) as served:
            body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1, "priority": -999}
            headers = served.signed(tier="free") | {"x-vllm-priority": "-999", "x-request-id": "mine"}
            answer = await served.ask(body, headers=headers)
            assert served.engine.seen[0].priority == 10
            (event,) = await served.told()
            assert event.client_request_id == "mine"
            assert answer.headers["x-request-id"] == event.request_id != "mine"
            for name, value in (("use_beam_search", True), ("previous_response_id", "resp_1"), ("prompt_embeds", "AA")):
                refused = await served.ask(body | {name: value})
                assert (refused.status, json.loads(refused.body)["error"]["param"]) == (400, name)

    asyncio.run(run())


def test_a_tenant_reaches_its_own_adapters_alone_and_foreign_ones_do_not_exist(settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(settings) as served:
            own = await served.ask({"model": "fr", "prompt": "a b", "max_tokens": 1})
            assert own.status == 200
            assert json.loads(own.body)["model"] == "fr", "the engine's name for it is not shown"
            names = ("law", "tenant_b--law--1", "tenant_a--fr--1", "../tenant_b--law--1", "nothing", "")
            answers = [await served.ask({"model": name, "prompt": "a b"}) for name in names]
            assert {answer.status for answer in answers} == {404}
            texts = {
                json.loads(a.body)["error"]["message"].replace(f"`{n}`", "")
                for a, n in zip(answers, names, strict=True)
            }
            assert len(texts) == 1
            listed = await served.ask(b"", "/v1/models", method="GET", tenant="tenant_b")
            assert [model["id"] for model in json.loads(listed.body)["data"]] == ["tiny", "fast", "law"]
            (event,) = await served.told()
            assert (event.model, event.adapter, event.adapter_revision) == ("tiny", "fr", "1")
            streamed = await served.ask({"model": "fast", "prompt": "a b", "max_tokens": 2, "stream": True})
            assert b'"model":"fast"' in streamed.body
            assert b'"model":"tiny"' not in streamed.body

    asyncio.run(run())


def test_a_route_that_lost_the_salt_is_stopped_before_the_engine(settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(settings) as served:
            run_one = served.engine.generate

            def without_salt(prompt: str, params: Any, request_id: str, **more: Any) -> Any:
                return run_one(prompt, params, request_id, **more | {"cache_salt": None})

            served.engine.generate = without_salt  # type: ignore[method-assign]
            with pytest.raises(Exception, match="without its tenant's cache salt"):
                await served.ask({"model": "tiny", "prompt": PROMPT})
            (event,) = await served.told()
            assert (event.status, event.fault, event.output_tokens) == ("error", "platform", 0)
            assert served.engine.output_processor.counters["generation"] == 0

    asyncio.run(run())


def test_regions_limits_and_a_full_spool_refuse_before_the_engine(settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(settings) as served:
            body = {"model": "tiny", "prompt": "a b"}
            pinned = await served.ask(body, regions=["us", "ap"])
            assert (pinned.status, json.loads(pinned.body)["error"]["code"]) == (403, "region_not_allowed")
            assert (await served.ask(body | {"prompt": "x" * 30_000})).status == 413
            assert (await served.ask(body | {"n": 9})).status == 400
            assert (await served.ask(body | {"prompt": ["a"] * 5})).status == 400
            assert (await served.ask(body | {"max_tokens": 501})).status == 400
            assert (await served.ask(b"[1]")).status == 400
            served.replica.journal._writer.failing = "played"
            assert (await served.ask(body)).status == 503
            assert (await served.ask(b"", "/health", method="GET")).status == 503
            served.replica.journal._writer.failing = None
            assert served.engine.seen == []
            page = served.replica.metrics.page()
            assert 'tenant_refused_total{tenant="tenant_a",reason="no_room"} 1' in page

    asyncio.run(run())


def test_the_engines_page_has_the_boot_and_the_tenants_figures(settings: AdapterSettings) -> None:
    secret = Path(settings.salt_key).with_name("metrics")
    secret.write_bytes(b"m" * 32)
    secret.chmod(0o600)
    settings = msgspec.structs.replace(settings, metrics_secret=str(secret))

    async def run() -> None:
        async with serving(settings) as served:
            await served.ask({"model": "tiny", "prompt": PROMPT, "max_tokens": 3, "stream": True})
            await served.told()
            answer = await served.ask(b"", "/metrics", method="GET", headers={"authorization": "Bearer " + "m" * 32})
            page = answer.body.decode()
            assert int(answer.headers["content-length"]) == len(answer.body)
            assert page.startswith("vllm:prompt_tokens_total 1\n")
            assert f'tollbook_boot_info{{boot_id="{served.replica.journal.boot_id}",replica_id="r1"}} 1' in page
            assert 'tenant_requests_total{tenant="tenant_a",model="tiny",status="ok"} 1' in page
            assert 'tenant_tokens_total{tenant="tenant_a",model="tiny",class="output"} 3' in page
            assert 'tenant_time_to_first_token_seconds_count{tenant="tenant_a"} 1' in page
            assert 'tenant_in_flight{tenant="tenant_a"} 0' in page

    asyncio.run(run())


def test_many_mixed_requests_are_conserved_and_each_has_one_event(settings: AdapterSettings) -> None:
    """Random tenants, adapters, aborts, failures, n and batches, at once; prints its seed."""
    seed = int(os.environ.get("TOLLBOOK_SEED", "20261121"))
    print("seed", seed)
    chance = random.Random(seed)

    async def run() -> None:
        async with serving(settings, step=0.0002) as served:
            ids = []

            async def one(number: int) -> None:
                tenant = chance.choice(["tenant_a", "tenant_b", "tenant_c"])
                own = {"tenant_a": "fr", "tenant_b": "law"}.get(tenant, "tiny")
                body: dict[str, Any] = {
                    "model": chance.choice(["tiny", "fast", own]), "max_tokens": chance.randint(1, 12),
                    "prompt": [" ".join(chance.choices("abc", k=chance.randint(1, 12))) for _ in "ab"],
                    "n": chance.choice([1, 1, 1, 3]), "stream": chance.random() < 0.6,
                }  # fmt: skip
                if chance.random() < 0.1:
                    body["fail_at"] = 2
                if chance.random() < 0.1:
                    body["temperature"] = -1
                leave = chance.randint(1, 4) if body["stream"] and chance.random() < 0.3 else None
                request_id = f"q{number}"
                ids.append(request_id)
                try:
                    await served.ask(body, tenant=tenant, leave_after=leave, request_id=request_id, attempt=1)
                except Exception as error:
                    assert type(error).__name__ == "EngineDead"  # noqa: PT017

            for begin in range(0, 400, 40):
                await asyncio.gather(*(one(number) for number in range(begin, begin + 40)))
            found = await served.told(400)
            assert sorted(event.request_id for event in found) == sorted(ids)
            assert {event.status for event in found} == {"ok", "aborted", "error", "rejected"}
            check_conservation(served, found)

    asyncio.run(run())
