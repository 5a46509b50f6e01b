"""The probe against a replica over HTTP: it passes where all agree, and says what does not."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from serving_adapter import command_line
from serving_adapter.errors import BadMetrics
from serving_adapter.isolation.callers import Caller, sign
from serving_adapter.probe import PASSED, PROMPT, Probe, ProbeFailed
from serving_adapter.replica_reports import EngineCounters
from serving_adapter.serving.adapter_settings import AdapterSettings
from serving_adapter.serving.middleware import Middleware
from serving_adapter.serving.replica import Replica
from tests.engine_double import engine_app
from tests.fixtures_adapter import KEY


@contextmanager
def replica_at_a_port(
    settings: AdapterSettings, uncounted: int = 0, tale: bool = False, names: str = "vllm"
) -> Iterator[str]:
    """A replica whose engine forgets so many generated tokens of each page, or tells of cached ones each time.

    `names`: before the names on its page.
    """
    uncached = 0
    app = engine_app(step=0.01)

    async def metrics(request: Request) -> Any:
        nonlocal uncached
        uncached += tale
        counters = app.state.engine_client.output_processor.counters
        generated = max(0, counters["generation"] - uncounted)
        labels = '{model_name="tiny"}'
        told = {"prompt": counters["prompt"], "generation": generated}
        page = "".join(f"{names}:{name}_tokens_total{labels} {n}\n" for name, n in told.items())
        return PlainTextResponse(page + f"{names}:prompt_tokens_cached_total{labels} {counters['cached'] + uncached}\n")

    next(route for route in app.routes if route.path == "/metrics").app = _as_app(metrics)  # type: ignore[attr-defined]
    listening = socket.create_server(("127.0.0.1", 0))
    app.add_middleware(Middleware, replica=Replica(settings))  # type: ignore[arg-type]
    config = uvicorn.Config(app, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.002)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def _as_app(endpoint: Any) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (await endpoint(Request(scope, receive)))(scope, receive, send)

    return app


def test_answers_events_and_engine_agree_also_on_a_stream_that_was_left(adapter_settings: AdapterSettings) -> None:
    with replica_at_a_port(adapter_settings) as url:
        agreed = Probe(url, "tiny", "k1", KEY).run()
        words = len(PROMPT.split())
        assert agreed.prompt == 3 * words
        assert 10 < agreed.generated < 510
        assert Probe(url, "tiny", "k1", KEY, cut=False).run()[:2] == (2 * words, 10)
        with pytest.raises(ProbeFailed, match="no GPU time"):
            Probe(url, "tiny", "k1", KEY, gpu=True).run()
        with pytest.raises(ProbeFailed, match="404"):
            Probe(url, "nothing", "k1", KEY).run()
        with pytest.raises(ProbeFailed, match="401"):
            Probe(url, "tiny", "k2", KEY).run()


def test_the_scraper_is_let_in_by_the_secret_of_the_adapters_file(
    adapter_settings: AdapterSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "metrics").write_bytes(b"m" * 32)
    (tmp_path / "metrics").chmod(0o600)
    settings = replace(adapter_settings, metrics_secret=str(tmp_path / "metrics"))
    (tmp_path / "adapter.toml").write_text(
        f"""replica_id = "r1"\nsalt_key = "{settings.salt_key}"\ngateway_keys = "{settings.gateway_keys}"
metrics_secret = "{settings.metrics_secret}"\nspool.folder = "{settings.spool.folder}"
rules.models.tiny = [{{ engine = "tiny" }}]"""
    )
    monkeypatch.setenv("TOLLBOOK_ADAPTER_CONFIG", str(tmp_path / "adapter.toml"))
    sent = list[EngineCounters]()
    monkeypatch.setattr(command_line, "ReportSender", lambda kafka: SimpleNamespace(send=sent.append))
    monkeypatch.setattr(command_line, "keep_scraping", lambda scraper, *args, **more: scraper.scrape())
    with replica_at_a_port(settings) as url:
        monkeypatch.setenv("TOLLBOOK_KAFKA", "nowhere:1")
        assert command_line.main(["scrape", "--url", f"{url}/metrics", "--replica", "r1"]) == 0
    (report,) = sent
    assert report.boot_id


def test_a_replica_of_tokens_alone_is_ready_once_its_probe_has_passed(
    adapter_settings: AdapterSettings, tmp_path: Path
) -> None:
    (tmp_path / "probe").write_bytes(b"p" * 32)
    (tmp_path / "probe").chmod(0o600)
    settings = replace(
        adapter_settings, gateway_keys=None, probe_key=str(tmp_path / "probe"), ready_after_probe=True
    )  # fmt: skip

    def health(url: str, path: str = "/health", **more: Any) -> int:
        try:
            with urllib.request.urlopen(urllib.request.Request(url + path, **more)) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    with replica_at_a_port(settings) as url:
        as_tenant = sign(Caller(tenant_id="tenant_a", purpose="probe"), "_probe", b"p" * 32, now=int(time.time()))
        signed = {"x-tollbook-caller": as_tenant}
        assert health(url, PASSED, method="POST", headers=signed) == health(url, PASSED, method="POST") == 401
        assert health(url) == 503
        agreed = Probe(url, "tiny", "_probe", b"p" * 32, tell=True).run()
        assert agreed.cached > 0
        assert health(url) == 200
    with (
        replica_at_a_port(adapter_settings, tale=True) as url,
        pytest.raises(ProbeFailed, match="cached"),
    ):
        Probe(url, "tiny", "k1", KEY).run()


def test_an_engine_that_counts_otherwise_does_not_pass(adapter_settings: AdapterSettings) -> None:
    with (
        replica_at_a_port(adapter_settings, uncounted=1) as url,
        pytest.raises(ProbeFailed, match=r"the engine counted .*generated=9.*, the events say .*generated=10"),
    ):
        Probe(url, "tiny", "k1", KEY, cut=False).run()


def test_before_an_engine_with_another_page_answers_and_events_are_compared(adapter_settings: AdapterSettings) -> None:
    with replica_at_a_port(adapter_settings, names="sglang") as url:
        agreed = Probe(url, "tiny", "k1", KEY, within=False).run()
        assert agreed == (2 * len(PROMPT.split()), 10, agreed.cached, False)
        with pytest.raises(BadMetrics, match="vLLM"):
            Probe(url, "tiny", "k1", KEY).run()
