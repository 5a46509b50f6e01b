"""The probe against a replica over HTTP: it passes where all agree, and says what does not."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from serving_adapter.probe import PROMPT, Probe, ProbeFailed
from serving_adapter.serving.adapter_settings import AdapterSettings
from serving_adapter.serving.middleware import Middleware
from serving_adapter.serving.replica import Replica
from tests.engine_double import engine_app
from tests.fixtures_adapter import KEY


@contextmanager
def replica_at_a_port(settings: AdapterSettings, uncounted: int = 0) -> Iterator[str]:
    """A replica whose engine forgets so many generated tokens of each page."""
    app = engine_app(step=0.002)

    async def metrics(request: Request) -> Any:
        counters = app.state.engine_client.output_processor.counters
        generated = max(0, counters["generation"] - uncounted)
        labels = '{model_name="tiny"}'
        told = {"prompt": counters["prompt"], "generation": generated}
        return PlainTextResponse("".join(f"vllm:{name}_tokens_total{labels} {n}\n" for name, n in told.items()))

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
        assert Probe(url, "tiny", "k1", KEY, cut=False).run() == (2 * words, 10)
        with pytest.raises(ProbeFailed, match="404"):
            Probe(url, "nothing", "k1", KEY).run()
        with pytest.raises(ProbeFailed, match="401"):
            Probe(url, "tiny", "k2", KEY).run()


def test_an_engine_that_counts_otherwise_does_not_pass(adapter_settings: AdapterSettings) -> None:
    with (
        replica_at_a_port(adapter_settings, uncounted=1) as url,
        pytest.raises(ProbeFailed, match=r"the engine counted .*generated=9.*, the events say .*generated=10"),
    ):
        Probe(url, "tiny", "k1", KEY, cut=False).run()
