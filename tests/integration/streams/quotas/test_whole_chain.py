"""From the engine to the quota and back, on the real parts: admission, spool, shipper, Kafka, worker, feed, service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from serving_adapter.events import UsageEvent
from serving_adapter.quota import GateSettings, QuotaGate
from serving_adapter.serving.adapter_settings import AdapterSettings
from serving_adapter.settings import KafkaSettings
from serving_adapter.shipping.shipper import Producers, Shipper
from tests.fixtures_adapter import PROMPT, Served, serving
from tests.fixtures_quota_server import QuotaServerProcess
from tests.integration.streams.quotas.driver import add_tenants, define
from tests.simulation.line import Line, wait_for

TENANT = "tenant_a"
LIMIT = 400
AT_ONCE = 8
ASKED_AT_MOST = 2000
BODY = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12}


async def use_up(served: Served) -> list[UsageEvent]:
    """Requests, some of whose clients leave in the middle, until the limit refuses one; what they became."""
    statuses: list[int] = []

    async def ask_on(first: int) -> None:
        for number in range(first, ASKED_AT_MOST, AT_ONCE):
            if 429 in statuses:
                break
            leaves = {"leave_after": 3} if number % 3 == 0 else {}
            answer = await served.ask(BODY | {"stream": number % 2 == 0}, tier="free", **leaves)  # type: ignore[arg-type]
            statuses.append(answer.status)

    await asyncio.gather(*map(ask_on, range(AT_ONCE)))
    assert {200, 429} <= {*statuses} <= {200, 429, 503}  # 503: no answer in time, where the tier denies
    return await served.told()


def test_what_a_quota_counts_in_the_end_is_what_the_events_say(
    quota_server: Callable[..., QuotaServerProcess], connection: psycopg.Connection, own_database_url: str,
    kafka: KafkaSettings, adapter_settings: AdapterSettings, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The service is killed when all requests have ended and none is confirmed."""
    monkeypatch.setenv("TOLLBOOK_TOPIC_PREFIX", kafka.topic_prefix)  # the replica's heartbeats, too, are this test's
    add_tenants(connection, TENANT)
    define(connection, tenant=TENANT, limit=LIMIT, on_unavailable="deny")
    define(connection, tenant=TENANT, metric="requests", limit=10**6)
    define(connection, tenant=TENANT, metric="concurrency", period="none", limit=1000)
    server = quota_server()

    async def run() -> list[UsageEvent]:
        async with serving(adapter_settings) as served:
            served.replica.gate = gate = QuotaGate(GateSettings(port=server.port, secret=server.secret, deadline=5.0))
            await gate.start()
            ended = await use_up(served)
            while gate.waiting:
                await asyncio.sleep(0.01)
            return ended

    events = asyncio.run(run())
    made = sum(event.output_tokens for event in events)
    assert 0 < made <= LIMIT
    assert any(event.status == "aborted" for event in events)
    ended = server.quota(tenant=TENANT)
    assert (ended["unconfirmed"], ended["confirmed"], ended["reserved"]) == (made, 0, 0)
    server.kill()
    server = quota_server()
    Shipper(Path(adapter_settings.spool.folder), Producers(kafka), say=lambda _: None).ship()
    with Line(kafka, own_database_url, 20261122) as line:
        worker = line.worker(None)
        wait_for(lambda: server.quota(tenant=TENANT)["confirmed"] == made, "all of it is counted", worker)
    standing, requests = (server.quota(f"month-{metric}", TENANT) for metric in ("output_tokens", "requests"))
    for each, used in ((standing, made), (requests, len(events))):
        assert (each["used"], each["unconfirmed"], each["reserved"]) == (used, 0, 0)
        assert (each["leased"], each["unreserved"]) == (0, 0)
    assert server.quota("none-concurrency", TENANT)["used"] == 0
