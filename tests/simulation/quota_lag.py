"""Usage is metered minutes late while requests come, and the quota service is killed meanwhile: on the real parts.

The gate, the service, Kafka, a worker, the database. The worker is killed, events wait in Kafka for longer than
metering may lag, the service is killed at a moment that the seed chooses; then a worker goes on. Some requests vanish
(nobody settles them, their events tell), some usage nobody asked for. Services are those of the environment: `make up`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import Any, Final

from serving_adapter.producer import EventProducer
from serving_adapter.quota import GateSettings, QuotaGate
from streams import tenants
from streams.database import connect
from streams.quotas import definition_store
from streams.quotas.decisions import Limits
from streams.quotas.definitions import quota_from
from tests.fixtures_quota_server import QuotaServerProcess, add_key, start_quota_server
from tests.simulation.kills import services
from tests.simulation.line import Line, reader_of, wait_for

TENANTS: Final = ("lag-1", "lag-2", "lag-3")
AT_ONCE: Final = 3
"""Requests of each tenant."""
LIMITS: Final = (4_000, 30_000, 10**6)
"""Output tokens a month: used up before the lag, during it, and never."""
METERING_LAG_S: Final = 60
LAG_S: Final = (95, 110)
"""Longer than metering may lag, by what it takes until that is seen: every half a minute."""
METERING_LAG_QUICK_S: Final = 1
LAG_QUICK_S: Final = (8, 10)
NUMBERS: Final = ("confirmed", "unconfirmed", "reserved", "leased", "unreserved")
OVERSHOOT, WRONG = ZERO = ("quota_lag_overshoot", "quota_lag_wrong")
"""Figures that must be 0."""


@dataclass(slots=True)
class Truth:
    """What a tenant has really used: output tokens."""

    limit: int
    admitted: int = 0
    foreign: int = 0
    """By requests that nobody asked about."""

    @property
    def forgotten(self) -> int:
        """What a killed service may have answered and not written, at most: it is held, and looks unreserved."""
        return self.limit // Limits().escrow_part


class Served:
    """The service, which is killed and started again on the same port."""

    def __init__(self, url: str, secret: str, metering_lag_s: int) -> None:
        self._start = partial(start_quota_server, url, secret, "--metering-lag", str(metering_lag_s))
        self.process: QuotaServerProcess = self._start()

    def kill_and_start(self) -> None:
        """kill -9, and another process."""
        self.process.kill()
        self.process = self._start("--port", str(self.process.port))

    def standing(self, tenant: str) -> dict[str, int]:
        """Where a tenant's budget stands."""
        found = self.process.quota(tenant=tenant)
        return {name: found[name] for name in NUMBERS}

    def findings(self) -> int:
        """Attempts that were settled, and not metered in time."""
        text = self.process.request("GET", "/metrics").body
        found = re.search(r"^tollbook_quota_findings_total (\d+)$", text, re.MULTILINE)
        assert found is not None
        return int(found[1])


@dataclass
class Run:
    """Requests until somebody ends them, and what became of them."""

    rng: Random
    gate: QuotaGate
    producer: EventProducer
    truths: dict[str, Truth]
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    over: bool = False

    async def ask_on(self, tenant: str, who: int) -> None:
        """One request after another."""
        truth, rng, number = self.truths[tenant], self.rng, 0
        while not self.over:
            number += 1
            name = f"{who}-{number}"
            if rng.random() < 0.02:
                truth.foreign += self._ends(tenant, f"foreign-{name}", rng.randrange(1, 20))
                continue
            admission = await self.gate.admit(tenant, name, "m-1", 10, rng.randrange(16, 200))
            self.counts[admission.source if admission.allowed else f"refused by {admission.source}"] += 1
            if not admission.allowed:
                await asyncio.sleep(0.05)
                continue
            await asyncio.sleep(rng.random() * 0.1)
            output = rng.randrange(admission.max_tokens + 1)
            if admission.source == "slice" or rng.random() > 0.05:
                self.gate.settle(tenant, name, input_tokens=10, output_tokens=output)
            else:
                self.counts["vanished"] += 1
            truth.admitted += self._ends(tenant, name, output)

    def _ends(self, tenant: str, request_id: str, output: int) -> int:
        event = {"tenant_id": tenant, "request_id": request_id, "model": "m-1", "input_tokens": 10,
                 "output_tokens": output, "timestamp": datetime.now(UTC).isoformat()}  # fmt: skip
        self.producer.send(tenant.encode(), json.dumps(event).encode())
        self.counts["events"] += 1
        return output


