"""An applier on a database of the test's own."""

from __future__ import annotations

import psycopg
import pytest

from streams import tenants
from streams.apply import ChunkApplier
from tests.builders import SOURCE


@pytest.fixture
def applier(connection: psycopg.Connection) -> ChunkApplier:
    """An applier whose source begins at 0 and which knows tenant_1."""
    tenants.register(connection, [("tenant_1", "One")], actor="test")
    connection.execute(
        "insert into usage.sources (source, cluster_id, topic_id, leader_epoch, first_position, next_position)"
        " values (%s, %s, %s, 0, 0, 0)",
        (SOURCE.name, SOURCE.cluster_id, SOURCE.topic_id),
    )
    return ChunkApplier(connection)
