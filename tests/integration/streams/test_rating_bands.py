"""Rating bands: set at ingest, and put right by a rebuild when a rule was changed late."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
import pytest

from streams.database import connect
from streams.ingest.apply import ChunkApplier
from streams.rules.chunks import Chunk
from streams.rules.ingest_rules import band_rules, set_band_rules
from streams.rules.rating_bands import BandKind, BandRule
from streams.usage import usage_store
from streams.usage.rebuild import rebuild
from tests.builders import SOURCE, make_chunk, make_record

SINCE = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = (datetime(2026, 11, 1, 10, tzinfo=UTC), datetime(2026, 11, 1, 11, tzinfo=UTC))
CONTEXT = BandRule("tenant_1", "", BandKind.CONTEXT, SINCE, steps=(1000, 128_000))
STARTED = BandRule("tenant_1", "", BandKind.STARTED, SINCE, price_version="v1")
NEW_PRICE = BandRule("tenant_1", "", BandKind.STARTED, HOUR[0], price_version="v2")


def bands(connection: psycopg.Connection, table: str = "windows_1h") -> dict[str, tuple[int, int]]:
    """Requests and input tokens by band."""
    rows = connection.execute(
        f"select rating_band, sum(requests)::int8, sum(input_tokens)::int8 from usage.{table} group by 1"
    )
    return {band: (requests, tokens) for band, requests, tokens in rows if requests or tokens}


def test_an_event_is_marked_when_it_is_ingested_and_a_new_rule_holds_from_the_next_chunk_on(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    applier.apply(make_chunk(make_record(0, input_tokens=2000)))
    assert set_band_rules(connection, "tenant_1", [CONTEXT])
    assert not set_band_rules(connection, "tenant_1", [CONTEXT])
    applier.apply(make_chunk(make_record(1, input_tokens=999), make_record(2, input_tokens=1000)))
    set_band_rules(connection, "tenant_1", [CONTEXT, STARTED, NEW_PRICE])
    assert set(band_rules(connection)) == {CONTEXT, STARTED, NEW_PRICE}
    before = {"input_tokens": 200_000, "started_at": "2026-11-01T09:59:59.999Z"}
    applier.apply(make_chunk(make_record(3, **before), make_record(4, input_tokens=5)))
    expected = {"": (1, 2000), "context=0": (1, 999), "context=1000": (1, 1000)}
    expected |= {"context=128000;price=v1": (1, 200_000), "context=0;price=v2": (1, 5)}
    assert bands(connection) == bands(connection, "windows_1m") == expected


def test_a_stronger_source_and_a_correction_keep_to_the_band(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    from serving_adapter.identity import Identity, event_id_of

    set_band_rules(connection, "tenant_1", [CONTEXT])
    named = {"request_id": "r"}
    applier.apply(make_chunk(make_record(0, **named, usage_source="estimate", input_tokens=500)))
    applier.apply(make_chunk(make_record(1, **named, input_tokens=1500)))
    corrects = str(event_id_of(Identity("tenant_1", "r", 1, "usage", 0)))
    less = {"kind": "correction", "correction_no": 1, "corrects": corrects, "output_tokens": 0, "cache_hit_tokens": 0}
    applier.apply(make_chunk(make_record(2, **named, **less, input_tokens=-100)))
    assert bands(connection) == {"context=1000": (1, 1400)}
    assert rebuild(connection, *HOUR, actor="ada").differences == ()
    # The rule was wrong from the beginning: the band moves with the event, and its correction follows it.
    set_band_rules(connection, "tenant_1", [BandRule("tenant_1", "", BandKind.CONTEXT, SINCE, steps=(1500,))])
    rebuild(connection, *HOUR, actor="ada", apply=True)
    assert bands(connection) == {"context=1500": (1, 1400)}


@pytest.mark.parametrize("events", [5, 2500])
def test_a_late_rule_is_reported_by_a_rebuild_and_repaired_by_it(
    connection: psycopg.Connection, applier: ChunkApplier, events: int
) -> None:
    records = [make_record(i, input_tokens=i, cache_hit_tokens=0, adapter=f"a{i}") for i in range(events)]
    applier.apply(Chunk(SOURCE, records))
    set_band_rules(connection, "tenant_1", [BandRule("tenant_1", "", BandKind.CONTEXT, SINCE, steps=(3,))])
    found = rebuild(connection, *HOUR, actor="ada")
    assert found.rebanded == events
    assert found.differences
    assert bands(connection) == {"": (events, sum(range(events)))}
    repaired = rebuild(connection, *HOUR, actor="ada", apply=True)
    assert (repaired.rebanded, repaired.replaced) == (events, 4 * events)
    expected = {"context=0": (3, 3), "context=3": (events - 3, sum(range(3, events)))}
    assert bands(connection) == bands(connection, "windows_1m") == expected
    assert {q.rating_band for q in usage_store.raw_quantities(connection, *HOUR)} == set(expected)
    again = rebuild(connection, *HOUR, actor="ada")
    assert (again.rebanded, again.differences) == (0, ())
    # The other direction: rules are taken back.
    set_band_rules(connection, "tenant_1", [])
    rebuild(connection, *HOUR, actor="ada", apply=True)
    assert bands(connection) == {"": (events, sum(range(events)))}


def test_nothing_but_the_band_of_a_stored_event_can_be_changed(
    connection: psycopg.Connection, applier: ChunkApplier, own_database_url: str
) -> None:
    applier.apply(make_chunk(make_record(0)))
    with connect(own_database_url, as_login=True) as owner:
        for change in ("output_tokens = 1", "rating_band = 'x', raw = ''", "completed_at = completed_at + '1 s'"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"update usage.events set {change}")
            with pytest.raises(psycopg.Error, match="append-only"):
                owner.execute(f"update usage.events set {change}")
    connection.execute("update usage.events set rating_band = 'x'")