def simulate(seed: int, *, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Let it happen; figures by their key."""
    rng = Random(seed)
    lag_s = rng.randint(*(LAG_QUICK_S if quick else LAG_S))
    killed_at_s = rng.uniform(0.1, 0.5) * lag_s
    with services() as (databases, kafka):
        url = databases()
        secret = _defined(url)
        service = Served(url, secret, METERING_LAG_QUICK_S if quick else METERING_LAG_S)
        try:
            with Line(kafka, url, seed) as line:
                line.reader = reader_of(seed)
                run, findings = asyncio.run(_run(rng, line, service, secret, lag_s, killed_at_s))
        finally:
            service.process.kill()
    if not (findings or quick):
        run.wrong.append("nothing was found to be metered late")
    say(f"  usage metered {lag_s} s late ({line.reader}), the service killed after {killed_at_s:.0f} s:")
    say(f"    {dict(run.counts)}")
    for text in run.wrong[:10]:
        say(f"    WRONG {text}")
    return {
        "quota_lag_s": lag_s, "quota_lag_events": run.counts["events"], "quota_lag_findings": findings,
        "quota_lag_refused": run.counts["refused by service"],
        OVERSHOOT: sum(max(truth.admitted - truth.limit, 0) for truth in run.truths.values()), WRONG: len(run.wrong),
    }  # fmt: skip


def _defined(url: str) -> str:
    """Tenants and their quotas; returns a caller's key."""
    with connect(url) as connection:
        tenants.register(connection, [(name, name) for name in TENANTS], actor="test")
        for name, limit in zip(TENANTS, LIMITS, strict=True):
            quota = {"tenant_id": name, "period": "month", "metric": "output_tokens", "limit": limit}
            given = quota_from(quota | {"on_unavailable": "deny"}, now=datetime.now(UTC))
            definition_store.define(connection, given, actor="test")
        return add_key(connection)


async def _run(
    rng: Random, line: Line, service: Served, secret: str, lag_s: float, killed_at_s: float
) -> tuple[Run, int]:  # fmt: skip
    """Requests while nothing is metered, then all of it is; and how much was found to be late."""
    worker = line.worker(None)
    gate = QuotaGate(GateSettings(port=service.process.port, secret=secret, deadline=2.0))
    await gate.start()
    truths = dict(zip(TENANTS, map(Truth, LIMITS), strict=True))
    run = Run(rng, gate, EventProducer(line.kafka, line.topic), truths)
    asking = [asyncio.create_task(run.ask_on(name, who)) for name in TENANTS for who in range(AT_ONCE)]
    try:
        await _until(lambda: service.standing(TENANTS[-1])["confirmed"] > 0)
        worker.kill()
        worker.wait()
        await _lag(run, service, lag_s, killed_at_s)
        findings = await asyncio.to_thread(service.findings)
    finally:
        run.over = True
        await asyncio.gather(*asking)
        await gate.stop()
        await asyncio.to_thread(run.producer.flush)
    if gate.waiting:
        run.wrong.append(f"{gate.waiting} settlements were not told")
    worker = line.worker(None)
    await asyncio.to_thread(wait_for, lambda: line.lag() == 0, "a worker has caught up", worker)
    for name, truth in truths.items():
        with contextlib.suppress(TimeoutError):
            await _until(partial(_stands, service, name, truth))
        if not _stands(service, name, truth):
            run.wrong.append(f"{name} in the end: {service.standing(name)}; {truth}")
    return run, findings


async def _lag(run: Run, service: Served, lag_s: float, killed_at_s: float) -> None:
    """Nothing is metered; the service is killed once. No budget may hold more than its limit, but what nobody asked."""
    clock = asyncio.get_running_loop().time
    begun = clock()
    await asyncio.sleep(1)  # what the worker had counted is read
    while (passed := clock() - begun) < lag_s:
        if not run.counts["kills"] and passed >= killed_at_s:
            run.counts["kills"] += 1
            await asyncio.to_thread(service.kill_and_start)
        for name, truth in run.truths.items():
            held = await asyncio.to_thread(service.standing, name)
            if sum(held[each] for each in NUMBERS[:4]) - held["unreserved"] > truth.limit + truth.forgotten:
                run.wrong.append(f"{name} after {passed:.0f} s: {held}, of {truth.limit}")
        await asyncio.sleep(0.5)


async def _until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(happened):
            await asyncio.sleep(0.1)


def _stands(service: Served, tenant: str, truth: Truth) -> bool:
    confirmed, unconfirmed, reserved, leased, unreserved = service.standing(tenant).values()
    return (
        (confirmed, unconfirmed, reserved) == (truth.admitted + truth.foreign, 0, 0)
        and leased <= truth.forgotten
        and 0 <= unreserved - truth.foreign <= truth.forgotten
    )
