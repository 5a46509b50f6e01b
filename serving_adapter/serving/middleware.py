"""The ASGI middleware: `vllm serve … --middleware serving_adapter.Middleware`.

A class, and raw ASGI: vLLM wraps a function in a way that loses disconnects. It is the outermost layer, so whatever is
not let through here reaches nothing.
"""

from __future__ import annotations

import asyncio
import hmac
import sys
import time
from typing import Any, Final

import msgspec

from serving_adapter.asgi import App, Message, Receive, Scope, Send
from serving_adapter.engine.stream_counting import StreamCounting
from serving_adapter.engine.vllm_hooks import EngineUnfit
from serving_adapter.engine.vllm_settings import EngineUnsafe
from serving_adapter.errors import AdapterError
from serving_adapter.isolation.refusal import Refusal, going_down
from serving_adapter.isolation.routes import ONE_MODEL, Route, route_of
from serving_adapter.isolation.rules import unknown_model
from serving_adapter.serving.adapter_loading import AdapterLoading
from serving_adapter.serving.adapter_settings import AdapterSettings
from serving_adapter.serving.attempt_events import PLATFORM
from serving_adapter.serving.exchange import STRIPPED, Exchange, answer, refuse
from serving_adapter.serving.replica import Replica

LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})
FORWARDED: Final = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})
"""Headers of a request that came through somebody on this machine."""
HEALTH: Final = ("/health", "/ping")
"""The same under two names: the second one is SageMaker's."""
TEXT: Final = b"text/plain; version=0.0.4; charset=utf-8"
ENGINES_PAGE_WITHIN_S: Final = 5.0


