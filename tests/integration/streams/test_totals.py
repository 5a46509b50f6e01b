"""What is told of all chunks without reading them all: totals, the rate of late, runs of positions."""

from __future__ import annotations

from decimal import Decimal

import psycopg

from streams.ingest import passed_positions, sources
from streams.ingest.apply import ChunkApplier
from streams.ingest.logs import Log
from streams.ingest.replica_apply import ReplicaChunkApplier
from streams.usage import usage_store
from streams.workers import status
from streams.workers.status import PartitionStatus
from tests.builders import REPLICA_SOURCE, SOURCE, make_chunk, make_record, make_report
from tests.integration.streams.conftest import register_source

LOG = Log("test.usage.v1", SOURCE.cluster_id, SOURCE.topic_id, {0: 0, 1: 0}, {0: 7, 1: 3}, {})


def test_totals_are_those_of_all_chunks(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    assert usage_store.last_ingested(connection) is None
    soon = {"timestamp": "2026-11-01T11:30:00Z"}
    first = make_chunk(make_record(0, request_id="r", **soon), make_record(1), make_record(2, b"{torn"))
    second = make_chunk(make_record(3, request_id="r", **soon), make_record(4, b"{torn"), make_record(5, **soon))
    for chunk in (first, second, second):
        applier.apply(chunk)

    (last,) = connection.execute("select max(applied_at) from usage.applied_chunks").fetchone() or (None,)
    shown, untouched = status.partitions(connection, LOG)
    assert shown == PartitionStatus(0, 6, 7, 1, Decimal("0.1"), 3, 1, 2, 1, last, None)
    assert untouched == PartitionStatus(1, 0, 3, 3, Decimal(0), 0, 0, 0, 0, None, None)
    assert status.outcomes(connection) == {"applied": 3, "duplicates": 1, "quarantined: torn": 2}
    assert usage_store.last_ingested(connection) == last


def test_the_rate_is_of_the_last_minute(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    applier.apply(make_chunk(*map(make_record, range(6))))
    connection.execute(
        "insert into usage.applied_chunks (source, first_position, next_position, applied, duplicates, retimed,"
        " quarantined, content_digest, applied_at) values (%s, 6, 606, 600, 0, 0, 0, '', now() - interval '61 s')",
        (SOURCE.name,),
    )
    assert status.partitions(connection, LOG)[0].per_second == Decimal("0.1")


def test_reports_are_no_usage(connection: psycopg.Connection) -> None:
    register_source(connection, REPLICA_SOURCE, "replicas")
    ReplicaChunkApplier(connection).apply(make_chunk(make_report(0, "heartbeat"), source=REPLICA_SOURCE))
    assert status.outcomes(connection) == {"applied": 0, "duplicates": 0}
    assert usage_store.last_ingested(connection) is None


def test_chunks_that_follow_one_another_are_one_run(
    connection: psycopg.Connection, owner: psycopg.Connection, applier: ChunkApplier
) -> None:
    owner.execute("alter table usage.applied_chunks drop constraint applied_chunks_check")
    register_source(connection, REPLICA_SOURCE, "replicas")
    chunks = [
        (SOURCE.name, 0, 5, 5), (SOURCE.name, 5, 9, 4), (SOURCE.name, 20, 22, 2),
        (SOURCE.name, 22, 30, 7), (SOURCE.name, 30, 31, 1), (SOURCE.name, 31, 40, 9),
        (SOURCE.name, 40, 45, 5), (SOURCE.name, 44, 46, 2),
        (REPLICA_SOURCE.name, 3, 4, 1),
    ]  # fmt: skip
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into usage.applied_chunks (source, first_position, next_position, applied, duplicates, retimed,"
            " quarantined, content_digest) values (%s, %s, %s, %s, 0, 0, 0, '')",
            chunks,
        )
    connection.execute(
        "insert into usage.position_resolutions (source, from_position, to_position, reason, actor)"
        " values (%(source)s, 9, 9, 'none', 'ada'), (%(source)s, 12, 20, 'lost', 'ada')",
        {"source": SOURCE.name},
    )
    assert passed_positions.runs(connection) == [
        (REPLICA_SOURCE.name, 3, 4, 1),
        (SOURCE.name, 0, 9, 9), (SOURCE.name, 12, 22, 10), (SOURCE.name, 22, 30, 7), (SOURCE.name, 30, 45, 15),
        (SOURCE.name, 44, 46, 2),
    ]  # fmt: skip


def test_the_partitions_of_a_topic_are_found_among_many_releases_without_reading_these(
    connection: psycopg.Connection, applier: ChunkApplier, owner: psycopg.Connection
) -> None:
    connection.execute(
        "insert into usage.sources (source, cluster_id, topic_id, leader_epoch, first_position, next_position)"
        " select 'release:' || n, 'quarantine', n, -1, 0, 1 from generate_series(1, 20000) as n"
    )
    owner.execute("analyze usage.sources")
    assert [state.source for state in sources.states(connection, "test.usage.v1").values()] == [SOURCE.name]
    given = ("kafka:test.usage.v1/", "kafka:test.usage.v10")
    (plan,) = connection.execute(f"explain (format json) {sources.STATES}", given).fetchone() or (None,)
    assert "Index Scan" in str(plan), plan
