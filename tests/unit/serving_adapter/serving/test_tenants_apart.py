"""The middleware in front of an engine double: what tenants may reach, and what reaches the engine of what they say."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving_adapter.clock import ReplicaClock
from serving_adapter.isolation.callers import nobody
from serving_adapter.metering.tenant_metrics import TenantMetrics
from serving_adapter.serving import replica as replica_module
from serving_adapter.serving.adapter_settings import AdapterSettings
from serving_adapter.serving.middleware import TEXT
from serving_adapter.serving.replica import Replica
from serving_adapter.shipping.position import Shipped, store
from serving_adapter.spool.disk_bound import DiskState
from tests.fixtures_adapter import PROMPT, serving

OPENMETRICS = b"application/openmetrics-text; version=1.0.0; charset=utf-8"


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
    adapter_settings: AdapterSettings, path: str, method: str, headers: dict[str, str] | None, status: int
) -> None:
    async def run() -> None:
        async with serving(adapter_settings) as served:
            answer = await served.ask({"model": "tiny", "prompt": PROMPT}, path, method=method, headers=headers)
            assert answer.status == status
            assert "error" in json.loads(answer.body)
            assert served.engine.seen == []
            assert served.replica.journal.standing().started == 0

    asyncio.run(run())


def test_a_tenants_blocks_are_found_by_it_alone_whatever_salt_is_sent(
    adapter_settings: AdapterSettings,
) -> None:
    async def run() -> None:
        async with serving(adapter_settings) as served:
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


def test_priority_is_the_tiers_and_dangerous_fields_do_not_reach_the_engine(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(adapter_settings) as served:
            body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1, "priority": -999}
            headers = served.signed(tier="free") | {"x-vllm-priority": "-999", "x-request-id": "mine"}
            answer = await served.ask(body, headers=headers)
            await served.ask({"model": "tiny", "input": "a b", "priority": -999}, "/v1/embeddings", tier="free")
            assert [request.priority for request in served.engine.seen] == [10, 10]
            event, _ = await served.told(2)
            assert event.client_request_id == "mine"
            assert answer.headers["x-request-id"] == event.request_id != "mine"
            for name, value in (("use_beam_search", True), ("previous_response_id", "resp_1"), ("prompt_embeds", "AA")):
                refused = await served.ask(body | {name: value})
                assert (refused.status, json.loads(refused.body)["error"]["param"]) == (400, name)

    asyncio.run(run())


def test_a_tenant_reaches_its_own_adapters_and_foreign_ones_do_not_exist(
    adapter_settings: AdapterSettings,
) -> None:
    async def run() -> None:
        async with serving(adapter_settings) as served:
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
            for name, tenant, status in (("law", "tenant_b", 200), ("law", "tenant_a", 404), ("tiny", "tenant_a", 200)):
                found = await served.ask(b"", f"/v1/models/{name}", method="GET", tenant=tenant)
                assert (found.status, b"/v1" in found.body) == (status, False)
                assert json.loads(found.body).get("id", name) == name
            (event,) = await served.told()
            assert (event.model, event.adapter, event.adapter_revision) == ("tiny", "fr", "1")
            streamed = await served.ask({"model": "fast", "prompt": "a b", "max_tokens": 2, "stream": True})
            assert b'"model":"fast"' in streamed.body
            assert b'"model":"tiny"' not in streamed.body

    asyncio.run(run())


def test_a_route_that_lost_the_salt_is_stopped_before_the_engine(
    adapter_settings: AdapterSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        async with serving(adapter_settings) as served:
            run_one = served.engine.generate

            def without_salt(prompt: str, params: Any, request_id: str, **more: Any) -> Any:
                return run_one(prompt, params, request_id, **more | {"cache_salt": None})

            served.engine.generate = without_salt  # type: ignore[method-assign]
            with pytest.raises(Exception, match="without its tenant's cache salt"):
                await served.ask({"model": "tiny", "prompt": PROMPT})
            (event,) = await served.told()
            said = capsys.readouterr().err
            assert (
                f"ALERT: isolation: a sequence without its tenant's cache salt was stopped: request {event.request_id}"
                in said
            )
            assert figure(served.replica.metrics.page(), "isolation_stopped_total") == "1"
            assert (event.status, event.fault, event.output_tokens) == ("error", "platform", 0)
            assert served.engine.output_processor.counters["generation"] == 0

    asyncio.run(run())


def test_a_replica_whose_clock_is_off_by_more_than_a_minute_is_not_ready(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(adapter_settings) as served:
            off_ns = 0
            served.replica.clock = ReplicaClock(wall_ns=lambda: 10**18 + off_ns, monotonic_ns=lambda: 0)
            found = {}
            for off_ms in (60_000, 60_001, -60_000, -60_001, 0):
                off_ns = off_ms * 1_000_000
                found[off_ms] = (await served.ask(b"", "/health", method="GET")).status
            assert found == {60_000: 200, 60_001: 503, -60_000: 200, -60_001: 503, 0: 200}

    asyncio.run(run())


def test_regions_limits_and_a_full_spool_refuse_before_the_engine(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(adapter_settings) as served:
            body = {"model": "tiny", "prompt": "a b"}
            pinned = await served.ask(body, regions=["us", "ap"])
            assert (pinned.status, json.loads(pinned.body)["error"]["code"]) == (403, "region_not_allowed")
            assert (await served.ask(body | {"prompt": "x" * 30_000})).status == 413
            assert (await served.ask(body | {"n": 9})).status == 400
            assert (await served.ask(body | {"prompt": ["a"] * 5})).status == 400
            assert (await served.ask(body | {"max_tokens": 501})).status == 400
            assert (await served.ask(b"[1]")).status == 400
            image = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
            chat = {"model": "tiny", "messages": [{"role": "user", "content": [image]}]}
            assert (await served.ask(chat, "/v1/chat/completions")).status == 400
            served.replica.journal._writer.failed = "played"
            assert (await served.ask(body)).status == 503
            assert (await served.ask(b"", "/health", method="GET")).status == 503
            served.replica.journal._writer.failed = None
            full = DiskState(used_bytes=1, bound_bytes=1, open_requests=0, failing=False)
            served.replica.journal.disk = lambda: full  # type: ignore[method-assign]
            assert (await served.ask(body)).status == 503
            for page in ("/health", "/ping"):
                assert (await served.ask(b"", page, method="GET")).status == 503, "it would refuse all that comes"
            del served.replica.journal.disk  # type: ignore[method-assign]
            assert (await served.ask(b"", "/health", method="GET")).status == 200
            assert served.engine.seen == []
            await served.ask(body | {"model": "nothing"})
            await served.ask(body, headers={})
            await served.ask(b"", "/metrics", method="GET")
            await served.ask(body, "/v1/rerank")
            page = served.replica.metrics.page()
            told = re.findall(r'tenant_refused_total{tenant="(.*)",reason="(.*)"} (.*)', page)
            assert {(tenant, why): int(count) for tenant, why, count in told} == {
                ("tenant_a", "region_not_allowed"): 1, ("tenant_a", "too_large"): 1, ("tenant_a", "too_many"): 3,
                ("tenant_a", "invalid_json"): 1, ("tenant_a", "no_room"): 2, ("tenant_a", "model_not_found"): 1,
                ("tenant_a", "media_not_allowed"): 1, ("", nobody().code): 1, ("", "metrics_closed"): 1,
                ("", "not_found"): 1,
            }  # fmt: skip

    asyncio.run(run())


@pytest.mark.parametrize(("kafka", "ready"), [("", False), ("nowhere:1", True)])
def test_memory_serves_where_there_is_a_way_past_the_disk(
    adapter_settings: AdapterSettings, monkeypatch: pytest.MonkeyPatch, kafka: str, ready: bool
) -> None:
    spool = msgspec.structs.replace(adapter_settings.spool, policy="serve_memory")
    monkeypatch.setenv("TOLLBOOK_KAFKA", kafka)
    replica = Replica(msgspec.structs.replace(adapter_settings, spool=spool))
    replica.journal._writer.failed = "played"
    assert replica.ready() == ready
    replica.journal._writer.failed = None
    replica.stop_now()


def figure(page: str, name: str) -> str:
    """A sample without labels."""
    (found,) = re.findall(rf"^tollbook_{name} (.*)$", page, re.MULTILINE)
    return str(found)


def test_the_engines_page_has_the_boot_and_the_tenants_figures(adapter_settings: AdapterSettings) -> None:
    secret = Path(adapter_settings.salt_key).with_name("metrics")
    secret.write_bytes(b"m" * 32)
    secret.chmod(0o600)
    adapter_settings = msgspec.structs.replace(adapter_settings, metrics_secret=str(secret))

    async def run() -> None:
        async with serving(adapter_settings) as served:
            await served.ask({"model": "tiny", "prompt": PROMPT, "max_tokens": 3, "stream": True})
            await served.told()
            seen, own = [], served.middleware._app

            async def engine(scope: Any, *ways: Any) -> None:
                seen.extend(scope["headers"])
                await own(scope, *ways)

            served.middleware._app = engine
            bearer = {"authorization": "Bearer " + "m" * 32}
            answer = await served.ask(
                b"", "/metrics", method="GET", headers=bearer | {"accept": "application/openmetrics-text"}
            )
            assert seen == [(b"accept", TEXT)], "the metrics' secret is not for the engine"
            page = answer.body.decode()
            assert int(answer.headers["content-length"]) == len(answer.body)
            assert page.startswith("vllm:prompt_tokens_total 1\n")
            assert f'tollbook_boot_info{{boot_id="{served.replica.journal.boot_id}",replica_id="r1"}} 1' in page
            assert 'tenant_requests_total{tenant="tenant_a",model="tiny",status="ok"} 1' in page
            assert 'tenant_tokens_total{tenant="tenant_a",model="tiny",class="output"} 3' in page
            assert 'tenant_time_to_first_token_seconds_count{tenant="tenant_a"} 1' in page
            assert 'tenant_in_flight{tenant="tenant_a"} 0' in page
            assert float(figure(page, "spool_used_bytes")) > 16 * 1024 * 1024 - 1
            assert float(figure(page, "spool_bound_bytes")) == adapter_settings.spool.bound_bytes
            assert figure(page, "engine_page_up") == "1"
            assert figure(page, "spool_failing") == figure(page, "spool_dropped_records_total") == "0.0"
            assert float(figure(page, "spool_syncs_total")) >= 2
            assert float(figure(page, "spool_sync_seconds_total")) > 0
            store(served.replica.journal.folder, Shipped(events=0, poison=0))
            served.replica._figures.measure()
            assert figure(served.replica.metrics.page(), "spool_unshipped_events") == "1.0"
            store(served.replica.journal.folder, Shipped(events=0, poison=1))
            served.replica._figures.measure()
            served.replica.journal._writer.failed = "played"
            page = served.replica.metrics.page()
            served.replica.journal._writer.failed = None
            assert (figure(page, "spool_unshipped_events"), figure(page, "spool_failing")) == ("0.0", "1.0")
            for status, kind, text in (
                (404, b"text/plain", b"no\n"),
                (200, OPENMETRICS, b"a 1\n# EOF\n"),
                (0, b"", b""),
            ):
                served.middleware._app = answering(status, kind, text)
                answer = await served.ask(b"", "/metrics", method="GET", headers=bearer)
                page = answer.body.decode()
                assert (answer.status, answer.headers["content-type"], figure(page, "engine_page_up")) == (
                    200, TEXT.decode(), "0"
                )  # fmt: skip
                assert int(answer.headers["content-length"]) == len(answer.body)
                assert "tenant_requests_total{" in page
                assert text.decode() not in page or not text
            served.middleware._app = own

    asyncio.run(run())


def answering(status: int, kind: bytes, text: bytes) -> Any:
    """An engine's server with such a page; without a status it fails."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if not status:
            raise RuntimeError("dead")
        await send({"type": "http.response.start", "status": status, "headers": [(b"Content-Type", kind)]})
        await send({"type": "http.response.body", "body": text})

    return app


