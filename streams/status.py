"""How far the streams are: what each partition has applied and what waits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import psycopg

from streams.sources import Log, states


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """One partition. `lag` is messages in the log that are not applied; the other counts are since its beginning."""

    partition: int
    next_offset: int
    end_offset: int
    lag: int
    applied: int
    duplicates: int
    quarantined: int
    last_applied_at: datetime | None
    stopped_because: str | None


def partitions(connection: psycopg.Connection, log: Log) -> list[PartitionStatus]:
    """Every partition of the topic, whether anything of it was applied or not."""
    stored = states(connection, log.topic)
    done = {
        row[0]: row[1:]
        for row in connection.execute(
            "select source, sum(applied)::int8, sum(duplicates)::int8, sum(quarantined)::int8, max(applied_at)"
            " from usage.applied_chunks group by source"
        )
    }
    result = []
    for partition, end in sorted(log.ends.items()):
        state = stored.get(partition)
        at = state.next_position if state else log.begins[partition]
        applied, duplicates, quarantined, last = done.get(log.source(partition).name, (0, 0, 0, None))
        result.append(
            PartitionStatus(
                partition, at, end, end - at, applied, duplicates, quarantined, last,
                state.stopped_because if state else None,
            )
        )  # fmt: skip
    return result
