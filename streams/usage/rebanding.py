"""Stored events whose rating band is another by today's rules: a rule was changed after they were ingested.

They are staged by a rebuild's snapshot (streams/usage/rebuild.py), and change their band a few at a time, each time
with their sums: out of the windows of the band they had, into those of the one they have.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import psycopg

from serving_adapter.events import decode
from streams import audit
from streams.retention.archive_store import hold_archive, require_present
from streams.rules import stale_bands
from streams.rules.ingest_rules import band_rules
from streams.rules.rating_bands import RatingBands
from streams.rules.windows import WIDTHS, WINDOW_KEY, WINDOW_SUMS, add_to_windows

FETCHED: Final = 5000
MOVED_AT_ONCE: Final = 2000
"""Events that change their band while the sources are stopped: a chunk waits for about as long as for another chunk."""
_STORED: Final = """
    select tenant_id, source, position, completed_at, rating_band, raw from usage.present_events
    where completed_at >= %(start)s and completed_at < %(end)s and kind = 'usage'
      and (tenant_id = any(%(tenants)s) or rating_band <> '')
"""
_COLUMNS: Final = "tenant_id, source, position, completed_at, rating_band"
_COPY: Final = f"copy rebanded ({_COLUMNS}, is_usage) from stdin"
# A correction counts where what it corrects counts.
_CORRECTIONS: Final = f"""
    insert into {{table}} ({_COLUMNS})
    select c.tenant_id, c.source, c.position, c.completed_at, r.rating_band
    from {{table}} as r join usage.counting_events as e using (tenant_id, source, position, completed_at)
    join usage.counting_events as c on c.tenant_id = e.tenant_id and c.completed_at = e.completed_at
        and c.request_id = e.request_id and c.attempt = e.attempt and c.kind = 'correction'
"""
_TAKE: Final = f"""
    with taken as (
        delete from rebanded where number in (select number from rebanded where is_usage order by number limit %s)
        returning {_COLUMNS}
    )
    insert into moving ({_COLUMNS}) select {_COLUMNS} from taken
"""
_KEYS_BUT_BAND: Final = ", ".join(WINDOW_KEY[:-1])
_COUNTS: Final = WINDOW_SUMS[2:]
_SUM: Final = f"""
    create temporary table summed on commit drop as
    select time_bucket('1 minute', completed_at) as minute, {_KEYS_BUT_BAND}, band as rating_band,
        sum(sign) as events, sum(case kind when 'usage' then sign else 0 end) as requests,
        {", ".join(f"sum(sign * {name}) as {name}" for name in _COUNTS)}
    from moving as m join usage.counting_events as e using (tenant_id, source, position, completed_at),
        lateral (values (-1, e.rating_band), (1, m.rating_band)) as side (sign, band)
    where e.rating_band <> m.rating_band
    group by minute, {_KEYS_BUT_BAND}, band
"""
_MARK: Final = """
    update usage.{} as e set rating_band = m.rating_band from moving as m
    where e.tenant_id = m.tenant_id and e.completed_at = m.completed_at and e.source = m.source
      and e.position = m.position and e.rating_band <> m.rating_band
"""


def stage(connection: psycopg.Connection, start: datetime, end: datetime) -> int:
    """Put the events of [start, end) that have another band now into the session's table `rebanded`; how many."""
    connection.execute(
        "create temporary table if not exists rebanded (number int8 generated always as identity, tenant_id text,"
        " source text, position int8, completed_at timestamptz, rating_band text, is_usage boolean)"
    )
    connection.execute("truncate rebanded")
    bands = RatingBands(band_rules(connection))
    with connection.cursor(name="rebanding") as cursor:
        cursor.execute(_STORED, {"start": start, "end": end, "tenants": sorted(bands.tenants)})
        while rows := cursor.fetchmany(FETCHED):
            changed = [
                (*named, completed_at, band, True)
                for *named, completed_at, stored, raw in rows
                if (band := bands.of_event(decode(bytes(raw)), completed_at)) != stored
            ]
            with (
                connection.cursor() as writing,
                writing.copy(_COPY) as copy,
            ):
                for row in changed:
                    copy.write_row(row)
    connection.execute(_CORRECTIONS.format(table="rebanded"))
    found = connection.execute("select count(*) from rebanded").fetchone()
    return int(found[0]) if found else 0


def move(
    connection: psycopg.Connection, actor: str, start: datetime, end: datetime, bands_version: int
) -> tuple[int, int]:
    """Give what is staged of [start, end) its band, MOVED_AT_ONCE events at a time; how many windows and events it was.

    The sources are stopped for each time, so that no chunk replaces or corrects an event meanwhile; corrections that
    came since it was staged move with it. Ends early where the rules are no longer those of `bands_version`. Raises
    EventsArchived.
    """
    windows = events = 0
    while connection.execute("select exists (select from rebanded where is_usage)").fetchone() == (True,):
        with connection.transaction():
            hold_archive(connection)
            connection.execute("lock table usage.sources in exclusive mode")
            require_present(connection, start, end)
            if stale_bands.rules_version(connection) != bands_version:
                return windows, events
            taken = _move_some(connection)
            windows, events = windows + taken[0], events + taken[1]
            detail = {"from": start.isoformat(), "to": end.isoformat(), "windows": taken[0], "rebanded": taken[1]}
            audit.record(connection, actor, "windows.rebuild", "windows", detail)
    return windows, events


def _move_some(connection: psycopg.Connection) -> tuple[int, int]:
    """How many windows and events changed."""
    connection.execute(
        "create temporary table moving (tenant_id text, source text, position int8, completed_at timestamptz,"
        " rating_band text) on commit drop"
    )
    connection.execute(_TAKE, (MOVED_AT_ONCE,))
    connection.execute(_CORRECTIONS.format(table="moving"))
    connection.execute("analyze moving")
    connection.execute(_SUM)
    windows = sum(connection.execute(add_to_windows(*each)).rowcount for each in WIDTHS.items())
    return windows, sum(connection.execute(_MARK.format(table)).rowcount for table in ("events", "recalled_events"))