def test_the_metrics_are_for_this_machine_and_not_for_whom_it_forwards(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(adapter_settings) as served:
            for more, status in (({}, 200), ({"x-forwarded-for": "127.0.0.1"}, 403), ({"forwarded": "for=x"}, 403)):
                found = await served.ask(b"", "/metrics", method="GET", headers=more, client="127.0.0.1")
                assert found.status == status

    asyncio.run(run())


def test_tenants_without_series_of_their_own_are_counted() -> None:
    metrics = TenantMetrics("r1", "b", most_tenants=2)
    for tenant in "abcdcd":
        metrics.refused(tenant, "x")
    page = metrics.page()
    assert (figure(page, "other_tenants"), 'tenant_refused_total{tenant="_other",reason="x"} 4' in page) == ("2", True)


def test_what_is_done_each_second_goes_on_after_a_failure_and_a_replica_without_it_is_not_ready(
    adapter_settings: AdapterSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replica_module, "PROGRESS_EACH_S", 0.001)

    async def run() -> None:
        async with serving(adapter_settings) as served:
            done = asyncio.Semaphore(0)
            works = served.replica.journal.progress

            def fails(requests: Any) -> None:
                done.release()
                raise ValueError("no such thing")

            monkeypatch.setattr(served.replica.journal, "progress", fails)
            await served.replica.start()
            for _ in range(3):
                await done.acquire()
            served.replica._turned_at -= replica_module.TURNS_WITHIN_S + 1
            assert not served.replica.ready()
            monkeypatch.setattr(served.replica.journal, "progress", works)
            while not served.replica.ready():
                await asyncio.sleep(0.001)
            assert capsys.readouterr().err.count("ALERT: what is done each second failed") == 1

    asyncio.run(run())
