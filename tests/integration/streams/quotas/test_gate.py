"""The gate in front of the real service: slices, fail modes while it is away, and everything told afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from console.commands.quota import said_without_the_service
from devstack import ports
from serving_adapter.quota import GateSettings, QuotaGate, outbox, slice_keeper
from serving_adapter.quota import gate as gates
from tests.fixtures_quota_server import QuotaServerProcess
from tests.integration.streams.quotas.driver import Usage, add_tenants, define

Start = Callable[..., QuotaServerProcess]
AT_ONCE = 2 * slice_keeper.BUSY_FROM


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told in the background, and at the end, arrives: this machine may be busy."""
    monkeypatch.setattr(gates, "STOP_WITHIN_S", 60.0)
    for module in (outbox, slice_keeper):
        monkeypatch.setattr(module, "BACKGROUND_S", 30.0)


@pytest.fixture
def usage(connection: psycopg.Connection) -> Usage:
    add_tenants(connection, "t1", "t2")
    return Usage(connection)


def settings(server: QuotaServerProcess, **more: float) -> GateSettings:
    """Patient ones: this machine may be busy."""
    return GateSettings(port=server.port, secret=server.secret, **({"deadline": 30.0} | more))  # type: ignore[arg-type]


async def busy(gate: QuotaGate, name: str) -> int:
    """Make a tenant's requests so many at once that the gate asks for a slice, and wait for it; how many they were."""
    names: list[str] = []
    while not gate.counts["slices_granted"]:
        names += [f"{name}-{len(names) + number}" for number in range(AT_ONCE)]
        answers = await asyncio.gather(*(gate.admit("t1", each, "m-1", 10, 100) for each in names[-AT_ONCE:]))
        assert all(answer.allowed and answer.source != "fail_mode" for answer in answers)
        for each in names[-AT_ONCE:]:
            gate.settle("t1", each, input_tokens=10, output_tokens=40)
        await asyncio.sleep(3 * gates.TURN_S)
    return len(names)


async def until(what: Callable[[], Awaitable[bool]] | Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        found = what()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.02)


def test_a_busy_tenant_gets_a_slice_and_its_usage_is_settled_out_of_it(
    quota_server: Start, usage: Usage, connection: psycopg.Connection
) -> None:
    define(connection, limit=1_000_000)
    define(connection, metric="concurrency", period="none", limit=100)
    server = quota_server()

    async def run() -> int:
        gate = QuotaGate(settings(server, slice_ttl=30.0))
        await gate.start()
        asked = await busy(gate, "r")
        for number in range(200):
            assert (await gate.admit("t1", f"s{number}", "m-1", 10, 100)).allowed
            gate.settle("t1", f"s{number}", input_tokens=10, output_tokens=40)
        assert gate.counts["slice"] > 100
        await gate.stop()
        return asked + 200

    asked = asyncio.run(run())
    standing = server.quota()
    assert (standing["unconfirmed"], standing["reserved"], standing["leased"]) == (40 * asked, 0, 0)
    assert server.quota("none-concurrency")["used"] == 0


def test_slices_and_single_requests_together_never_pass_the_limit(
    quota_server: Start, usage: Usage, connection: psycopg.Connection
) -> None:
    define(connection, limit=20_000)
    server = quota_server()

    async def one(gate: QuotaGate, name: str) -> int:
        nonlocal promised
        used = 0
        for number in range(400):
            admission = await gate.admit("t1", f"{name}-{number}", "m-1", 10, 100)
            if not admission.allowed:
                break
            await asyncio.sleep(0.001)
            used += admission.max_tokens
            if admission.source != "fail_mode":  # a machine that stands still lets some through without asking
                promised += admission.max_tokens
            gate.settle("t1", f"{name}-{number}", input_tokens=10, output_tokens=admission.max_tokens)
        return used

    async def run() -> tuple[int, int]:
        nonlocal promised
        all_gates = [QuotaGate(settings(server)) for _ in range(3)]
        for gate in all_gates:
            await gate.start()
        promised = used = 40 * sum([await busy(gate, f"b{number}") for number, gate in enumerate(all_gates)])
        used += sum(await asyncio.gather(*(one(gate, f"g{number}") for number, gate in enumerate(all_gates))))
        for gate in all_gates:
            await gate.stop()
        return used, sum(gate.counts["slice"] for gate in all_gates)

    promised = 0
    used, out_of_slices = asyncio.run(run())
    assert promised <= 20_000
    assert out_of_slices > 0
    assert server.quota()["unconfirmed"] == used


def test_an_outage_is_lived_through_by_the_fail_modes_and_told_afterwards(
    quota_server: Start, usage: Usage, connection: psycopg.Connection
) -> None:
    define(connection, limit=100_000, on_unavailable="safe_capacity")
    define(connection, tenant="t2", limit=100_000, on_unavailable="deny")
    server = quota_server("--port", str(ports.choose()))

    async def run() -> None:
        gate = QuotaGate(settings(server))
        await gate.start()
        for tenant in ("t1", "t2"):
            assert (await gate.admit(tenant, "first", "m-1", 10, 100)).source == "service"
        server.kill()
        await asyncio.sleep(0.1)
        for number in range(10):
            await gate.admit("t2", f"down-{number}", "m-1", 10, 100)
        answers = [await gate.admit("t1", f"down-{number}", "m-1", 10, 2000) for number in range(10)]
        assert [answer.allowed for answer in answers] == [True] * 4 + [False] * 6
        assert {answer.max_tokens for answer in answers[:4]} == {512}
        assert not (await gate.admit("t2", "denied", "m-1", 10, 100)).allowed
        assert (await gate.admit("t3", "other", "m-1", 10, 100, tier="enterprise")).allowed
        for number in range(4):
            gate.settle("t1", f"down-{number}", input_tokens=10, output_tokens=50)
        assert (await gate.admit("t1", "again", "m-1", 10, 100)).allowed
        again = quota_server("--port", str(server.port))
        await until(lambda: not gate.waiting)
        found = again.request("GET", "/v1/decisions/t1/down-0").body["decisions"]
        assert found[0]["mode"] == "safe_capacity"
        basis = found[0]["basis"]
        assert basis["cause"] in ("no_answer", "breaker_open")
        told = ("in_flight", "safe_requests", "safe_tokens", "max_tokens", "granted", "input_tokens", "model")
        assert [basis[name] for name in told] == [0, 4, 512, 2000, 512, 10, "m-1"]
        (refused,) = again.request("GET", "/v1/decisions/t1/down-9").body["decisions"]
        assert (refused["admitted"], refused["basis"]["in_flight"]) == (False, 4)
        assert "; 4 of 4 requests at once in use" in said_without_the_service(refused)
        assert again.quota()["unconfirmed"] == 200
        gate.settle("t1", "first", input_tokens=10, output_tokens=5)
        await gate.stop()

    asyncio.run(run())
