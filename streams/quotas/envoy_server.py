"""`envoy.service.ratelimit.v3` over gRPC, so that any Envoy asks without code of its own.

Each question goes the way of an HTTP call (`routes.py`): the same keys, the same journal, the same answers; one about a
tenant of another shard is passed on to that one's process. The caller's key comes as `authorization` metadata (Envoy:
`grpc_service.initial_metadata`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

import grpc
import msgspec
from envoy.config.core.v3 import base_pb2
from envoy.service.ratelimit.v3 import rls_pb2, rls_pb2_grpc

from serving_adapter.quota.connection import NoAnswer
from streams.quotas.envoy_calls import Descriptor, Names, NotUnderstood, http_call
from streams.quotas.other_shards import OtherShards

ANSWERED_WITHIN_S: Final = 5.0
MAX_MESSAGE_BYTES: Final = 64 * 1024
OTHER_SHARD: Final = 421
_FAILURES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED,
    409: grpc.StatusCode.ALREADY_EXISTS, OTHER_SHARD: grpc.StatusCode.FAILED_PRECONDITION,
}  # fmt: skip
Reply = tuple[int, bytes, Iterable[tuple[str, str]]]
"""Status, body, headers."""
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

    def __init__(self, routes: Callable[[Any], None], names: Names, others: OtherShards) -> None:
        self._routes = routes
        self._names = names
        self._others = others

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
            status, body, headers = await self._answer(call)
        except (TimeoutError, NoAnswer) as error:
            status, body, headers = 503, str(error).encode(), ()
        if status not in (200, 204, 429):
            await context.abort(_FAILURES.get(status, grpc.StatusCode.UNAVAILABLE), body.decode("utf-8", "replace"))
        return _response(status, body, headers, len(found))

    async def _answer(self, call: EnvoyCall) -> Reply:
        """The answer of this shard, or of the one that it says is the tenant's. Raises TimeoutError, NoAnswer."""
        reply: Reply = await asyncio.wait_for(call.reply, ANSWERED_WITHIN_S)
        shard = dict(reply[2]).get("x-tollbook-shard") if reply[0] == OTHER_SHARD else None
        if shard is None:
            return reply
        key = call.authorization.decode("latin-1").partition(" ")[2].strip()
        found = await self._others.ask(int(shard), key, call.target.decode(), call.body, ANSWERED_WITHIN_S)
        return found.status, found.body, [each for each in found.headers if not each[0].startswith("content-")]


async def serve_envoy(
    routes: Callable[[Any], None], host: str, port: int, names: Names, others: OtherShards
) -> tuple[Any, int]:  # fmt: skip
    """A running server and its port. Raises RuntimeError if it cannot listen."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)])
    rls_pb2_grpc.add_RateLimitServiceServicer_to_server(RateLimits(routes, names, others), server)
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
