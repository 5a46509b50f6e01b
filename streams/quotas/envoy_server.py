"""`envoy.service.ratelimit.v3` over gRPC, so that any Envoy asks without code of its own.

Each question goes the way of an HTTP call (`routes.py`): the same keys, the same journal, the same answers. The
caller's key comes as `authorization` metadata (Envoy: `grpc_service.initial_metadata`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

import grpc
import msgspec
from envoy.config.core.v3 import base_pb2
from envoy.service.ratelimit.v3 import rls_pb2, rls_pb2_grpc

from streams.quotas.envoy_calls import Descriptor, Names, NotUnderstood, http_call

ANSWERED_WITHIN_S: Final = 5.0
MAX_MESSAGE_BYTES: Final = 64 * 1024
_FAILURES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED,
    409: grpc.StatusCode.ALREADY_EXISTS, 421: grpc.StatusCode.FAILED_PRECONDITION,
}  # fmt: skip
_OK, _OVER_LIMIT = rls_pb2.RateLimitResponse.OK, rls_pb2.RateLimitResponse.OVER_LIMIT


class EnvoyCall:
    """A call that is answered to Envoy; to the routes it is like one over HTTP (`http_protocol.Call`)."""

    def __init__(self, target: str, authorization: str, body: bytes) -> None:
        self.method = b"POST"
        self.target = target.encode()
        self.authorization = authorization.encode("latin-1", "replace")
        self.body = body
        self.reply: asyncio.Future[tuple[int, bytes, list[tuple[str, str]]]] = (
            asyncio.get_running_loop().create_future()
        )

    @property
    def answered(self) -> bool:
        """Whether it has its answer."""
        return self.reply.done()

    def answer(
        self, status: int, body: bytes = b"", headers: Iterable[tuple[str, str]] = (), *, content_type: bytes = b""
    ) -> EnvoyCall:
        """Give the answer."""
        if not self.reply.done():
            self.reply.set_result((status, body, list(headers)))
        return self

    def flush(self) -> None:
        """It is on its way already."""


class RateLimits(rls_pb2_grpc.RateLimitServiceServicer):  # type: ignore[misc]
    """Answers Envoy."""

    def __init__(self, routes: Callable[[Any], None], names: Names) -> None:
        self._routes = routes
        self._names = names

    async def ShouldRateLimit(self, request: Any, context: Any) -> Any:
        """Whether a request may go on; or the note of what it has used."""
        found = [
            Descriptor({entry.key: entry.value for entry in each.entries}, _hits(each, request))
            for each in request.descriptors
        ]
        try:
            asked = http_call(found, self._names)
        except NotUnderstood as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        metadata = dict(context.invocation_metadata())
        call = EnvoyCall(asked.target, str(metadata.get("authorization", "")), asked.body)
        self._routes(call)
        try:
            status, body, headers = await asyncio.wait_for(call.reply, ANSWERED_WITHIN_S)
        except TimeoutError:
            status, body, headers = 503, b"", []
        if status not in (200, 204, 429):
            await context.abort(_FAILURES.get(status, grpc.StatusCode.UNAVAILABLE), body.decode("utf-8", "replace"))
        return _response(status, body, headers, len(found))


async def serve_envoy(routes: Callable[[Any], None], host: str, port: int, names: Names) -> tuple[Any, int]:
    """A running server and its port. Raises RuntimeError if it cannot listen."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)])
    rls_pb2_grpc.add_RateLimitServiceServicer_to_server(RateLimits(routes, names), server)
    bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    await server.start()
    return server, bound


def _hits(descriptor: Any, request: Any) -> int:
    return int(descriptor.hits_addend.value if descriptor.HasField("hits_addend") else request.hits_addend)


def _response(status: int, body: bytes, headers: Iterable[tuple[str, str]], descriptors: int) -> Any:
    code = _OVER_LIMIT if status == 429 else _OK
    response = rls_pb2.RateLimitResponse(overall_code=code)
    response.statuses.extend(rls_pb2.RateLimitResponse.DescriptorStatus(code=code) for _ in range(descriptors))
    response.response_headers_to_add.extend(base_pb2.HeaderValue(key=key, value=value) for key, value in headers)
    if status == 429:
        response.raw_body = body
    elif status == 200:
        told = msgspec.json.decode(body)
        for key, name in (("x-tollbook-max-tokens", "max_tokens"), ("x-tollbook-priority", "priority")):
            response.request_headers_to_add.append(base_pb2.HeaderValue(key=key, value=str(told[name])))
    return response
