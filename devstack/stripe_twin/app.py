"""The twin as an ASGI application: HTTP in, ``Api`` behind it, ``/_twin/`` beside it."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from devstack.stripe_twin import control
from devstack.stripe_twin.api import Api, HttpRequest
from devstack.stripe_twin.checkpoints import Checkpoints
from devstack.stripe_twin.clock import Clock
from devstack.stripe_twin.ids import Ids
from devstack.stripe_twin.store import Store


def build_app(store: Store, base_url: str) -> Starlette:
    """``base_url`` is what the twin calls itself in the addresses it hands out."""
    checkpoints = Checkpoints()
    api = Api(store, Clock(), Ids(), checkpoints, base_url)

    async def v1(request: Request) -> Response:
        reply = await api.answer(
            HttpRequest(
                request.method,
                request.url.path,
                request.url.query,
                request.headers,
                await request.body(),
            )
        )
        return Response(reply.body, reply.status, reply.headers)

    methods = ["GET", "POST", "DELETE", "PUT", "PATCH"]
    return Starlette(routes=[*control.routes(store, checkpoints), Route("/{path:path}", v1, methods=methods)])
