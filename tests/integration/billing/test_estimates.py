"""Quarantined messages carry what they may be worth, at the prices of the tenant's plan."""

from __future__ import annotations

import json
from decimal import Decimal

from billing.database import raw, transaction
from streams.database import connect
from streams.ingest.apply import ChunkApplier
from streams.usage import quarantine
from tests.builders import EVENT, SOURCE, make_chunk, make_record
from tests.integration.billing.conftest import World


def test_a_refused_event_is_worth_what_it_would_cost(world: World, own_database_url: str) -> None:
    world.tenant("tenant_1", "tenant_2")
    world.plan()
    world.subscribe("tenant_1")
    with transaction(world.engine) as connection:
        raw(connection).execute(
            "insert into usage.sources (source, cluster_id, topic_id, leader_epoch, first_position, next_position)"
            " values (%s, %s, %s, 0, 0, 0)",
            (SOURCE.name, SOURCE.cluster_id, SOURCE.topic_id),
        )
    later = {"timestamp": "2026-11-01T13:00:00Z"}
    records = [
        make_record(0, json.dumps(EVENT | later).encode()),
        make_record(1, json.dumps(EVENT | later | {"tenant_id": "tenant_2"}).encode()),
        make_record(2, b"{torn"),
    ]
    with connect(own_database_url) as opened:
        ChunkApplier(opened).apply(make_chunk(*records))
        held = sorted(quarantine.listing(opened), key=lambda row: row.position)
    # 6 uncached input tokens, 4 cached, 5 output
    assert [(row.reason, row.estimated_value, row.currency) for row in held] == [
        ("future", 6 * Decimal("0.001") + 4 * Decimal("0.0005") + 5 * Decimal("0.002"), "USD"),
        ("future", None, None),
        ("torn", None, None),
    ]