class Middleware:
    """Meters every request of an engine's server, and keeps tenants apart."""

    def __init__(self, app: App, replica: Replica | None = None, *, hooked: bool = True) -> None:
        """vLLM calls it with the app alone. `hooked` False: the app counts by itself what it answers.

        Raises what `Replica` raises: then the server does not start.
        """
        self._app = app
        self._replica = replica or Replica(AdapterSettings.from_environment())
        self._hooked = hooked
        self._attached = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        await self._replica.start()
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """From the server's start to its end. What cannot be started, or metered, stops it before it has begun. Where
        an error is raised here, servers go on without the lifespan, and without a word of it."""

        async def stop_and_send(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown"):  # the server waits for this word, and for nothing after
                await self._replica.stop()
            await send(message)

        state = getattr(scope.get("app"), "state", None)
        client = getattr(state, "engine_client", None)
        try:
            await self._replica.start()
            if client is not None and self._hooked:
                self._attach(client, getattr(state, "args", None))
        except (AdapterError, OSError) as error:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            self._replica.stop_now()
            return
        loading = AdapterLoading(self._replica, lambda: self._app, scope.get("app"))
        keeping = asyncio.get_running_loop().create_task(loading.keep())
        try:
            await self._app(scope, receive, stop_and_send)
        finally:
            keeping.cancel()
            self._replica.stop_now()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = route_of(scope["method"], scope["path"])
        headers: dict[bytes, bytes] = dict(scope["headers"])
        tenant_id = ""
        try:
            if route is Route.CLOSED:
                raise Refusal(404, "not_found", "There is nothing here.")
            if route is Route.OPEN:
                await self._open(scope, receive, send)
            elif route is Route.METRICS:
                await self._metrics(scope, headers, receive, send)
            else:
                caller = await self._replica.caller(headers)
                tenant_id = caller.tenant_id
                self._replica.require_region(caller)
                if route is Route.PROBE_PASSED:
                    if (caller.tenant_id, caller.purpose) != (PLATFORM, "probe"):
                        raise Refusal(404, "not_found", "There is nothing here.")
                    self._replica.probed = True
                    await answer(send, 200, b"{}")
                elif self._replica.goes_down:
                    raise going_down()
                elif not self._replica.names_known:
                    raise Refusal(503, "not_ready", "The names of models and adapters are not known here yet.")
                elif route is Route.MODELS:
                    await answer(send, 200, _models(self._replica.resolver.visible(caller.tenant_id)))
                elif route is Route.MODEL:
                    asked = scope["path"].removeprefix(ONE_MODEL)
                    if asked not in self._replica.resolver.visible(caller.tenant_id):
                        raise unknown_model(asked)
                    await answer(send, 200, msgspec.json.encode(_model(asked)))
                else:
                    if self._hooked and not self._attached:
                        state = scope["app"].state
                        self._attach(getattr(state, "engine_client", None), getattr(state, "args", None))
                    await Exchange(self._replica, self._app, route, caller, headers).serve(scope, receive, send)
        except EngineUnfit as error:
            await self._refuse(send, tenant_id, Refusal(503, "engine_unfit", str(error)))
        except Refusal as refusal:
            await self._refuse(send, tenant_id, refusal)

    async def _refuse(self, send: Send, tenant_id: str, refusal: Refusal) -> None:
        self._replica.metrics.refused(tenant_id, refusal.code)
        await refuse(send, refusal)

    def _attach(self, client: Any, args: Any = None) -> None:
        """Hook into the engine, once; or count from its answers from now on, where that is allowed.

        Raises EngineUnfit.
        """
        try:
            self._replica.attach(client, args)
            self._attached = True
        except EngineUnfit as error:
            if self._replica.settings.on_unknown_engine == "refuse" or isinstance(error, EngineUnsafe):
                raise
            print(f"tollbook: {error}: counting from the answers (usage_source stream)", file=sys.stderr, flush=True)
            self._app, self._hooked = StreamCounting(self._app, continuous=True), False

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in HEALTH and not self._replica.ready():
            await refuse(send, Refusal(503, "not_ready", "The adapter cannot meter now."))
        else:
            await self._app(_bare(scope), receive, send)

    async def _metrics(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        """The engine's page and ours behind it; ours alone where it has none. It names tenants: for the platform."""
        secret = self._replica.metrics_secret
        if secret is None:  # what was passed on came from elsewhere
            allowed = (scope.get("client") or ("",))[0] in LOOPBACK and not FORWARDED & headers.keys()
        else:
            allowed = hmac.compare_digest(headers.get(b"authorization", b""), b"Bearer " + secret)
        if not allowed:
            raise Refusal(403, "metrics_closed", "The metrics are for the platform.")
        engines = await self._engines_page(_bare(scope), receive)
        up = f"# TYPE tollbook_engine_page_up gauge\ntollbook_engine_page_up {int(engines is not None)}\n"
        own = up + self._replica.metrics.page(time.monotonic_ns() // 1000)
        await answer(send, 200, (engines or b"") + own.encode(), content_type=TEXT)

    async def _engines_page(self, scope: Scope, receive: Receive) -> bytes | None:
        """In the text format, whole; None where there is none to be had."""
        status, told, parts = 0, b"", list[bytes]()

        async def keep(message: Message) -> None:
            nonlocal status, told
            if message["type"] == "http.response.start":
                status = message["status"]
                told = {name.lower(): value for name, value in message["headers"]}.get(b"content-type", TEXT)
            else:
                parts.append(message.get("body", b""))

        scope = {**scope, "headers": [*scope["headers"], (b"accept", TEXT)]}
        try:
            async with asyncio.timeout(ENGINES_PAGE_WITHIN_S):
                await self._app(scope, receive, keep)
        except Exception as error:  # whatever a dead engine's server may raise: the tenants' figures are known
            print(f"tollbook: the engine's /metrics: {error!r}", file=sys.stderr, flush=True)
            return None
        page = b"".join(parts)
        if status != 200 or not told.startswith(b"text/plain") or (page and not page.endswith(b"\n")):
            return None
        return page


def _bare(scope: Scope) -> Scope:
    """A request that is nobody's: who asks, and with which word, is not for the engine."""
    names = STRIPPED | {b"accept", b"accept-encoding"}
    return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name.lower() not in names]}


def _models(names: list[str]) -> bytes:
    """As OpenAI lists models; the engine's own list would show every tenant's adapters, with their paths."""
    return msgspec.json.encode({"object": "list", "data": [_model(name) for name in names]})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tollbook"}
