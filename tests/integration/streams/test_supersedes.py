"""A chunk's tellings by other sources, stored at once and one by one: the same outcomes and the same rows."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import psycopg
import pytest

from serving_adapter.identity import Identity, event_id_of
from streams.ingest import corrections, supersedes
from streams.ingest.apply import ChunkApplier
from streams.ingest.further_arrivals import Arrivals
from streams.rules.chunks import Chunk, Record
from tests.builders import EVENT, RECEIVED, make_chunk, make_record, uuid_v7
from tests.fixtures_services import Databases
from tests.integration.streams.test_further_arrivals import assert_windows_are_their_events, windows
from tests.integration.streams.test_resends import LEFT, applied
from tests.simulation import applying

SOURCES = ("engine", "stream", "gateway", "settled", "estimate")
COMPARED = LEFT | {
    "usage.windows_1m": "*",
    "usage.quota_feed": "source, ingest_no, tenant_id, request_id, attempt, kind, model, status, usage_source,"
    " completed_at, requests, input_tokens, cache_hit_tokens, output_tokens, gpu_us",
    "(select replica_id, boot_id, tenant_id, model, sum(events) as events, sum(input_tokens) as input,"
    " sum(output_tokens) as output, sum(engine_output_beyond) as beyond, sum(lost) as lost"
    " from usage.replica_usage_fills group by replica_id, boot_id, tenant_id, model) as fills": "*",
}


def told_by_many(dice: random.Random, number: int) -> list[dict[str, Any]]:
    """What is said about one request: by one source or several, corrected or not, some of it twice."""
    request = uuid_v7(RECEIVED, number) if dice.random() < 0.5 else f"req-{number}"
    common = {"tenant_id": f"tenant_{dice.randrange(3)}", "request_id": request, "attempt": dice.randint(1, 2)}
    said = []
    for source in dice.sample(SOURCES, dice.choice((1, 2, 2, 2, 3))):
        lost = {"status": "lost"} if source == "estimate" else {}
        by = {"replica_id": "r1", "boot_id": f"b-{source}", "seq": number + 1} if dice.random() < 0.7 else {}
        stated = {"engine_output_tokens": dice.randint(5, 99)} if dice.random() < 0.3 else {}
        said.append(
            common | lost | by | stated
            | {"usage_source": source, "output_tokens": dice.randint(3, 9), "purpose": dice.choice(("tenant", "probe")),
               "timestamp": f"2026-11-01T{dice.randint(8, 11):02d}:30:00Z", "model": dice.choice(("llama", "alias"))}
        )  # fmt: skip
    if dice.random() < 0.2:
        corrects = Identity(common["tenant_id"], request, common["attempt"], "usage", 0)
        said.append(
            common
            | {"kind": "correction", "correction_no": 1, "corrects": str(event_id_of(corrects)), "input_tokens": 1,
               "cache_hit_tokens": 0, "output_tokens": dice.randint(-2, 2), "usage_source": dice.choice(SOURCES)}
        )  # fmt: skip
    return said + dice.sample(said, dice.choice((0, 0, 0, 1)))


def chunks() -> list[Chunk]:
    seed = int(os.environ.get("TOLLBOOK_SEED") or 20261121)
    print(f"seed {seed}: TOLLBOOK_SEED={seed} repeats it")
    dice = random.Random(seed)
    placed = [(n + 120 * dice.random(), EVENT | said) for n in range(250) for said in told_by_many(dice, n)]
    values = [json.dumps(said).encode() for _, said in sorted(placed, key=lambda each: each[0])]
    records = [Record(i, b"", value, applying.RECEIVED) for i, value in enumerate(values)]
    cut = []
    while records:
        size = dice.choice((1, 7, 40, 200))
        cut.append(Chunk(applying.source_of(0), records[:size]))
        records = records[size:]
    return cut


def test_many_sources_leave_the_same_either_way(
    make_database: Databases, own_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_ids, sent = [f"tenant_{number}" for number in range(3)], chunks()
    at_once = applied(own_database_url, tenant_ids, sent, COMPARED)
    for module in (supersedes, corrections):
        monkeypatch.setattr(module, "candidates", lambda _: [])
    assert at_once == applied(make_database(), tenant_ids, sent, COMPARED)
    assert len(at_once[1]["usage.superseded_events"]) > 100
    assert at_once[1]["usage.identity_ages"]


def test_corrections_take_no_statements_of_their_own(
    connection: psycopg.Connection, applier: ChunkApplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Arrivals, "take")
    events = [make_record(i, gpu_us=1) for i in range(3)]

    def correction(position: int, of: int, number: int = 1) -> Record:
        corrects = str(event_id_of(Identity("tenant_1", f"req-{of}", 1, "usage", 0)))
        named = {"request_id": f"req-{of}", "kind": "correction", "correction_no": number, "corrects": corrects}
        deltas = {"input_tokens": 0, "cache_hit_tokens": 0, "output_tokens": -1, "gpu_us": 7}
        return make_record(position, json.dumps(EVENT | named | deltas).encode())

    first = applier.apply(make_chunk(*events, correction(3, 0)))
    second = applier.apply(make_chunk(*(correction(4 + n, n, number=2) for n in range(3)), correction(7, 0)))
    assert (first.applied, second.applied, second.duplicates) == (4, 3, 1)
    assert [row[2:] for row in windows(connection)] == [("engine", 3, 30, 12, 11)]
    assert connection.execute("select gpu_us, events from usage.windows_1h").fetchall() == [(31, 7)]
    assert_windows_are_their_events(connection)


def test_another_source_s_telling_takes_no_statements_of_its_own(
    connection: psycopg.Connection, applier: ChunkApplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Arrivals, "take")
    first = [make_record(i, usage_source="gateway", output_tokens=3) for i in range(3)]
    engine = [make_record(3 + i, request_id=f"req-{i}", output_tokens=5) for i in range(3)]
    weaker = [make_record(6 + i, request_id=f"req-{i}", usage_source="estimate", output_tokens=7) for i in range(2)]
    done = [applier.apply(make_chunk(*part)) for part in ([*first, *engine[:2]], [engine[2], *weaker])]
    assert [(each.applied, each.quarantined) for each in done] == [(5, 0), (3, 0)]
    assert [row[2:] for row in windows(connection)] == [("engine", 3, 30, 12, 15)]
    assert_windows_are_their_events(connection)
