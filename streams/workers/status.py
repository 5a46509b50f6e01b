"""How far the streams are: what each partition has applied and what waits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import psycopg

from streams.ingest.logs import Log
from streams.ingest.sources import disagreement, states
from streams.usage import quarantine

RATE_OVER: Final = timedelta(minutes=1)
NOTHING: Final[tuple[Any, ...]] = (0, 0, 0, 0, None)


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """One partition. `lag` is messages in the log that are not applied; `per_second` what was passed of late, on
    average over RATE_OVER; the other counts are since its beginning. `late`: chunks.late_before.

    Where the log is not the one that the position is about, `lag` is None, and `stopped_because` says why.
    """

    partition: int
    next_offset: int
    end_offset: int
    lag: int | None
    per_second: Decimal
    applied: int
    duplicates: int
    quarantined: int
    late: int
    last_applied_at: datetime | None
    stopped_because: str | None


def partitions(connection: psycopg.Connection, log: Log) -> list[PartitionStatus]:
    """Every partition of the topic, whether anything of it was applied or not."""
    stored = states(connection, log.topic)
    totals = {
        row[0]: row[1:]
        for row in connection.execute(
            "select source, applied, duplicates, quarantined, late, last_applied_at from usage.sources"
            " where source = any(%s)",
            ([state.source for state in stored.values()],),
        )
    }
    rates: dict[str, Decimal] = dict(
        connection.execute(
            "select source, round(sum(next_position - first_position) / extract(epoch from %(over)s::interval), 1)"
            " from usage.applied_chunks where applied_at > now() - %(over)s group by source",
            {"over": RATE_OVER},
        ).fetchall()
    )
    result = []
    for partition, end in sorted(log.ends.items()):
        state = stored.get(partition)
        at = state.next_position if state else log.begins[partition]
        source = state.source if state else ""
        rate = rates.get(source, Decimal(0))
        applied, duplicates, quarantined, late, last = totals.get(source, NOTHING)
        other_log = disagreement(state, log, partition) if state else None
        result.append(
            PartitionStatus(
                partition, at, end, None if other_log else end - at, rate, applied, duplicates, quarantined, late, last,
                (state.stopped_because if state else None) or other_log,
            )
        )  # fmt: skip
    return result


def outcomes(connection: psycopg.Connection) -> dict[str, int]:
    """Usage messages by what became of them, over all sources: applied, duplicates, `quarantined: <reason>`."""
    counts = connection.execute(
        "select coalesce(sum(applied), 0)::int8, coalesce(sum(duplicates), 0)::int8"
        " from usage.sources where feed = 'usage'"
    ).fetchone()
    assert counts is not None, "an aggregate always has a row"
    held = {f"quarantined: {reason}": count for reason, count in quarantine.counts(connection).items()}
    return {"applied": counts[0], "duplicates": counts[1]} | held
