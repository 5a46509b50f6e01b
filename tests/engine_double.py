"""An engine's server in this process: vLLM 0.32's names and habits where the adapter touches it, and no model.

As in vLLM: an aborted request is popped without a statistic; a non-streaming request whose client is gone is answered
with `200 null`; a stream that fails midway stays 200; the counters grow with each step, a prompt with its first token.
A prompt of k words has k tokens, of which whole blocks of 4 are cached per salt and adapter.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

BLOCK = 4


class EngineDead(Exception):
    """The engine's process is gone."""


@dataclass
class RequestState:
    """What the adapter looks at."""

    request_id: str
    external_req_id: str
    request_index: int
    prompt_len: int
    cached: int = 0
    """What its first step finds."""
    num_cached_tokens: int = 0
    is_prefilling: bool = True
    stats: Any = field(
        default_factory=lambda: SimpleNamespace(num_generation_tokens=0, first_token_ts=0.0, last_token_ts=0.0)
    )


class Output(NamedTuple):
    """Of a step, for one sequence. `prefill_stats`: of its prompt, once, where that was read."""

    tokens: int
    prefill_stats: Any


class OutputProcessor:
    """Where running sequences live."""

    log_stats = True

    def __init__(self) -> None:
        self.request_states: dict[str, RequestState] = {}
        self.parent_requests: dict[str, Any] = {}
        self.external_req_ids: dict[str, list[str]] = {}
        self.counters: Counter[str] = Counter()

    def add_request(self, request: Any, prompt: str | None = None, parent: Any = None, index: int = 0) -> None:
        """A sequence comes in."""
        self.request_states[request.request_id] = RequestState(
            request.request_id, request.external, index, request.prompt_len, request.cached
        )
        self.external_req_ids.setdefault(request.external, []).append(request.request_id)

    def token(self, request_id: str) -> bool:
        """One more token; False if nobody waits for it."""
        state = self.request_states.get(request_id)
        if state is None:
            return False
        self._stepped(state, 1)
        return True

    def _stepped(self, state: RequestState, new_tokens: int, *, read: bool = True) -> None:
        """The statistics come first, and only then what its first step tells of the prompt, if it was `read`."""
        self._update_stats_from_output(state, Output(new_tokens, state if read and state.is_prefilling else None))
        self.counters["generation"] += new_tokens
        if state.is_prefilling:
            state.is_prefilling = False
            if read:
                state.num_cached_tokens = state.cached
                self.counters["prompt"] += state.prompt_len
                self.counters["cached"] += state.cached

    def _update_stats_from_output(self, state: RequestState, output: Output) -> None:
        """As vLLM calls it at each step of each sequence."""
        state.stats.num_generation_tokens += output.tokens
        if output.tokens:
            state.stats.last_token_ts = time.monotonic()
            state.stats.first_token_ts = state.stats.first_token_ts or state.stats.last_token_ts

    def encoded(self, request_id: str) -> None:
        """A prompt was read, and nothing is generated."""
        self._stepped(self.request_states[request_id], 0)

    def unread(self, request_id: str) -> None:
        """It ends before its prompt was read, by an output without a word of that: a grammar that does not compile."""
        state = self.request_states[request_id]
        self._stepped(state, 0, read=False)
        self._finish_request(state)

    def _finish_request(self, state: RequestState) -> None:
        self._pop(state.request_id)

    def abort_requests(self, request_ids: list[str]) -> None:
        """Popped, and nobody is told."""
        for request_id in request_ids:
            self._pop(request_id)

    def _pop(self, request_id: str) -> None:
        state = self.request_states.pop(request_id, None)
        if state is not None:
            self.external_req_ids[state.external_req_id].remove(request_id)


