"""The quota service is what its OpenAPI document says: schemathesis makes calls from it and judges the answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from streams.quotas import replies
from streams.quotas.answers import Allowed
from tests.fixtures_quota_server import QuotaReply, QuotaServerProcess
from tests.integration.streams.quotas.driver import add_tenants, define

EXAMPLES = "8"
EXAMPLE = "tenant_123"
"""The tenant in the document's examples: what is answered about it is more than errors."""
MINE = "t1"


def test_answers_are_those_of_the_openapi_document(
    quota_server: Callable[..., QuotaServerProcess], connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Without one check: JSON Schema takes 1.0 for a whole number, and the service wants it written as 1."""
    add_tenants(connection, EXAMPLE, MINE)
    for tenant in (EXAMPLE, MINE):
        for quota in ({}, {"period": "minute", "metric": "requests"}, {"period": "none", "metric": "concurrency"}):
            define(connection, tenant=tenant, limit=10**6, **quota)
        define(connection, tenant=tenant, metric="input_tokens", limit=50)
    server = quota_server()
    judged = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", f"http://127.0.0.1:{server.port}/openapi.json",
         "--header", f"Authorization: Bearer {server.secret}", "--max-examples", EXAMPLES, "--seed", "20261121",
         "--no-color", "--phases", "examples,coverage,fuzzing", "--exclude-checks", "positive_data_acceptance"],
        capture_output=True, text=True, timeout=540, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert judged.returncode == 0, judged.stdout[-5000:]
    assert server.process.poll() is None
    answered(server)


def answered(server: QuotaServerProcess) -> None:
    """Each kind of answer is read by the type that the document says, and has nothing that the document does not."""
    wants = {"tenant_id": MINE, "want": {"requests": 1}}
    told = {"tenant_id": MINE, "request_id": "r3", "mode": "allow", "admitted": True, "basis": {"in_flight": 3}}
    calls: list[tuple[int, Any, QuotaReply]] = [
        (200, Allowed, server.ask("r1", MINE)),
        (429, replies.Denied, server.ask("r2", MINE, input_tokens=60)),
        (409, replies.Error, server.ask("r1", MINE, input_tokens=11)),
        (200, replies.LeaseGranted, server.request("POST", "/v1/leases", wants)),
        (200, replies.TenantQuotas, server.request("GET", f"/v1/tenants/{MINE}/quota")),
        (204, None, server.request("POST", "/v1/decisions", {"decisions": [told]})),
        (200, replies.Healthy, server.request("GET", "/healthz")),
        (200, replies.Ready, server.request("GET", "/readyz")),
    ]
    for request_id in ("r1", "r2", "r3"):
        path = f"/v1/decisions/{MINE}/{request_id}"
        calls.append((200, replies.Decisions, server.request("GET", path)))
        fields = {field for each in calls[-1][2].body["decisions"] for field in each}
        assert fields <= set(replies.DecisionView.__struct_fields__), fields
    for status, kind, reply in calls:
        assert reply.status == status, reply
        if kind is not None:
            msgspec.convert(reply.body, kind)
            assert set(reply.body) <= set(kind.__struct_fields__), kind
    for quota in calls[4][2].body["quotas"]:
        assert set(quota) <= set(replies.QuotaNow.__struct_fields__)
