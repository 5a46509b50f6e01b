"""Stored events whose rating band is another by today's rules: a rule was changed after they were ingested.

All of it belongs to a rebuild's transactions (streams/usage/rebuild.py), which move their sums between windows.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import psycopg

from serving_adapter.events import decode
from streams.rules.ingest_rules import band_rules
from streams.rules.rating_bands import RatingBands

FETCHED: Final = 5000
_STORED: Final = """
    select source, position, completed_at, rating_band, raw from usage.events
    where completed_at >= %(start)s and completed_at < %(end)s and kind = 'usage'
      and (tenant_id = any(%(tenants)s) or rating_band <> '')
"""
# A correction counts where what it corrects counts.
_CORRECTIONS: Final = """
    insert into rebanded
    select c.source, c.position, c.completed_at, r.rating_band
    from rebanded as r join usage.counting_events as e using (source, position, completed_at)
    join usage.counting_events as c on c.tenant_id = e.tenant_id and c.completed_at = e.completed_at
        and c.request_id = e.request_id and c.attempt = e.attempt and c.kind = 'correction'
"""


def stage(connection: psycopg.Connection, start: datetime, end: datetime) -> int:
    """Put the events of [start, end) that have another band now into a temporary table `rebanded`; returns how many."""
    connection.execute(
        "create temporary table rebanded (source text, position int8, completed_at timestamptz, rating_band text)"
        " on commit drop"
    )
    bands = RatingBands(band_rules(connection))
    with connection.cursor(name="rebanding") as cursor:
        cursor.execute(_STORED, {"start": start, "end": end, "tenants": sorted(bands.tenants)})
        while rows := cursor.fetchmany(FETCHED):
            changed = [
                (source, position, completed_at, band)
                for source, position, completed_at, stored, raw in rows
                if (band := bands.of_event(decode(bytes(raw)), completed_at)) != stored
            ]
            with connection.cursor() as writing, writing.copy("copy rebanded from stdin") as copy:
                for row in changed:
                    copy.write_row(row)
    connection.execute(_CORRECTIONS)
    found = connection.execute("select count(*) from rebanded").fetchone()
    return int(found[0]) if found else 0


def staged_minutes(connection: psycopg.Connection) -> list[datetime]:
    """The minutes that have staged events."""
    rows = connection.execute("select distinct date_trunc('minute', completed_at) from rebanded")
    return [row[0] for row in rows]


def apply(connection: psycopg.Connection, start: datetime, end: datetime) -> None:
    """Write the staged bands into their events."""
    connection.execute(
        "update usage.events as e set rating_band = r.rating_band from rebanded as r"
        " where e.source = r.source and e.position = r.position and e.completed_at = r.completed_at"
        " and e.completed_at >= %s and e.completed_at < %s",
        (start, end),
    )