class EngineClient:
    """`AsyncLLM`: each sequence makes a token each `step` seconds."""

    def __init__(self, step: float = 0.001) -> None:
        self.output_processor = OutputProcessor()
        self.step = step
        self.goes_on = asyncio.Event()
        """Cleared, it makes no token: what is to happen in the middle of a request happens there on any machine."""
        self.goes_on.set()
        self.dead = False
        self.loras: dict[str, str] = {"tenant_a--fr--1": "", "tenant_b--law--1": ""}
        """Adapters by name, with their paths."""
        self.broken: set[str] = set()
        """Adapters with which every request fails."""
        self.deadly: set[str] = set()
        """Adapters that the engine does not survive."""
        self.seen: list[Any] = []
        """What reached the engine."""
        self._blocks: set[tuple[Any, ...]] = set()
        self._ids = itertools.count()

    async def generate(self, prompt: str, params: Any, request_id: str, **more: Any) -> AsyncGenerator[Any, None]:
        """Outputs, one for each step; `params`: n, max_tokens, at which token the engine fails, or a sequence does (0:
        before its prompt is read)."""
        if self.dead:
            raise EngineDead
        words = prompt.split()
        children = []
        for index in range(params.n):
            inner = f"{index}_{request_id}-{next(self._ids)}"
            request = SimpleNamespace(
                request_id=inner, external=request_id, prompt_len=len(words), cache_salt=more.get("cache_salt"),
                cached=self._cached(words, more), priority=more.get("priority", 0), lora_request=more.get("lora"),
            )  # fmt: skip
            self.seen.append(request)
            self.output_processor.add_request(request, prompt, None, index)
            children.append(inner)
        try:
            for token in range(1, params.max_tokens + 1):
                await asyncio.sleep(self.step)
                await self.goes_on.wait()
                if self.dead or token == params.fail_at:
                    raise EngineDead
                if params.error_at == 0:
                    self.output_processor.unread(children[0])
                    yield SimpleNamespace(finished=params.n == 1, outputs=[SimpleNamespace(finish_reason="error")])
                last = token == params.max_tokens or token == params.stop_at
                for inner in children:
                    self.output_processor.token(inner)
                if token == params.error_at:  # its first sequence alone
                    self.output_processor._finish_request(self.output_processor.request_states[children[0]])
                    yield SimpleNamespace(
                        finished=params.n == 1, outputs=[SimpleNamespace(finish_reason="error")], token=token
                    )
                if last:
                    for inner in children:
                        self.output_processor._finish_request(self.output_processor.request_states[inner])
                reason = ("stop" if token == params.stop_at else "length") if last else None
                outputs = [SimpleNamespace(finish_reason=reason) for _ in children]
                yield SimpleNamespace(finished=last, outputs=outputs, token=token)
                if last:
                    return
        except (asyncio.CancelledError, GeneratorExit):
            await self.abort(request_id)
            raise

    @property
    def errored(self) -> bool:
        """As vLLM's client says it."""
        return self.dead

    async def encode(self, prompt: str, params: Any, request_id: str, **more: Any) -> AsyncGenerator[Any, None]:
        """An embedding."""
        inner = f"{request_id}-{next(self._ids)}"
        request = SimpleNamespace(
            request_id=inner, external=request_id, prompt_len=len(prompt.split()), priority=more["priority"],
            cached=self._cached(prompt.split(), more),
            cache_salt=more.get("cache_salt"), lora_request=more.get("lora"),
        )  # fmt: skip
        self.seen.append(request)
        self.output_processor.add_request(request, prompt)
        await asyncio.sleep(self.step)
        self.output_processor.encoded(inner)
        self.output_processor._finish_request(self.output_processor.request_states[inner])
        yield SimpleNamespace(finished=True, outputs=SimpleNamespace(data=[0.5]))  # not a list, as a generation's are

    async def abort(self, request_id: str | list[str], internal: bool = False) -> None:
        """By the outer id."""
        named = [request_id] if isinstance(request_id, str) else list(request_id)
        if not internal:
            named = [inner for outer in named for inner in self.output_processor.external_req_ids.get(outer, [])]
        self.output_processor.abort_requests(named)

    def shutdown(self, timeout: float | None = None) -> None:
        """The engine ends."""
        self.dead = True

    def _cached(self, words: list[str], more: dict[str, Any]) -> int:
        lora = more.get("lora")
        name = lora.lora_name if lora else None
        cached = 0
        for end in range(BLOCK, len(words) + 1, BLOCK):
            key = (more.get("cache_salt"), name, *words[:end])
            if key in self._blocks and end < len(words):
                cached = end
            self._blocks.add(key)
        return cached


