"""`tollbook-adapter probe`: known requests, and whether three tell the same of them: answers, events, engine.

What the answers state, what the replica's own figures grew by (they are made of the events), and what the engine's
counters grew by. Other requests at the same time would be counted too: then it is tried again. Probes are the
platform's own requests.

Counters are vLLM's or llama.cpp's. Before an engine with another page, or none, answers and events are compared, and
that is said.
"""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from serving_adapter import engine_counters
from serving_adapter.errors import AdapterError
from serving_adapter.isolation.callers import HEADER, Caller, sign
from serving_adapter.metering.stated_usage import EventStream, Hidden, StatedUsage
from serving_adapter.prometheus_text import samples, whole

TENANT: Final = "_platform"
ANSWER_WITHIN_S: Final = 60.0
SETTLED_WITHIN_S: Final = 10.0
TRIES: Final = 3
PASSED: Final = "/tollbook/probe-passed"
FIGURES: Final = frozenset(
    {"tenant_tokens_total", "tenant_requests_total", "tenant_in_flight", "tenant_gpu_compute_seconds_total"}
)
PROMPT: Final = "Count every token once, and no token twice. " * 3


class ProbeFailed(AdapterError):
    """They do not agree, or could not be asked."""


class Tokens(NamedTuple):
    """Prompts, and what was made of them."""

    prompt: int = 0
    generated: int = 0
    cached: int = 0
    """Of the prompts."""

    def less(self, other: Tokens) -> Tokens:
        """What was added since another reading."""
        return Tokens(self.prompt - other.prompt, self.generated - other.generated, self.cached - other.cached)


class Agreed(NamedTuple):
    """What the probes came to."""

    prompt: int
    generated: int
    cached: int
    by_engine: bool
    """Its counters say so, too; else answers and events alone."""


