"""A request that was dispatched twice is billed once, from the event to the rated line."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from billing.periods import BillingPeriod
from streams.database import connect
from streams.ingest.apply import ChunkApplier
from streams.usage.usage_store import delivered_quantities
from tests.billing_builders import NOVEMBER, OCTOBER
from tests.builders import EVENT, SOURCE, make_chunk, make_record
from tests.integration.billing.conftest import World
from tests.integration.streams.conftest import register_source


def apply(url: str, *events: dict[str, Any]) -> None:
    with connect(url) as connection:
        register_source(connection, SOURCE, "usage")
        applier = ChunkApplier(connection)
        records = [make_record(n, json.dumps(EVENT | event).encode()) for n, event in enumerate(events)]
        applier.apply(make_chunk(*records))


def event(attempt: int, status: str, at: str, output: int, request_id: str = "r") -> dict[str, Any]:
    return {
        "tenant_id": "acme", "request_id": request_id, "attempt": attempt, "status": status, "timestamp": at,
        "input_tokens": 0, "cache_hit_tokens": 0, "output_tokens": output,
    }  # fmt: skip


def rated(world: World, period: BillingPeriod) -> Decimal:
    found = world.rate(period)
    assert found.ok
    return sum((tenant.amount for tenant in found.tenants), Decimal(0))


def test_only_the_delivered_attempt_is_billed_in_its_own_month(world: World, own_database_url: str) -> None:
    world.customers("acme")
    apply(
        own_database_url,
        event(1, "aborted", "2026-10-31T23:59:59Z", 5),
        event(2, "ok", "2026-11-01T00:00:01Z", 100),
        event(1, "aborted", "2026-10-30T10:00:00Z", 7, "twice-aborted"),
        event(2, "aborted", "2026-10-30T10:00:05Z", 20, "twice-aborted"),
        event(1, "ok", "2026-10-30T10:00:00Z", 1000, "once"),
    )
    assert rated(world, OCTOBER) == Decimal("2.040")
    assert rated(world, NOVEMBER) == Decimal("0.200")
    assert world.rate().lines_posted == 0
    with connect(own_database_url) as connection:
        for period, expected in ((OCTOBER, (2, 1020)), (NOVEMBER, (1, 100))):
            found = list(delivered_quantities(connection, period.start, period.end, {"acme": ("ok", "aborted")}))
            assert (sum(q.requests for q in found), sum(q.output_tokens for q in found)) == expected
