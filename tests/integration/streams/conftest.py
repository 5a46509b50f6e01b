"""Appliers of an empty database: of usage events and of replicas' reports; a line with topics of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psycopg
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from serving_adapter.settings import KafkaSettings
from streams import tenants
from streams.ingest.apply import ChunkApplier
from streams.ingest.replica_apply import ReplicaChunkApplier
from streams.rules.chunks import Source
from streams.usage import quarantine
from streams.usage.quarantine import Quarantined
from tests.builders import REPLICA_SOURCE, SOURCE
from tests.simulation.line import Line


def register_source(connection: psycopg.Connection, source: Source, feed: str) -> None:
    """A source that begins at 0."""
    connection.execute(
        "insert into usage.sources (source, cluster_id, topic_id, leader_epoch, first_position, next_position, feed)"
        " values (%s, %s, %s, 0, 0, 0, %s)",
        (source.name, source.cluster_id, source.topic_id, feed),
    )


def whole(connection: psycopg.Connection, held: Quarantined) -> bytes:
    """The message that is in quarantine."""
    found = quarantine.get(connection, held.quarantine_id)
    assert found is not None
    value = found[1].value
    assert value is not None
    return value


BOTH_READERS = pytest.mark.parametrize("reader", ["faust", "bare"])
"""For what depends on the client that reads Kafka; the steps of a transaction do not."""


@pytest.fixture
def reader() -> str:
    """What a line's workers read Kafka with."""
    return "faust"


@pytest.fixture
def applier(connection: psycopg.Connection) -> ChunkApplier:
    """An applier whose source begins at 0 and which knows tenant_1."""
    tenants.register(connection, [("tenant_1", "One")], actor="test")
    register_source(connection, SOURCE, "usage")
    return ChunkApplier(connection)


@pytest.fixture
def replica_applier(connection: psycopg.Connection) -> ReplicaChunkApplier:
    """An applier of reports whose source begins at 0."""
    register_source(connection, REPLICA_SOURCE, "replicas")
    return ReplicaChunkApplier(connection)


@pytest.fixture
def line(kafka: KafkaSettings, own_database_url: str, reader: str) -> Iterator[Line]:
    """Topics, a database, and dirty traffic to come."""
    seed = int(os.environ.get("TOLLBOOK_SEED") or 20261121)
    print(f"seed {seed}: TOLLBOOK_SEED={seed} repeats it")
    with Line(kafka, own_database_url, seed) as made:
        made.reader = reader
        yield made


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket's address, on a server that speaks S3."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    options = f"scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    files, _ = fs.FileSystem.from_uri(f"s3://bucket?{options}&allow_bucket_creation=true")
    files.create_dir("bucket")
    yield f"s3://bucket/usage?{options}"
    server.stop()
