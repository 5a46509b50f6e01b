"""The twin as an ASGI application: HTTP in, ``Api`` behind it, ``/_twin/`` beside it."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from devstack.stripe_twin import connections, control
from devstack.stripe_twin.api import Api, HttpRequest
from devstack.stripe_twin.checkpoints import Checkpoints
from devstack.stripe_twin.clock import Clock
from devstack.stripe_twin.faults import Dropped, Faults, RateLimits
from devstack.stripe_twin.ids import Ids
from devstack.stripe_twin.store import Store
from devstack.stripe_twin.webhooks import Webhooks


def build_app(store: Store, base_url: str) -> ASGIApp:
    """``base_url`` is what the twin calls itself in the addresses it hands out."""
    clock = Clock(ahead=int(store.setting("clock_ahead_s", "0")))
    checkpoints, faults, limits = Checkpoints(), Faults(), RateLimits()
    webhooks = Webhooks(store, clock)
    api = Api(store, clock, Ids(), checkpoints, faults, limits, webhooks, base_url)
    inside = Starlette(routes=control.routes(control.Inside(api, store, clock, checkpoints, faults, limits, webhooks)))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # /v1 goes without a framework: it would take longer than the twin itself does for most requests.
        if scope["type"] != "http" or scope["path"].startswith("/_twin/"):
            await inside(scope, receive, send)
            return
        try:
            reply = await api.answer(await _request(scope, receive))
        except Dropped:
            connections.drop(scope["client"])
            return
        headers = [(name.lower().encode(), value.encode()) for name, value in reply.headers.items()]
        headers.append((b"content-length", str(len(reply.body)).encode()))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    return app


async def _request(scope: Scope, receive: Receive) -> HttpRequest:
    body: list[bytes] = []
    more = True
    while more:
        message: dict[str, Any] = dict(await receive())
        body.append(message.get("body", b""))
        more = message.get("more_body", False)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    query = scope["query_string"].decode("latin-1")
    return HttpRequest(scope["method"], scope["path"], query, headers, b"".join(body))
