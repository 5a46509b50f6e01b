"""A chunk's plain resends, told at once and one by one: the same outcomes and the same rows."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from typing import Any

import psycopg
import pytest

from streams.database import connect
from streams.ingest import resends
from streams.ingest.apply import ChunkApplier
from streams.ingest.further_arrivals import Arrivals
from streams.ingest.positions import Applied
from streams.rules.chunks import Chunk, Record
from tests.fixtures_services import Databases
from tests.integration.streams.test_further_arrivals import ENGINE, ESTIMATE, STREAM, correction, send
from tests.simulation import applying
from tests.simulation.traffic import Traffic

LEFT = {
    "usage.events": "source, position, usage_source, completed_at",
    "usage.event_identities": "key, source_no, position, completed_at, usage_source",
    "usage.event_versions": "key, source_no, position, completed_at, usage_source",
    "usage.identity_ages": "key, completed_at",
    "usage.superseded_events": "source, position, by_source, by_position",
    "usage.windows_1h": "*",
    "usage.quarantine": "source, position, reason, detail",
    "usage.applied_chunks": "source, first_position, next_position, applied, duplicates, retimed, quarantined, late",
}
LATER = {"timestamp": "2026-11-05T12:00:00Z"}


def dirty_chunks() -> tuple[list[str], list[Chunk]]:
    """Dirty traffic, then all of it again among more of it and with other times, in chunks of many sizes."""
    seed = int(os.environ.get("TOLLBOOK_SEED") or 20261121)
    print(f"seed {seed}: TOLLBOOK_SEED={seed} repeats it")
    dice, traffic = random.Random(seed), Traffic(seed)
    first = traffic.round(250)
    again = [m.value for m in (*first, *traffic.round(100))]
    again += [json.dumps(json.loads(m.value) | LATER).encode() for m in dice.sample(first, 60) if m.row is not None]
    dice.shuffle(again)
    records = [Record(i, b"", v, applying.RECEIVED) for i, v in enumerate([*(m.value for m in first), *again])]
    chunks = []
    while records:
        size = dice.choice((1, 7, 40, 200))
        chunks.append(Chunk(applying.source_of(0), records[:size]))
        records = records[size:]
    return traffic.tenants, chunks


def applied(
    url: str, tenant_ids: list[str], chunks: list[Chunk], tables: Mapping[str, str] = LEFT
) -> tuple[list[Applied], dict[str, list[Any]]]:
    """What became of each chunk, and what is left in the database."""
    with connect(url) as connection:
        applying.prepare(connection, tenant_ids, [0])
        applier = ChunkApplier(connection)
        done = [applier.apply(chunk) for chunk in chunks]
        rows = {
            table: sorted(connection.execute(f"select {columns} from {table}").fetchall(), key=repr)
            for table, columns in tables.items()
        }
        return done, rows


def test_dirty_traffic_leaves_the_same_either_way(
    make_database: Databases, own_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_ids, chunks = dirty_chunks()
    at_once = applied(own_database_url, tenant_ids, chunks)
    monkeypatch.setattr(resends, "plain", lambda *_: {})
    assert at_once == applied(make_database(), tenant_ids, chunks)
    assert sum(done.retimed for done in at_once[0]) > 0
    assert at_once[1]["usage.identity_ages"]
    assert sum(done.duplicates for done in at_once[0]) > 300


def test_plain_resends_take_no_statements_of_their_own(
    connection: psycopg.Connection, applier: ChunkApplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"request_id": "r2"}
    sent = [ESTIMATE, STREAM, ENGINE, correction(1, output_tokens=-1), other]
    send(applier, connection, *sent)
    monkeypatch.delattr(Arrivals, "take")
    done = send(applier, connection, *sent, other | {"timestamp": "2026-11-01T09:00:00Z"})
    assert sum(each.duplicates for each in done) == len(sent) + 1
    assert sum(each.retimed for each in done) == 1
