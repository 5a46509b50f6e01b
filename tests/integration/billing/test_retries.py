"""A request that was dispatched twice is billed once, from the event to the rated line."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

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


@pytest.fixture
def berlin(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Process and sessions in a zone whose clocks are put back on October 25, 2026."""
    world.as_owner(
        "do $$ begin execute format('alter database %I set timezone = %L', current_database(), 'Europe/Berlin'); end $$"
    )
    world.engine.dispose()
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_only_the_delivered_attempt_is_billed_in_its_own_month_whatever_the_zone(
    world: World, own_database_url: str, berlin: None
) -> None:
    world.customers("acme")
    apply(
        own_database_url,
        event(1, "aborted", "2026-10-31T23:59:59.999999Z", 5),
        event(2, "ok", "2026-11-01T00:00:00Z", 100),
        event(1, "aborted", "2026-10-25T00:30:00Z", 7, "twice-aborted"),  # 02:30 there, as an hour later
        event(2, "aborted", "2026-10-25T01:30:00Z", 20, "twice-aborted"),
        event(1, "ok", "2026-10-30T10:00:00Z", 600, "once"),
        event(1, "ok", "2026-10-31T23:59:59.999999Z", 400, "last"),
        event(1, "ok", "2026-09-30T23:59:59.999999Z", 50, "before"),
    )
    assert rated(world, OCTOBER) == Decimal("2.040")
    assert rated(world, NOVEMBER) == Decimal("0.200")
    assert world.rate().lines_posted == 0
    with connect(own_database_url) as connection:
        for period, expected in ((OCTOBER, (3, 1020)), (NOVEMBER, (1, 100))):
            found = list(delivered_quantities(connection, period.start, period.end, {"acme": ("ok", "aborted")}))
            assert (sum(q.requests for q in found), sum(q.output_tokens for q in found)) == expected
