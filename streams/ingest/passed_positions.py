"""What became of every position of every source, as chunks have recorded it; and what is really there of it."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import psycopg


def extents(connection: psycopg.Connection) -> dict[str, tuple[int, int]]:
    """Each source's first and next position."""
    rows = connection.execute("select source, first_position, next_position from usage.sources")
    return {source: (first, after) for source, first, after in rows}


_RUNS: Final = """
    with passed as (
        select source, first_position, next_position, applied + duplicates + quarantined + empty as outcomes
        from usage.applied_positions
        union all
        select source, from_position, to_position, to_position - from_position from usage.position_resolutions
    ), beside as (
        select *, lag(next_position) over by_position as reached,
            lag(next_position - first_position <> outcomes) over by_position as before_is_wrong
        from passed window by_position as (partition by source order by first_position, next_position)
    ), numbered as (
        select *, count(*) filter (
                where reached is distinct from first_position or before_is_wrong
                      or next_position - first_position <> outcomes
            ) over (partition by source order by first_position, next_position rows unbounded preceding) as run
        from beside
    )
    select source, min(first_position), max(next_position), sum(outcomes)::int8
    from numbered group by source, run order by source, run
"""


def runs(connection: psycopg.Connection) -> list[tuple[str, int, int, int]]:
    """What was applied, proven empty, or passed over by a person: source, first and next position, outcomes.

    Ranges that follow one another are told as one, mostly one for a source: of chunks there are millions. One whose
    outcomes are not as many as its positions stands alone.
    """
    return [(row[0], row[1], row[2], row[3]) for row in connection.execute(_RUNS)]


def stored_counts(connection: psycopg.Connection) -> dict[str, tuple[int, int]]:
    """Each usage source's rows that are really there: events, also those only in the archive, and quarantine."""
    rows = connection.execute(
        "select source, coalesce(e.n, 0)::int8, coalesce(q.n, 0) from usage.sources"
        " left join (select source, sum(n) as n from (select source, count(*) as n from usage.events group by source"
        "   union all select source, events from usage.archived_counts join usage.archived_days using (day, part)"
        "   where dropped_at is not null) as each group by source) e using (source)"
        " left join (select source, count(*) as n from usage.quarantine group by source) q using (source)"
        " where feed = 'usage'"
    )
    return {source: (events, held) for source, events, held in rows}


def events_gone(
    connection: psycopg.Connection, source: str, start: datetime, end: datetime, *, at_most: int
) -> list[int]:
    """The first positions of a source at which an event was counted that completed in [start, end) and is gone."""
    rows = connection.execute(
        "select i.position from usage.event_identities as i join usage.sources as s using (source_no)"
        " where s.source = %s and i.completed_at >= %s and i.completed_at < %s and not exists"
        " (select from usage.events as e where e.source = s.source and e.position = i.position)"
        " order by 1 limit %s",
        (source, start, end, at_most),
    )
    return [row[0] for row in rows]


def counted_outcomes(connection: psycopg.Connection) -> dict[str, tuple[int, int]]:
    """Each usage source's applied and quarantined messages, as its chunks recorded them."""
    rows = connection.execute(
        "select source, coalesce(sum(c.applied), 0)::int8, coalesce(sum(c.quarantined), 0)::int8"
        " from usage.sources left join usage.applied_positions as c using (source) where feed = 'usage' group by source"
    )
    return {source: (applied, held) for source, applied, held in rows}
