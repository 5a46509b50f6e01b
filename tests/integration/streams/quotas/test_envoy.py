"""Envoy's question over gRPC: admitted with a header, refused with the reason, settled when the stream is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import psycopg
import pytest
from envoy.extensions.common.ratelimit.v3 import ratelimit_pb2
from envoy.service.ratelimit.v3 import rls_pb2, rls_pb2_grpc

from tests.fixtures_quota_server import QuotaServerProcess
from tests.integration.streams.quotas.driver import add_tenants, define

OK, OVER_LIMIT = rls_pb2.RateLimitResponse.OK, rls_pb2.RateLimitResponse.OVER_LIMIT


def descriptor(hits: int | None = None, **entries: str) -> Any:
    made = ratelimit_pb2.RateLimitDescriptor()
    made.entries.extend(ratelimit_pb2.RateLimitDescriptor.Entry(key=key, value=value) for key, value in entries.items())
    if hits is not None:
        made.hits_addend.value = hits
    return made


def test_envoy_asks_is_refused_and_tells_what_was_used(
    quota_server: Callable[..., QuotaServerProcess], connection: psycopg.Connection
) -> None:
    add_tenants(connection, "t1")
    define(connection)
    server = quota_server("--envoy-port", "0")
    channel = grpc.insecure_channel(f"127.0.0.1:{server.envoy_port}")
    stub = rls_pb2_grpc.RateLimitServiceStub(channel)
    metadata = [("authorization", f"Bearer {server.secret}")]

    def ask(*descriptors: Any) -> Any:
        request = rls_pb2.RateLimitRequest(domain="tollbook", descriptors=descriptors)
        return stub.ShouldRateLimit(request, metadata=metadata, timeout=20)

    named = {"tenant_id": "t1", "model": "m-1"}
    allowed = ask(descriptor(**named, request_id="r1", input_tokens="10", max_tokens="900"))
    assert allowed.overall_code == OK
    assert {header.key: header.value for header in allowed.request_headers_to_add}["x-tollbook-max-tokens"] == "900"
    refused = ask(descriptor(**named), descriptor(request_id="r2", max_tokens="500", on="x"), descriptor(n="20"))
    assert (refused.overall_code, len(refused.statuses)) == (OVER_LIMIT, 3)
    headers = {header.key: header.value for header in refused.response_headers_to_add}
    assert headers["ratelimit"].startswith('"month-output_tokens";r=100')
    assert b'"code":"rate_limit_exceeded"' in refused.raw_body
    done = {"tenant_id": "t1", "request_id": "r1"}
    assert ask(descriptor(40, **done, used="output_tokens"), descriptor(9, used="input_tokens")).overall_code == OK
    assert (server.quota()["unconfirmed"], server.quota()["reserved"]) == (40, 0)
    with pytest.raises(grpc.RpcError) as told:
        ask(descriptor(tenant_id="t1"))
    assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    metadata[0] = ("authorization", "Bearer tbk_wrong")
    with pytest.raises(grpc.RpcError) as told:
        ask(descriptor(**named, request_id="r3"))
    assert told.value.code() is grpc.StatusCode.UNAUTHENTICATED
    channel.close()
