"""What goes into quarantine is alerted once an hour, and is listed without being read."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice

import psycopg
import pytest

from streams import alerts, tenants
from streams.completeness.completeness_check import deliver_alerts
from streams.ingest.apply import ChunkApplier
from streams.ingest.replica_apply import ReplicaChunkApplier
from streams.rules.estimates import ANY_MODEL, EstimatePrice, set_prices
from streams.usage import quarantine
from tests.builders import EVENT, REPLICA_SOURCE, SOURCE, make_chunk, make_record
from tests.integration.streams.conftest import whole

CONFLICT = json.dumps(EVENT | {"request_id": "req-0", "output_tokens": 6}).encode()
RAISED = "select kind, key, subject ->> 'reason' from usage.alerts order by key, 3"


def test_what_goes_into_quarantine_is_alerted_once_and_delivered(
    connection: psycopg.Connection, applier: ChunkApplier, replica_applier: ReplicaChunkApplier
) -> None:
    torn, stranger = make_record(1, b"{torn"), make_record(3, tenant_id="stranger")
    applier.apply(make_chunk(make_record(0), torn, make_record(2, CONFLICT), stranger))
    applier.apply(make_chunk(make_record(4, b"{torn as well"), make_record(5, CONFLICT)))
    replica_applier.apply(make_chunk(make_record(0, b"{torn"), source=REPLICA_SOURCE))
    assert connection.execute(RAISED).fetchall() == [
        ("quarantine", REPLICA_SOURCE.name, "torn"),
        ("quarantine", SOURCE.name, "torn"),
        ("quarantine", SOURCE.name, "unknown_tenant"),
        ("quarantine", "tenant_1", "conflict"),
    ]
    sent: list[alerts.Alert] = []

    def send(waiting: list[alerts.Alert], acknowledged: Callable[[alerts.Alert], None]) -> None:
        for alert in waiting:
            sent.append(alert)
            acknowledged(alert)

    assert deliver_alerts(connection, send) == 4
    stored = connection.execute("select alert_id from usage.alerts").fetchall()
    assert sorted(alert.alert_id for alert in sent) == sorted(row[0] for row in stored)
    assert all(json.loads(alerts.encode(alert))["subject"]["hour"] == "2026-11-01T12:00:00+00:00" for alert in sent)
    assert deliver_alerts(connection, send) == 0


def test_an_alert_is_raised_in_the_transaction_of_what_it_is_about(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    with connection.transaction(force_rollback=True):
        applier.apply(make_chunk(make_record(0, b"{torn")))
    assert connection.execute(RAISED).fetchall() == []


def test_a_message_is_kept_whole_with_its_headers_and_without_a_value(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    headers = [("ce_emitter", b"gateway-1"), ("ce_emitter", b"\xff\x00"), ("no\0text", None)]
    kept = make_record(0, b"{torn")._replace(headers=headers)
    applier.apply(make_chunk(kept, make_record(1, b"")._replace(is_null=True), make_record(2, b"")))
    found = [quarantine.get(connection, row.quarantine_id) for row in reversed(quarantine.listing(connection))]
    assert [one[1] for one in found if one] == [
        (b"tenant_1", b"{torn", headers),
        (b"tenant_1", None, []),
        (b"tenant_1", b"", []),
    ]


def test_a_conflict_is_worth_what_it_would_change_and_a_later_version_what_is_known_of_it(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    price = EstimatePrice(ANY_MODEL, "output", Decimal("0.5"), "USD", datetime(2026, 1, 1, tzinfo=UTC))
    set_prices(connection, "tenant_1", [price])
    sent = [
        {"output_tokens": 1000},
        {"output_tokens": 1010},
        {"output_tokens": 980, "usage_source": "gateway"},
        {"output_tokens": 970, "usage_source": "gateway"},
        {"request_id": "later", "output_tokens": 30, "schema_version": 9},
        {"request_id": "else", "output_tokens": -1, "schema_version": 9},
    ]
    applier.apply(make_chunk(*(make_record(n, json.dumps(EVENT | one).encode()) for n, one in enumerate(sent))))
    held = sorted((row.position, row.reason, row.estimated_value) for row in quarantine.listing(connection))
    assert held == [
        (1, "conflict", Decimal(5)),  # 10 tokens more than what counts
        (3, "conflict", Decimal(-15)),
        (4, "unsupported", Decimal(15)),
        (5, "unsupported", None),
    ]


def test_every_message_is_worth_what_can_be_known_of_it_or_says_why_not(
    connection: psycopg.Connection, applier: ChunkApplier, replica_applier: ReplicaChunkApplier
) -> None:
    tenants.register(connection, [("tenant_2", "Two"), ("tenant_3", "Three")], actor="test")
    early, late = (datetime(2026, month, 1, tzinfo=UTC) for month in (1, 6))

    def price(unit: str, since: datetime = early, currency: str = "USD") -> EstimatePrice:
        return EstimatePrice(ANY_MODEL, "output", Decimal(unit), currency, since)

    set_prices(connection, "tenant_1", [price("0.5")])
    set_prices(connection, "tenant_2", [price("9"), price("2", late)])
    ten = {"request_id": "ten", "output_tokens": 10}
    worth: list[tuple[dict[str, object], object]] = [
        ({"tenant_id": "stranger"}, 20),  # at the dearest that anybody pays now
        ({"tenant_id": "tenant_3", "region": 7}, "tenant_3 has no price for llama at 2026-11-01"),
        ({"region": 7}, 5),
        ({"tenant_id": "stranger", "attempt": 0}, 20),
        ({"timestamp": "1999-01-01T00:00:00Z"}, 5),  # at the price of when it came
        ({"timestamp": "yesterday"}, 5),
        ({"unknown_field": "x" * 1_000_000}, 5),
        ({"output_tokens": "many"}, "output_tokens: Expected `int`, got `str`"),
        ({"cache_hit_tokens": 999}, "its counts are below zero, or more of its input was cached than there is"),
        ({"purpose": "probe", "region": 7}, "it is never billed"),
    ]
    messages = [json.dumps(EVENT | ten | {"request_id": f"r-{n}"} | each) for n, (each, _) in enumerate(worth)]
    messages += ["{torn", "[]"]
    applier.apply(make_chunk(*(make_record(n, message.encode()) for n, message in enumerate(messages))))
    replica_applier.apply(make_chunk(make_record(0, b"{torn"), source=REPLICA_SOURCE))
    set_prices(connection, "tenant_2", [price("2", currency="EUR")])
    applier.apply(make_chunk(make_record(len(messages), json.dumps(EVENT | {"tenant_id": "stranger"}).encode())))
    held = sorted(quarantine.listing(connection), key=lambda row: (row.source != SOURCE.name, row.position))
    found = [row.estimated_value if row.not_estimable is None else row.not_estimable for row in held]
    assert found == [
        *(said for _, said in worth),
        "not JSON",
        "Expected `object`, got `array`",
        "its tenant is not registered, and others pay in EUR, USD",
        "a replica's report has no price",
    ]


def test_a_listing_holds_no_messages(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    size = 900_000
    applier.apply(make_chunk(*(make_record(position, b"x" * size) for position in range(3))))
    held = quarantine.listing(connection)
    assert [row.message_bytes for row in held] == [size] * 3
    assert len(repr(held)) < 10_000
    assert whole(connection, held[0]) == b"x" * size


def test_ids_are_read_as_they_are_asked_for_and_what_comes_meanwhile_is_left(
    connection: psycopg.Connection, applier: ChunkApplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "IDS_A_TIME", 2)
    tenants.register(connection, [("tenant_2", "Two")], actor="test")
    applier.apply(make_chunk(*(make_record(position, b"{torn") for position in range(5)), make_record(5, b"[]")))
    everything = sorted(row.quarantine_id for row in quarantine.listing(connection))
    torn = quarantine.waiting_ids(connection, reason="torn", tenant_id=None)
    first = list(islice(torn, 2))
    applier.apply(make_chunk(make_record(6, b"{torn later")))
    assert first + list(torn) == everything[:5]
    assert list(quarantine.waiting_ids(connection, reason=None, tenant_id="tenant_2")) == []
