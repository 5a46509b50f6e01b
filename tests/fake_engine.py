"""An engine's `/metrics` over HTTP, as vLLM 0.32 writes it: its counters' names and labels, by the library it uses.

Names, labels and units are those of `vllm/v1/metrics/loggers.py`; the counters grow as they do there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LABELS = ["model_name", "engine"]
REASONS = ("stop", "length", "abort", "error", "repetition")


class FakeEngine:
    """One process of an engine: counters from zero, a start time, perhaps the adapter's boot."""

    def __init__(
        self, *, model: str = "llama", started: float | None = 1793534400.25, boot: str | None = "b1", engines: int = 1
    ) -> None:
        self.registry = CollectorRegistry()
        self.model = model

        def counter(name: str, *labels: str) -> Counter:
            return Counter(f"vllm:{name}", f"{name}.", [*LABELS, *labels], registry=self.registry)

        self._prompt = counter("prompt_tokens")
        self._cached = counter("prompt_tokens_cached")
        self._generation = counter("generation_tokens")
        self._finished = counter("request_success", "finished_reason")
        self._hits = counter("prefix_cache_hits")
        self._histogram = Histogram("vllm:iteration_tokens_total", "Tokens a step.", LABELS, registry=self.registry)
        for engine in map(str, range(engines)):
            for metric in (self._prompt, self._cached, self._generation, self._hits, self._histogram):
                metric.labels(model, engine)
            for reason in REASONS:
                self._finished.labels(model, engine, reason)
        if started is not None:
            Gauge("process_start_time_seconds", "Start time.", registry=self.registry).set(started)
        if boot is not None:
            Gauge("tollbook_boot_info", "The adapter's boot.", ["boot_id"], registry=self.registry).labels(boot).set(1)

    def serve(
        self, prompt: int, generated: int, cached: int = 0, *, reason: str | None = "stop", engine: int = 0
    ) -> None:
        """One sequence; `reason` None for an abort, which the engine counts in no reason."""
        at = (self.model, str(engine))
        self._prompt.labels(*at).inc(prompt)
        self._cached.labels(*at).inc(cached)
        self._hits.labels(*at).inc(2 * cached)
        self._generation.labels(*at).inc(generated)
        self._histogram.labels(*at).observe(prompt + generated)
        if reason is not None:
            self._finished.labels(*at, reason).inc()

    def page(self) -> bytes:
        """The page as it stands."""
        return generate_latest(self.registry)


Answer = Callable[[BaseHTTPRequestHandler], None]


class FakeServer:
    """Serves the engine that stands behind it, which may be another one after a restart; or any other answer."""

    def __init__(self, engine: FakeEngine | None) -> None:
        self.engine = engine
        self.answer: Answer | None = None
        self.scrapes = 0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.scrapes += 1
                if fake.answer is not None:
                    fake.answer(self)
                    return
                page = fake.engine.page() if fake.engine is not None and self.path == "/metrics" else None
                self.send_response(404 if page is None else 200)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(page or b"")))
                self.end_headers()
                self.wfile.write(page or b"")

            def log_message(self, format: str, *args: object) -> None:
                """Not to standard error."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def serving(engine: FakeEngine | None) -> Iterator[FakeServer]:
    """A server for one engine."""
    with FakeServer(engine) as server:
        yield server