class Reading(NamedTuple):
    """One page of metrics: the engine's counters, the probes' own figures, requests of anybody."""

    engine: Tokens | None
    """None: it has none that can be read."""
    probes: Tokens
    probe_requests: int
    requests: int
    in_flight: int
    gpu_s: float
    """Of the probes."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Which replica, which model, and how to be let in. `cut`: a stream is left in its midst, too.

    `gpu`: the engine tells its GPU time, and the probes must have some of it.
    """

    url: str
    model: str
    key_id: str
    key: bytes
    metrics_secret: bytes | None = None
    cut: bool = True
    gpu: bool = False
    within: bool = True
    """The replica counts from within the engine: cached tokens must agree, too."""
    tell: bool = False
    """Tell the replica that it has passed (`ready_after_probe`)."""

    def run(self, sleep: Callable[[float], None] = time.sleep) -> Agreed:
        """What all three agree upon. Raises ProbeFailed, BadMetrics."""
        for _ in range(TRIES):
            before = self._read()
            cut = self.cut and before.engine is not None  # nobody else knows what was made of it
            stated, asked = self._ask(cut)
            after = self._settled(before, asked, sleep)
            if after.requests - before.requests == asked:
                break
        else:
            raise ProbeFailed("other requests came at the same time: probe a replica before its traffic")
        probes = after.probes.less(before.probes)
        if before.engine is not None and after.engine is not None:
            engine = after.engine.less(before.engine)
            if not self.within:  # answers need not state what was cached
                engine = engine._replace(cached=probes.cached)
            if engine != probes:
                raise ProbeFailed(f"the engine counted {engine}, the events say {probes}")
        if stated.prompt > probes.prompt or stated.generated > probes.generated or not probes.prompt:
            raise ProbeFailed(f"the answers state {stated}, the events say {probes}")
        if not cut and stated[:2] != probes[:2]:
            raise ProbeFailed(f"the answers state {stated}, the events say {probes}")
        if self.gpu and after.gpu_s <= before.gpu_s:
            raise ProbeFailed("no GPU time was told of the probes: --scheduler-cls, one TOLLBOOK_GPU_SOCKET for all?")
        if self.tell:
            self._call("POST", PASSED, b"", self._signed(), None)
        return Agreed(*probes, by_engine=before.engine is not None)

    def _ask(self, cut: bool) -> tuple[Tokens, int]:
        """What the answers state in all, and how many requests there were. `cut`: a stream is left, too."""
        body = {"model": self.model, "prompt": PROMPT, "max_tokens": 5, "temperature": 0}
        whole_one, streamed = StatedUsage(time.monotonic), StatedUsage(time.monotonic)
        whole_one.whole(self._post(body))
        stream = EventStream(streamed, Hidden())
        stream.feed(self._post(body | {"stream": True, "stream_options": {"include_usage": True}}))
        if cut:
            self._post(body | {"stream": True, "max_tokens": 500}, most=600)
        told = [usage.look() for usage in (whole_one, streamed) if usage.stated]
        if len(told) < 2:
            raise ProbeFailed("the engine's answers state no usage")
        return Tokens(sum(s.prompt_tokens for s in told), sum(s.output_tokens for s in told)), 2 + cut

    def _settled(self, before: Reading, asked: int, sleep: Callable[[float], None]) -> Reading:
        """The first reading in which everything asked has ended."""
        for _ in range(int(SETTLED_WITHIN_S / 0.1)):
            now = self._read()
            if now.probe_requests - before.probe_requests >= asked and not now.in_flight:
                return now
            sleep(0.1)
        raise ProbeFailed(f"{asked} probes have not ended as events within {SETTLED_WITHIN_S:.0f} s")

    def _read(self) -> Reading:
        page = self._get("/metrics").decode("utf-8", "replace")
        counted = engine_counters.totals(page)
        if counted is None and self.within:
            engine_counters.read(page)  # raises
        engine = Tokens(*counted) if counted is not None else None
        prompt = generated = cached = own = everybody = flying = 0
        gpu_s = 0.0
        for sample in samples(page, FIGURES):
            mine = sample.labels.get("tenant") == TENANT
            if sample.name == "tenant_in_flight":
                flying += whole(sample)
            elif sample.name == "tenant_requests_total":
                everybody += whole(sample)
                own += mine * whole(sample)
            elif sample.name == "tenant_gpu_compute_seconds_total":
                gpu_s += mine * float(sample.value)
            elif mine and sample.labels.get("class") == "output":
                generated += whole(sample)
            elif mine:
                prompt += whole(sample)
                cached += whole(sample) if sample.labels.get("class") == "cached_input" else 0
        return Reading(engine, Tokens(prompt, generated, cached), own, everybody, flying, gpu_s)

    def _post(self, body: Any, most: int | None = None) -> bytes:
        headers = {"content-type": "application/json", **self._signed()}
        return self._call("POST", "/v1/completions", msgspec.json.encode(body), headers, most)

    def _signed(self) -> dict[str, str]:
        caller = Caller(tenant_id=TENANT, purpose="probe")
        return {HEADER.decode(): sign(caller, self.key_id, self.key, now=int(time.time()))}

    def _get(self, path: str) -> bytes:
        bearer = {"authorization": f"Bearer {self.metrics_secret.decode()}"} if self.metrics_secret else {}
        return self._call("GET", path, None, bearer, None)

    def _call(self, method: str, path: str, body: bytes | None, headers: dict[str, str], most: int | None) -> bytes:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        with contextlib.closing(kind(parts.hostname or "", parts.port, timeout=ANSWER_WITHIN_S)) as connection:
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                found = answer.read(most)
            except (OSError, http.client.HTTPException) as error:
                raise ProbeFailed(f"{self.url}{path}: {error or type(error).__name__}") from None
        if answer.status != 200:
            raise ProbeFailed(f"{self.url}{path}: {answer.status} {found[:300].decode('utf-8', 'replace')}")
        return found