def engine_app(step: float = 0.001) -> Starlette:
    """vLLM's server, as far as it is needed here."""

    async def complete(request: Request) -> Response:
        body = await request.json()
        if not isinstance(body.get("model"), str):
            return JSONResponse({"error": {"message": "no model"}}, 400)
        client: EngineClient = request.app.state.engine_client
        prompts = (
            body.get("prompt")
            or body.get("input")
            or [" ".join(str(part["content"]) for part in body.get("messages", []))]
        )
        prompts = [prompts] if isinstance(prompts, str) else prompts
        read = sum(len(prompt.split()) for prompt in prompts)
        bound = body.get("max_tokens") or body.get("max_completion_tokens") or body.get("max_output_tokens") or 8
        if body.get("echo") and body.get("max_tokens") == 0:
            bound = 1  # vLLM makes one, and shows none
        if body.get("temperature", 1) < 0:
            return JSONResponse({"error": {"message": "temperature"}}, 400)
        told = body.get("metadata") or {}
        params = SimpleNamespace(
            n=body.get("n", 1), max_tokens=bound, fail_at=told.get("fail_at"), stop_at=told.get("stop_at"),
            error_at=told.get("error_at"),
        )  # fmt: skip
        more = {"cache_salt": body.get("cache_salt"), "priority": body.get("priority", 0)}
        if body["model"] in client.loras:
            if body["model"] in client.broken:
                return JSONResponse({"error": {"message": "shapes do not fit"}}, 500)
            more["lora"] = SimpleNamespace(lora_name=body["model"])
        elif body["model"] != "tiny":
            return JSONResponse({"error": {"message": "no such model"}}, 404)
        runs = [
            client.generate(prompt, params, f"cmpl-{next(client._ids)}-{i}", **more) for i, prompt in enumerate(prompts)
        ]
        if body.get("stream"):
            asked = (body.get("stream_options") or {}).get("include_usage")
            stated = {"prompt_tokens": read, "completion_tokens": params.n * bound * len(prompts)} if asked else None
            return StreamingResponse(_stream(runs, body["model"], stated), media_type="text/event-stream")
        gathered = await _with_cancellation(request, asyncio.gather(*(_drain(run) for run in runs)))
        if gathered is None:
            return JSONResponse(None)
        usage = {"prompt_tokens": read, "completion_tokens": sum(gathered)}
        return JSONResponse({"model": body["model"], "choices": [], "usage": usage})

    async def embed(request: Request) -> Response:
        body = await request.json()
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        client: EngineClient = request.app.state.engine_client
        more = {"cache_salt": body.get("cache_salt"), "priority": body.get("priority", 0)}
        for i, text in enumerate(texts):
            async for _ in client.encode(text, None, f"embd-{next(client._ids)}-{i}", **more):
                pass
        return JSONResponse({"model": body["model"], "data": []})

    async def load(request: Request) -> Response:
        body, client = await request.json(), request.app.state.engine_client
        if body["lora_name"] in client.loras:
            return JSONResponse({"error": {"message": "The lora adapter has already been loaded."}}, 400)
        client.dead = client.dead or body["lora_name"] in client.deadly
        client.loras[body["lora_name"]] = body["lora_path"]
        return PlainTextResponse("Success")

    async def unload(request: Request) -> Response:
        body, client = await request.json(), request.app.state.engine_client
        return JSONResponse({}, 200 if client.loras.pop(body["lora_name"], None) is not None else 404)

    async def plain(request: Request) -> Response:
        if request.url.path == "/health" and request.app.state.engine_client.dead:
            return PlainTextResponse("", 503)
        return PlainTextResponse("vllm:prompt_tokens_total 1\n" if request.url.path == "/metrics" else "")

    paths = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/rerank"]
    app = Starlette(
        routes=[
            *(Route(path, complete, methods=["POST"]) for path in paths),
            Route("/v1/embeddings", embed, methods=["POST"]),
            Route("/v1/load_lora_adapter", load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", unload, methods=["POST"]),
            Route("/metrics", plain),
            Route("/health", plain),
        ]
    )
    app.state.engine_client = EngineClient(step)
    return app


async def _drain(run: AsyncGenerator[Any, None]) -> int:
    tokens = 0
    async with aclosing(run):
        async for output in run:
            _raise_if_error(output)
            tokens += len(output.outputs)
    return tokens


def _raise_if_error(output: Any) -> None:
    """As vLLM's handlers. The sequences that go on, which vLLM leaves to themselves, are closed with their run here:
    nobody can say when the garbage collector would do it."""
    if any(part is not None and part.finish_reason == "error" for part in output.outputs):
        raise EngineDead


async def _stream(
    runs: list[AsyncGenerator[Any, None]], model: str, usage: dict[str, int] | None
) -> AsyncIterator[str]:
    try:
        for run in runs:
            async with aclosing(run):
                async for output in run:
                    _raise_if_error(output)
                    yield _piece({"model": model, "token": output.token})
    except EngineDead:
        yield 'data: {"error":{"code":500}}\n\n'
    if usage is not None:
        yield _piece({"model": model, "choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def _piece(data: dict[str, Any]) -> str:
    return "data: " + json.dumps(data, separators=(",", ":")) + "\n\n"


async def _with_cancellation(request: Request, work: asyncio.Future[Any]) -> Any:
    """None if the client is gone first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    listening = asyncio.ensure_future(gone())
    done, waiting = await asyncio.wait([work, listening], return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    return work.result() if work in done else None
