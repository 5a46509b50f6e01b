"""The ASGI middleware: `vllm serve … --middleware serving_adapter.Middleware`.

A class, and raw ASGI: vLLM wraps a function in a way that loses disconnects. It is the outermost layer, so whatever is
not let through here reaches nothing.
"""

from __future__ import annotations

import asyncio
import hmac
import sys
import time
from typing import Any

import msgspec

from serving_adapter.asgi import App, Message, Receive, Scope, Send
from serving_adapter.engine.stream_counting import StreamCounting
from serving_adapter.engine.vllm_hooks import EngineUnfit
from serving_adapter.engine.vllm_settings import EngineUnsafe
from serving_adapter.isolation.refusal import Refusal
from serving_adapter.isolation.routes import Route, route_of
from serving_adapter.serving.adapter_loading import AdapterLoading
from serving_adapter.serving.adapter_settings import AdapterSettings
from serving_adapter.serving.attempt_events import PLATFORM
from serving_adapter.serving.exchange import STRIPPED, Exchange, answer, refuse
from serving_adapter.serving.replica import Replica

LOOPBACK = frozenset({"127.0.0.1", "::1"})


class Middleware:
    """Meters every request of an engine's server, and keeps tenants apart."""

    def __init__(self, app: App, replica: Replica | None = None, *, hooked: bool = True) -> None:
        """vLLM calls it with the app alone. `hooked` False: the app counts by itself what it answers.

        Raises what `Replica` raises: then the server does not start.
        """
        self._app = app
        self._replica = replica or Replica(AdapterSettings.from_environment())
        self._hooked = hooked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's."""
        await self._replica.start()
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """From the server's start to its end. An engine that cannot be metered stops it before it has begun."""

        async def stop_and_send(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown"):  # the server waits for this word, and for nothing after
                await self._replica.stop()
            await send(message)

        client = getattr(getattr(scope.get("app"), "state", None), "engine_client", None)
        loading = AdapterLoading(self._replica, lambda: self._app, scope.get("app"))
        keeping = asyncio.get_running_loop().create_task(loading.keep())
        try:
            if client is not None and self._hooked:
                self._attach(client)
            await self._app(scope, receive, stop_and_send)
        except EngineUnfit as error:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
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
                elif route is Route.MODELS:
                    await answer(send, 200, _models(self._replica.resolver.visible(caller.tenant_id)))
                else:
                    if self._hooked:
                        self._attach(getattr(scope["app"].state, "engine_client", None))
                    await Exchange(self._replica, self._app, route, caller, headers).serve(scope, receive, send)
        except EngineUnfit as error:
            await self._refuse(send, tenant_id, Refusal(503, "engine_unfit", str(error)))
        except Refusal as refusal:
            await self._refuse(send, tenant_id, refusal)

    async def _refuse(self, send: Send, tenant_id: str, refusal: Refusal) -> None:
        self._replica.metrics.refused(tenant_id, refusal.code)
        await refuse(send, refusal)

    def _attach(self, client: Any) -> None:
        """Hook into the engine, once; or count from its answers from now on, where that is allowed.

        Raises EngineUnfit.
        """
        try:
            self._replica.attach(client)
        except EngineUnfit as error:
            if self._replica.settings.on_unknown_engine == "refuse" or isinstance(error, EngineUnsafe):
                raise
            print(f"tollbook: {error}: counting from the answers (usage_source stream)", file=sys.stderr, flush=True)
            self._app, self._hooked = StreamCounting(self._app, continuous=True), False

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/health" and not self._replica.ready():
            await refuse(send, Refusal(503, "not_ready", "The adapter cannot meter now."))
        else:
            await self._app(_bare(scope), receive, send)

    async def _metrics(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        """The engine's page, and ours behind it. It names tenants: for the platform alone."""
        secret = self._replica.metrics_secret
        if secret is None:
            allowed = (scope.get("client") or ("",))[0] in LOOPBACK
        else:
            allowed = hmac.compare_digest(headers.get(b"authorization", b""), b"Bearer " + secret)
        if not allowed:
            raise Refusal(403, "metrics_closed", "The metrics are for the platform.")
        own = self._replica.metrics.page(time.monotonic_ns() // 1000).encode()

        async def send_both(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] != 200:
                    await send(message)
                    return
                grown = [
                    (name, str(int(value) + len(own)).encode() if name.lower() == b"content-length" else value)
                    for name, value in message["headers"]
                ]
                await send({**message, "headers": grown})
            elif message.get("more_body", False):
                await send(message)
            else:
                await send({**message, "body": message.get("body", b"") + own})

        await self._app(_bare(scope), receive, send_both)


def _bare(scope: Scope) -> Scope:
    """A request that is nobody's: who asks, and with which word, is not for the engine."""
    names = STRIPPED | {b"accept-encoding"}
    return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name.lower() not in names]}


def _models(names: list[str]) -> bytes:
    """As OpenAI lists models; the engine's own list would show every tenant's adapters, with their paths."""
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "tollbook"} for name in names]
    return msgspec.json.encode({"object": "list", "data": data})
