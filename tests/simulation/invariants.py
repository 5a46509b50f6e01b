"""What must hold whatever was killed: events = distinct sent, windows = events, positions contiguous, counts add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import psycopg

from reconciliation import agreement
from serving_adapter.identity import Identity
from streams.completeness.complete_to import BootKey
from streams.completeness.completeness_check import CompletenessCheck
from streams.ingest import passed_positions
from streams.settings import CompletenessSettings
from streams.usage import quarantine
from streams.usage.rebuild import rebuild
from tests.simulation.traffic import Expected, Row
from tests.waiting import wait_for

EVER: Final = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))

_ROWS: Final = (
    "select tenant_id, request_id, attempt, kind, correction_no, usage_source, count(*) from usage.events"
    " group by 1, 2, 3, 4, 5, 6"
)
_SUMS: Final = (
    "select tenant_id, model, adapter, purpose, usage_source, time_bucket('1 hour', completed_at),"
    " count(*) filter (where kind = 'usage'), sum(input_tokens)::int8, sum(cache_hit_tokens)::int8,"
    " sum(output_tokens)::int8, sum(gpu_us)::int8 from usage.counting_events group by 1, 2, 3, 4, 5, 6"
)
_FED: Final = (
    "select tenant_id, model, adapter, sum(requests)::int8, sum(input_tokens)::int8, sum(cache_hit_tokens)::int8,"
    " sum(output_tokens)::int8, sum(gpu_us)::int8 from {} group by 1, 2, 3 order by 1, 2, 3"
)
_BEYOND: Final = (
    "select replica_id, boot_id, sum(engine_output_beyond)::int8 from usage.replica_counts where replica_id <> ''"
    " group by 1, 2 having sum(engine_output_beyond) <> 0"
)
_OTHER_TOTALS: Final = (
    "select source from usage.sources as s left join (select source, sum(applied) as applied,"
    " sum(duplicates) as duplicates, sum(quarantined) as quarantined, sum(late) as late, max(applied_at) as applied_at"
    " from usage.applied_chunks group by source) as c using (source)"
    " where (s.applied, s.duplicates, s.quarantined, s.late) is distinct from (coalesce(c.applied, 0),"
    " coalesce(c.duplicates, 0), coalesce(c.quarantined, 0), coalesce(c.late, 0))"
    " or s.last_applied_at is distinct from c.applied_at"
)


@dataclass(frozen=True, slots=True)
class Loss:
    """What is missing and what is there more than once. Both must be 0."""

    lost: int
    doubled: int


def stored_rows(connection: psycopg.Connection) -> Counter[Row]:
    """How often each identity is stored, by source."""
    found: Counter[Row] = Counter()
    for *identity, usage_source, count in connection.execute(_ROWS):
        found[Identity(*identity), usage_source] = count
    return found


def loss(connection: psycopg.Connection, due: Iterable[Row]) -> Loss:
    """Compare what is stored with what is due."""
    stored = stored_rows(connection)
    return Loss(sum(row not in stored for row in due), sum(count - 1 for count in stored.values()))


def consistent(connection: psycopg.Connection) -> None:
    """What holds at every moment, between any two commits."""
    assert rebuild(connection, *EVER, actor="test").differences == (), "windows are not the sums of their events"
    check = agreement.positions(passed_positions.extents(connection), passed_positions.runs(connection))
    assert check.agrees, check.differences
    assert passed_positions.stored_counts(connection) == passed_positions.counted_outcomes(connection)
    assert connection.execute(_OTHER_TOTALS).fetchall() == [], "totals beside a position are not its chunks' sums"
    fed, held = (
        [row for row in connection.execute(_FED.format(table)) if any(row[3:])]
        for table in ("usage.quota_feed", "usage.windows_1h where purpose = 'tenant'")
    )
    assert fed == held, "what the quotas are fed is not what the windows hold"


def numbers(connection: psycopg.Connection) -> dict[BootKey, tuple[int, int]]:
    """Of each boot, up to where all numbers have arrived, and the highest of them; without a gap they are equal."""
    check = CompletenessCheck(connection, CompletenessSettings())
    wait_for(check.run, "no worker is at it")
    rows = connection.execute("select replica_id, boot_id, received_through, highest from usage.boot_numbers")
    return {(replica_id, boot_id): (through, highest) for replica_id, boot_id, through, highest in rows}


def complete(connection: psycopg.Connection, expected: Expected) -> None:
    """What holds once everything that was sent is applied and no orphan waits."""
    consistent(connection)
    assert stored_rows(connection) == Counter(dict.fromkeys(expected.rows, 1))
    sums = {tuple(row[:6]): list(row[6:]) for row in connection.execute(_SUMS)}
    assert sums == dict(expected.sums)
    assert quarantine.counts(connection) == dict(expected.quarantine)
    assert numbers(connection) == {boot: (last, last) for boot, last in expected.numbers.items()}
    beyond = {(replica_id, boot_id): tokens for replica_id, boot_id, tokens in connection.execute(_BEYOND)}
    assert beyond == dict(expected.beyond), "what engines counted is not what the events say of it"
    row = connection.execute(
        "select sum(applied + duplicates + quarantined)::int8 from usage.applied_chunks where source like 'kafka:%'"
    ).fetchone()
    assert row == (expected.messages,), "messages with an outcome are not the messages that were sent"
