"""A quota service of several processes: each tenant is asked about where it belongs, and settled there."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import msgspec

from serving_adapter.quota.connection import Answer, NoAnswer
from serving_adapter.quota.gate import QuotaGate
from serving_adapter.quota.groups import shard_of
from serving_adapter.quota.settings import GateSettings

TENANTS = [f"t{number}" for number in range(6)]


class Shards:
    """A service of so many processes from port 8720 on, of which some may be away."""

    def __init__(self, of: int) -> None:
        self.of = of
        self.away: set[int] = set()
        self.settled: dict[int, list[str]] = defaultdict(list)

    def connect(self, host: str, port: int, secret: str) -> Any:
        return Shard(self, port - 8720)


class Shard:
    """One of them: answers for its own tenants."""

    def __init__(self, service: Shards, number: int) -> None:
        self._service = service
        self._number = number

    async def call(self, method: str, path: str, body: bytes, within_s: float) -> Answer:
        told = msgspec.json.decode(body)
        if self._number in self._service.away:
            raise NoAnswer("away")
        many = told.get("settlements", [told])
        for each in many:
            number = shard_of(each["tenant_id"], self._service.of)
            if number != self._number:
                headers = (("x-tollbook-shard", str(number)), ("x-tollbook-shards", str(self._service.of)))
                return Answer(421, headers, b"{}")
        if path == "/v1/settlements":
            self._service.settled[self._number] += [each["tenant_id"] for each in many]
            return Answer(204, (), b"")
        return Answer(200, (), b'{"max_tokens":5,"priority":0,"on_unavailable":"deny"}')

    def close(self) -> None:
        pass


def asked(gate: QuotaGate, tenant: str) -> str:
    return asyncio.run(gate.admit(tenant, "r1", "m", 10, 100)).source


def test_each_tenant_is_asked_about_and_settled_at_its_own_shard() -> None:
    service = Shards(3)
    gate = QuotaGate(GateSettings(deadline=1.0), connect=service.connect)
    for tenant in TENANTS:
        gate.settle(tenant, "before", input_tokens=1, output_tokens=1)
    assert {asked(gate, tenant) for tenant in TENANTS} == {"service"}
    for tenant in TENANTS:
        gate.settle(tenant, "r1", input_tokens=1, output_tokens=1)
    for _ in range(2):  # the first turn finds that what was there before belongs elsewhere
        asyncio.run(gate._send_waiting())
    assert gate.waiting == 0
    for number in range(3):
        mine = [tenant for tenant in TENANTS if shard_of(tenant, 3) == number]
        assert sorted(service.settled[number]) == sorted(mine * 2)
    assert gate.counts["refused_421"] == 0


def test_one_shard_that_is_away_costs_only_its_own_tenants() -> None:
    service = Shards(2)
    gate = QuotaGate(GateSettings(deadline=1.0, failures_to_open=1), connect=service.connect)
    assert {asked(gate, tenant) for tenant in TENANTS} == {"service"}
    service.away = {1}
    for _ in range(2):
        for tenant in TENANTS:
            assert asked(gate, tenant) == ("fail_mode" if shard_of(tenant, 2) == 1 else "service")
    for tenant in TENANTS:
        gate.settle(tenant, "r1", input_tokens=1, output_tokens=1)
    asyncio.run(gate._send_waiting())
    assert sorted(service.settled[0]) == [tenant for tenant in TENANTS if shard_of(tenant, 2) == 0]
    assert {each["tenant_id"] for each in gate._settlements.entries()} == {
        tenant for tenant in TENANTS if shard_of(tenant, 2) == 1
    }


def test_tenants_that_are_divided_anew_are_found_again() -> None:
    service = Shards(2)
    gate = QuotaGate(GateSettings(deadline=1.0), connect=service.connect)
    assert {asked(gate, tenant) for tenant in TENANTS} == {"service"}
    service.of = 4
    assert {asked(gate, tenant) for tenant in TENANTS} == {"service"}
