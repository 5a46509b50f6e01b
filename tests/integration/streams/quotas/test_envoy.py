"""Envoy's question over gRPC: admitted with a header, refused with the reason, settled when the stream is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
import yaml
from envoy.extensions.common.ratelimit.v3 import ratelimit_pb2
from envoy.service.ratelimit.v3 import rls_pb2, rls_pb2_grpc

from serving_adapter.quota.groups import shard_of
from tests.fixtures_quota_server import QuotaServerProcess
from tests.integration.streams.quotas.driver import add_tenants, define

POLICY = Path(__file__).resolve().parents[4] / "docs" / "examples" / "envoy-ai-gateway.yaml"
ENVOY_GATEWAYS = ("rule-*-match-0=tenant_id", "rule-*-match-1=request_id", "rule-*-match-2=model",
                  "rule-0-*=used:output_tokens", "rule-1-*=used:input_tokens")  # fmt: skip
"""As docs/envoy-ai-gateway.md has them."""
OK, OVER_LIMIT = rls_pb2.RateLimitResponse.OK, rls_pb2.RateLimitResponse.OVER_LIMIT


def descriptor(hits: int | None = None, **entries: str) -> Any:
    made = ratelimit_pb2.RateLimitDescriptor()
    made.entries.extend(ratelimit_pb2.RateLimitDescriptor.Entry(key=key, value=value) for key, value in entries.items())
    if hits is not None:
        made.hits_addend.value = hits
    return made


def envoy_gateway(headers: dict[str, str], costs: dict[str, int] | None = None) -> list[Any]:
    """The descriptors that Envoy Gateway's translation of docs/examples/envoy-ai-gateway.yaml makes of a request's
    headers; with `costs` those of a stream that is done."""
    policy = next(each for each in yaml.safe_load_all(POLICY.read_text()) if each["kind"] == "BackendTrafficPolicy")
    made = []
    for number, rule in enumerate(policy["spec"]["rateLimit"]["global"]["rules"]):
        entries = {"default/ROUTE/rule/0": "default/ROUTE/rule/0"}
        for match, header in enumerate(rule["clientSelectors"][0]["headers"]):
            assert header["type"] == "Distinct"
            entries[f"rule-{number}-match-{match}"] = headers[header["name"]]
        cost = rule["cost"]
        hits = cost["request"]["number"] if costs is None else costs[cost["response"]["metadata"]["key"]]
        made.append(descriptor(hits, **entries))
    return made


def test_envoy_asks_is_refused_and_tells_what_was_used_at_whichever_shard(
    quota_server: Callable[..., QuotaServerProcess], connection: psycopg.Connection
) -> None:
    add_tenants(connection, "t1")
    define(connection)
    names = [each for name in ENVOY_GATEWAYS for each in ("--envoy-name", name)]
    shard = shard_of("t1", 2)
    server, other = (
        quota_server("--shards", "2", "--shard", str(number), "--envoy-port", "0", *names)
        for number in (shard, 1 - shard)
    )
    channels = {each.port: grpc.insecure_channel(f"127.0.0.1:{each.envoy_port}") for each in (server, other)}
    metadata = [("authorization", f"Bearer {server.secret}")]

    def ask(*descriptors: Any, at: QuotaServerProcess = other) -> Any:
        request = rls_pb2.RateLimitRequest(domain="tollbook", descriptors=descriptors)
        stub = rls_pb2_grpc.RateLimitServiceStub(channels[at.port])
        return stub.ShouldRateLimit(request, metadata=metadata, timeout=60)

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
    headers = {"x-tenant-id": "t1", "x-request-id": "3f1c", "x-ai-eg-model": "m-1"}
    assert ask(*envoy_gateway(headers), at=server).overall_code == OK
    assert ask(*envoy_gateway(headers)).overall_code == OK, "asked again, the same"
    assert server.quota()["reserved"] == 960
    costs = {"llm_output_token": 70, "llm_input_token": 10}
    assert ask(*envoy_gateway(headers, costs)).overall_code == OK
    assert (server.quota()["unconfirmed"], server.quota()["reserved"]) == (110, 0)
    with pytest.raises(grpc.RpcError) as told:
        ask(descriptor(tenant_id="t1"))
    assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    metadata[0] = ("authorization", "Bearer tbk_wrong")
    with pytest.raises(grpc.RpcError) as told:
        ask(descriptor(**named, request_id="r3"))
    assert told.value.code() is grpc.StatusCode.UNAUTHENTICATED
    metadata[0] = ("authorization", f"Bearer {server.secret}")
    server.kill()
    with pytest.raises(grpc.RpcError) as told:
        ask(descriptor(**named, request_id="r4"))
    assert told.value.code() is grpc.StatusCode.UNAVAILABLE, "it goes by its failure_mode_deny"
    for channel in channels.values():
        channel.close()
