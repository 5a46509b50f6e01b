"""The middleware in front of an engine double: one event for each attempt, whatever its end."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from types import SimpleNamespace
from typing import Any, Literal

import msgspec
import pytest

from serving_adapter.engine.vllm_hooks import EngineUnfit, check_version
from serving_adapter.identity import identity_of
from serving_adapter.isolation.callers import Caller
from serving_adapter.isolation.rules import Resolved, Target
from serving_adapter.serving.adapter_settings import AdapterSettings, QuotaSection
from serving_adapter.serving.attempt_events import lost_event
from serving_adapter.serving.dispatched import KEPT_S, AttemptId, Dispatched
from serving_adapter.serving.middleware import Middleware
from serving_adapter.serving.replica import Replica
from serving_adapter.spool.records import Farewell
from serving_adapter.spool.recovery import replay
from tests.adapter_builders import records
from tests.engine_double import EngineClient, OutputProcessor, engine_app
from tests.fixtures_adapter import PROMPT, Answer, check_conservation, serving


def test_the_start_is_on_disk_before_the_engine_sees_the_request(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(adapter_settings) as served:
            started: list[int] = []
            add = served.engine.output_processor.add_request

            def looking(request: Any, *args: Any) -> None:
                started.append(len(replay(served.replica.journal.folder)[0].open))
                add(request, *args)

            served.engine.output_processor.add_request = looking  # type: ignore[method-assign]
            await served.ask({"model": "tiny", "prompt": PROMPT})
            assert started == [1]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 6}, ("ok", "none", "length", 9, 6, None)),
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 6, "stream": True}, ("ok", "none", "length", 9, 6, None)),
        ("/v1/completions", {"prompt": PROMPT, "metadata": {"stop_at": 2}}, ("ok", "none", "stop", 9, 2, None)),
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 4, "n": 3}, ("ok", "none", "length", 9, 12, 27)),
        ("/v1/completions", {"prompt": ["a b", "c d e"], "max_tokens": 2, "n": 2}, ("ok", "none", "length", 5, 8, 10)),
        ("/v1/chat/completions", {"messages": [{"content": PROMPT}]}, ("ok", "none", "length", 9, 8, None)),
        ("/v1/responses", {"input": PROMPT, "max_output_tokens": 3}, ("ok", "none", "length", 9, 3, None)),
        ("/v1/embeddings", {"input": ["a b", "c d e"]}, ("ok", "none", "", 5, 0, None)),
        ("/v1/completions", {"prompt": PROMPT, "temperature": -1}, ("rejected", "client", "http_400", 0, 0, None)),
        (
            "/v1/completions",
            {"prompt": PROMPT, "max_tokens": 9, "metadata": {"fail_at": 4}, "stream": True},
            ("error", "platform", "engine_error", 9, 3, None),
        ),
        (
            "/v1/completions",
            {"prompt": PROMPT, "max_tokens": 9, "n": 2, "metadata": {"error_at": 2}, "stream": True},
            ("error", "platform", "engine_error", 9, 4, 18),
        ),
        (
            "/v1/completions",
            {"prompt": PROMPT, "max_tokens": 9, "metadata": {"error_at": 0}, "stream": True},
            ("error", "platform", "engine_error", 0, 0, None),
        ),
        (
            "/v1/completions",
            {"prompt": PROMPT, "max_tokens": 6, "stream": True, "stream_options": {"include_usage": True}},
            ("ok", "none", "length", 9, 6, None),
        ),
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 3, "best_of": 1}, ("ok", "none", "length", 9, 3, None)),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0, "echo": True}, ("ok", "none", "length", 1, 1, None)),
    ],
    ids=[
        "plain", "stream", "stop", "n3", "batch", "chat", "responses", "embeddings", "refused", "fails-midway",
        "one-of-n-fails", "fails-unread", "stream-usage", "best-of", "no-tokens",
    ],
)  # fmt: skip
def test_each_attempt_has_one_event_with_the_engines_own_counts(
    adapter_settings: AdapterSettings, path: str, body: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    async def run() -> None:
        async with serving(adapter_settings) as served:
            await served.ask({"model": "tiny", **body}, path, tier="paid")
            (event,) = await served.told()
            found = (event.status, event.fault, event.finish_reason, event.input_tokens, event.output_tokens)
            assert (*found, event.engine_input_tokens) == expected
            assert (event.tenant_id, event.model, event.model_revision) == ("tenant_a", "tiny", "r1")
            assert (event.usage_source, event.region, event.pool, event.tier) == ("engine", "eu", "h100", "paid")
            check_conservation(served, [event])

    asyncio.run(run())


def test_the_first_token_is_when_the_engine_made_it_also_in_a_whole_answer(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(adapter_settings, step=0.02) as served:
            body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 6}
            for more in ({}, {"stream": True}, {"temperature": -1}):
                await served.ask(body | more)
            await served.ask({"model": "tiny", "input": "a b"}, "/v1/embeddings")
            whole, streamed, refused, embedded = await served.told(4)
            for event in (whole, streamed):
                assert event.ttft_ms is not None
                assert event.duration_ms is not None
                assert 20 <= event.ttft_ms <= event.duration_ms - 100
            assert (refused.ttft_ms, embedded.ttft_ms) == (None, None)
            page = served.replica.metrics.page()
            assert 'tenant_time_to_first_token_seconds_count{tenant="tenant_a"} 2' in page
            assert 'tenant_inter_token_latency_seconds_count{tenant="tenant_a"} 10' in page
            assert 'tenant_inter_token_latency_seconds_bucket{tenant="tenant_a",le="0.01"} 0' in page

    asyncio.run(run())


def test_a_token_that_took_long_is_seen_among_those_that_did_not(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(adapter_settings) as served:
            await served.ask({"model": "tiny", "input": "a b"}, "/v1/embeddings")  # the hooks are in now
            update = served.engine.output_processor._update_stats_from_output

            def late(state: Any, output: Any) -> None:
                if state.stats.num_generation_tokens == 4:
                    state.stats.last_token_ts -= 9.0  # the fifth token comes nine seconds after the fourth
                update(state, output)

            served.engine.output_processor._update_stats_from_output = late  # type: ignore[method-assign]
            await served.ask({"model": "tiny", "prompt": PROMPT, "max_tokens": 6})
            await served.told(2)
            page = served.replica.metrics.page()
            assert 'tenant_inter_token_latency_seconds_bucket{tenant="tenant_a",le="2.5"} 4' in page
            assert 'tenant_inter_token_latency_seconds_count{tenant="tenant_a"} 5' in page

    asyncio.run(run())


def test_a_client_that_leaves_has_what_the_engine_did_until_then(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(adapter_settings, step=0.01) as served:
            await served.ask({"model": "tiny", "prompt": PROMPT, "max_tokens": 400, "stream": True}, leave_after=3)

            async def some_tokens() -> None:
                while served.engine.output_processor.counters["generation"] < 8:
                    await asyncio.sleep(0.002)

            async def in_the_engine() -> None:
                while not served.engine.output_processor.request_states:
                    await asyncio.sleep(0)

            quiet = await served.ask({"model": "tiny", "prompt": "a b", "max_tokens": 400}, leave_when=some_tokens)
            served.engine.goes_on.clear()
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


def test_an_attempt_is_served_once_also_while_it_runs(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(adapter_settings, step=0.01) as served:
            body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 5}
            named: dict[str, Any] = {"request_id": "q1", "attempt": 1}
            unknown = await served.ask(body | {"model": "nothing"}, **named)
            together = await asyncio.gather(*(served.ask(body, **named) for _ in range(2)))
            again = await served.ask(body, **named)
            statuses = [unknown.status, *sorted(answer.status for answer in together), again.status]
            assert statuses == [404, 200, 409, 409]
            assert (await served.ask(body, request_id="q1", attempt=2)).status == 200
            assert (await served.ask(body, **named, tenant="tenant_b")).status == 200
            assert {(await served.ask(body, request_id="q1")).status for _ in "ab"} == {200}, "its own id, each time"
            found = await served.told(5)
            assert len({identity_of(event) for event in found}) == len(found) == 5
            assert served.replica.journal.standing().started == 5

    asyncio.run(run())


def test_an_attempt_is_remembered_as_long_as_its_header_may_be_valid() -> None:
    dispatched, attempt = Dispatched(), AttemptId("tenant_a", "q1", 1)
    assert dispatched.claim(attempt, 1000.0)
    dispatched.let_go(attempt, begun=False)
    assert dispatched.claim(attempt, 1001.0)
    assert not dispatched.claim(attempt, 1001.0 + 5 * KEPT_S), "it runs"
    dispatched.let_go(attempt, begun=True)
    begin = 1001.0 + 5 * KEPT_S
    assert [dispatched.claim(attempt, begin + share * KEPT_S) for share in (0, 0.9, 1.1, 1.9, 3.2)] == [
        False, False, False, False, True
    ]  # fmt: skip


def test_a_dead_engine_a_timeout_and_a_shutdown_end_what_is_open(adapter_settings: AdapterSettings) -> None:
    limits = msgspec.structs.replace(adapter_settings.rules.limits, seconds=0.3)
    hasty = msgspec.structs.replace(
        adapter_settings, rules=msgspec.structs.replace(adapter_settings.rules, limits=limits)
    )

    async def run() -> None:
        async with serving(hasty, step=0.01) as served:
            answer = await served.ask({"model": "tiny", "prompt": "a b", "max_tokens": 400})
            assert answer.status == 504
            (late,) = await served.told()
            assert (late.status, late.fault, late.finish_reason) == ("error", "platform", "timeout")
            assert late.output_tokens == served.engine.output_processor.counters["generation"] < 400
            served.engine.dead = True
            await served.ask({"model": "tiny", "prompt": "e f", "stream": True})
            dead = (await served.told(2))[1]
            assert (dead.status, dead.fault, dead.output_tokens) == ("error", "platform", 0)
        async with serving(adapter_settings, step=0.01) as served:
            body = {"model": "tiny", "prompt": "c d", "max_tokens": 25, "stream": True}
            served.engine.goes_on.clear()
            asked = asyncio.create_task(served.ask(body))
            while not served.engine.output_processor.request_states:
                await asyncio.sleep(0.002)
            threads, end = [], served.replica.journal.end

            def ended(*args: Any, **more: Any) -> Any:
                threads.append(threading.current_thread())
                return end(*args, **more)

            served.replica.journal.end = ended  # type: ignore[method-assign]
            await asyncio.to_thread(served.engine.shutdown)  # where vLLM calls it
            served.engine.goes_on.set()
            await asked
            (down,) = await served.told()
            assert (down.status, down.fault, down.finish_reason) == ("aborted", "platform", "shutdown")
            assert threads == [threading.current_thread()], "attempts end on the loop"
            refused = await served.ask(body)
            health = await served.ask(b"", "/health", method="GET")
            assert (refused.status, b"going_down" in refused.body, health.status) == (503, True, 503)
            assert len(await served.told()) == 1, "the engine would have answered nothing"

    asyncio.run(run())


def test_a_shutdown_ends_the_answers_that_would_go_on_for_ever(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(adapter_settings, step=3600) as served:
            body = {"model": "tiny", "prompt": "c d", "max_tokens": 25}
            asked = [asyncio.create_task(served.ask(body | more)) for more in ({}, {"stream": True})]
            while len(served.engine.output_processor.request_states) < 2:
                await asyncio.sleep(0.002)
            await asyncio.to_thread(served.engine.shutdown)
            async with asyncio.timeout(60):
                whole, streamed = await asyncio.gather(*asked)
            assert (whole.status, b"going_down" in whole.body, whole.headers["retry-after"]) == (503, True, "1")
            assert (streamed.status, streamed.whole) == (200, False)
            assert {(event.status, event.finish_reason) for event in await served.told(2)} == {("aborted", "shutdown")}

    asyncio.run(run())


def test_what_runs_without_a_request_is_the_platforms(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(adapter_settings) as served:
            served.replica.attach(served.engine)
            await asyncio.get_running_loop().create_task(drained(served.engine), context=None)
            body = {"model": "tiny", "prompt": "a b", "max_tokens": 3}
            await served.ask(body, tenant="_platform", purpose="probe")
            await served.ask(body | {"temperature": -1}, tenant="_platform", purpose="warmup")
            await served.ask(body, tenant="tenant_a", purpose="shadow")
            await served.replica.begin(
                lost_event(
                    Caller(tenant_id="_platform", purpose="probe"), Resolved("tiny", "tiny", "tiny", "", "", ""), "q",
                    None, now_ns=served.replica.clock.now_ns(), region="eu", pool="",
                ), came_at=0.0, adapter=None, engine_model="tiny", may_be_shed=False, may_be_followed=False,
            )  # fmt: skip
            served.replica.cut_off_all()
            rows = await served.told(5)
            assert [(row.tenant_id, row.finish_reason, row.input_tokens, row.output_tokens) for row in rows] == [
                ("_platform", "orphaned", 2, 3), ("_platform", "probe", 2, 3), ("_platform", "warmup", 0, 0),
                ("tenant_a", "length", 2, 3), ("_platform", "probe", 0, 0),
            ]  # fmt: skip

    async def drained(engine: EngineClient) -> None:
        params = msgspec.defstruct(
            "P",
            [
                ("n", int, 1),
                ("max_tokens", int, 3),
                *((name, Any, None) for name in ("fail_at", "stop_at", "error_at")),
            ],
        )()
        async for _ in engine.generate("a b", params, "x"):
            pass

    asyncio.run(run())


def test_an_engine_that_cannot_be_metered_stops_the_server_before_it_begins(
    adapter_settings: AdapterSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def started(settings: AdapterSettings = adapter_settings) -> list[str]:
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
    with monkeypatch.context() as mistaken:  # uvicorn would go on without a lifespan where one raises
        mistaken.setenv("TOLLBOOK_QUOTA_URL", "https://quota")
        asking = msgspec.structs.replace(adapter_settings, quota=QuotaSection(enabled=True))
        assert asyncio.run(started(asking)) == ["lifespan.startup.failed"]
    monkeypatch.setattr(OutputProcessor, "log_stats", False)
    assert asyncio.run(started()) == ["lifespan.startup.failed"]
    monkeypatch.undo()
    monkeypatch.delattr(OutputProcessor, "_finish_request")
    assert asyncio.run(started()) == ["lifespan.startup.failed"]


def test_an_engine_that_was_started_unsafely_is_refused_and_one_started_badly_warned_of(
    adapter_settings: AdapterSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SimpleNamespace(
        kv_events_config=SimpleNamespace(enable_kv_cache_events=True), lora_config=SimpleNamespace(max_cpu_loras=1)
    )

    async def run() -> None:
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1}
        for skipped, status in (("0", 200), ("True", 503)):
            monkeypatch.setenv("VLLM_SKIP_MODEL_NAME_VALIDATION", skipped)
            rules = msgspec.structs.replace(adapter_settings.rules, media=["images.example"])
            changed = msgspec.structs.replace(adapter_settings, on_unknown_engine="stream", rules=rules)
            async with serving(changed) as served:
                served.engine.vllm_config = config  # type: ignore[attr-defined]
                assert [(await served.ask(body)).status for _ in "ab"] == [status, status]
        monkeypatch.delenv("VLLM_SKIP_MODEL_NAME_VALIDATION")
        async with serving(msgspec.structs.replace(adapter_settings, on_unknown_engine="stream")) as served:
            served.app.state.args = SimpleNamespace(api_key=["secret"])
            refused = await served.ask(body)
            assert (refused.status, b"--api-key" in refused.body) == (503, True), "whoever counts"

    asyncio.run(run())
    told = capsys.readouterr().err
    for word in ("key-value events", "--max-cpu-loras 1 for 2 adapters", "--allowed-media-domains", "ALLOW_REDIRECTS"):
        assert told.count(word) == 1


def test_names_that_share_with_a_model_which_the_engine_does_not_serve_are_an_alert(
    adapter_settings: AdapterSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = {"tiny": [Target(engine="tiny", share=95), Target(engine="tiny-next", share=5)]}
    shared = msgspec.structs.replace(adapter_settings.rules, models=targets)

    async def run() -> None:
        async with serving(adapter_settings) as served:
            served.app.state.args = SimpleNamespace(model="org/tiny", served_model_name=["tiny", "small"])
            body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1}
            assert (await served.ask(body)).status == 200
            assert "tiny-next" not in capsys.readouterr().err
            served.replica.use(shared)
            assert "tiny-next" in capsys.readouterr().err
        async with serving(msgspec.structs.replace(adapter_settings, rules=shared)) as served:
            served.app.state.args = SimpleNamespace(model="tiny", served_model_name=None)
            await served.ask(body)
            told = capsys.readouterr().err
            assert "'tiny-next', which this engine does not serve: it serves 'tiny'" in told

    asyncio.run(run())


def test_an_engine_of_several_processes_is_refused_whoever_counts(adapter_settings: AdapterSettings) -> None:
    def config(**parallel: Any) -> Any:
        return SimpleNamespace(parallel_config=SimpleNamespace(**parallel))

    async def answer(config: Any, counted: Literal["refuse", "stream"]) -> Answer:
        async with serving(msgspec.structs.replace(adapter_settings, on_unknown_engine=counted)) as served:
            served.engine.vllm_config = config  # type: ignore[attr-defined]
            return await served.ask({"model": "tiny", "prompt": PROMPT, "max_tokens": 1})

    both: list[Literal["refuse", "stream"]] = ["refuse", "stream"]
    for counted in both:
        servers = asyncio.run(answer(config(_api_process_count=2), counted))
        assert (servers.status, b"--api-server-count 1" in servers.body) == (503, True)
        ranks = asyncio.run(answer(config(data_parallel_size=2, data_parallel_external_lb=False), counted))
        assert (ranks.status, b"--data-parallel-size" in ranks.body) == (503, True)
    alone = config(_api_process_count=1, data_parallel_size=4, data_parallel_external_lb=True)
    assert asyncio.run(answer(alone, "refuse")).status == 200, "each rank has a server of its own"


def test_other_versions_of_vllm_than_the_tested_are_refused_but_for_those_that_the_operator_lets_in(
    adapter_settings: AdapterSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def status(version: str, *let_in: Literal["0.29", "0.33"]) -> int:
        monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__=version))  # type: ignore[arg-type]
        async with serving(msgspec.structs.replace(adapter_settings, untested_vllm=list(let_in))) as served:
            return (await served.ask({"model": "tiny", "prompt": PROMPT, "max_tokens": 1})).status

    assert asyncio.run(status("0.32.0+cpu")) == 200
    assert asyncio.run(status("0.33.1.dev3", "0.29", "0.33")) == 200
    for version in ("0.33.1.dev3", "0.28.1", "0.34.0", "0.3.2", "1.32.0"):
        assert asyncio.run(status(version, "0.29")) == 503
    with pytest.raises(EngineUnfit, match=r'untested_vllm = \["0.29"\]'):
        check_version("0.29.0", [])


def test_many_mixed_requests_are_conserved_and_each_has_one_event(adapter_settings: AdapterSettings) -> None:
    """Random tenants, adapters, aborts, failures, n and batches, at once; prints its seed."""
    seed = int(os.environ.get("TOLLBOOK_SEED", "20261121"))
    print("seed", seed)
    chance = random.Random(seed)

    async def run() -> None:
        async with serving(adapter_settings, step=0.0002) as served:
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
                    body["metadata"] = chance.choice([{"fail_at": 2}, {"error_at": 2}, {"error_at": 0}])
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


def test_an_unknown_engine_is_counted_from_its_answers_where_that_is_allowed(
    adapter_settings: AdapterSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(OutputProcessor, "_finish_request")
    monkeypatch.setattr(EngineClient, "generate", _generated)

    async def run() -> None:
        async with serving(adapter_settings) as served:
            assert (await served.ask({"model": "tiny", "prompt": PROMPT})).status == 503
        allowed = msgspec.structs.replace(adapter_settings, on_unknown_engine="stream")
        async with serving(allowed) as served:
            answer = await served.ask({"model": "fast", "prompt": PROMPT, "max_tokens": 3})
            assert (answer.status, b'"model":"fast"' in answer.body) == (200, True)
            (event,) = await served.told()
            assert (event.usage_source, event.input_tokens, event.output_tokens) == ("stream", 9, 3)
            assert event.status == "ok"

    asyncio.run(run())


async def _generated(self: EngineClient, prompt: str, params: Any, request_id: str, **more: Any) -> Any:
    """An engine whose insides are others."""
    for token in range(1, params.max_tokens + 1):
        yield SimpleNamespace(finished=token == params.max_tokens, token=token, outputs=[None] * params.n)
