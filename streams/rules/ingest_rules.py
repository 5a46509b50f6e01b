"""What every chunk is judged by, from the database: the horizon, and the rules of rating bands.

One small row is read in each chunk's transaction, after its source's row is locked: whoever moves the horizon or seals
a time does so with all sources locked, so that no chunk in flight goes by an older row. Rating bands are read again
only when their version has changed; a chunk in flight may go by the older ones, for which `streams rebuild` is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import psycopg

from streams.rules import stale_bands
from streams.rules.horizon import Horizon
from streams.rules.rating_bands import BandKind, BandRule, RatingBands, differ_from


class IngestRules:
    """Reads the rules over one connection, and remembers the bands."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self._bands = RatingBands()
        self._bands_version: int | None = None

    def current(self) -> tuple[Horizon, RatingBands]:
        """The rules as they are now."""
        row = self._connection.execute(
            "select horizon, closed_before, forgotten_before, sealed_before, rating_bands_version"
            " from usage.ingest_rules"
        ).fetchone()
        assert row is not None, "the row is made with its table and cannot be deleted"
        *horizon, version = row
        if version != self._bands_version:
            self._bands = RatingBands(band_rules(self._connection))
            self._bands_version = version
        return Horizon(*horizon), self._bands


def horizon(connection: psycopg.Connection) -> Horizon:
    """The horizon as it is now."""
    return IngestRules(connection).current()[0]


def band_rules(connection: psycopg.Connection, tenant_id: str | None = None) -> list[BandRule]:
    """Every rule of rating bands, or a tenant's."""
    rows = connection.execute(
        "select tenant_id, model, kind, valid_from, steps, price_version from usage.rating_bands"
        " where %(tenant)s::text is null or tenant_id = %(tenant)s order by tenant_id, model, kind, valid_from",
        {"tenant": tenant_id},
    )
    return [BandRule(row[0], row[1], BandKind(row[2]), row[3], tuple(row[4]), row[5]) for row in rows]


def set_band_rules(
    connection: psycopg.Connection, tenant_id: str, rules: Iterable[BandRule], *, matter_from: datetime | None = None
) -> bool:
    """Replace a tenant's rules, in one transaction; False if they are those already. Billing calls this.

    Events that are stored keep their band. Where the rules reach back to some of them, that time is noted as stale
    until `streams rebuild` has been over it; `matter_from` is when bands begin to matter to anybody. Chunks in flight
    are waited for, so that nothing goes by the old rules afterwards.
    """
    wanted: Sequence[BandRule] = sorted(rules, key=lambda rule: (rule.model, rule.kind.value, rule.valid_from))
    known = band_rules(connection, tenant_id)
    if wanted == known:
        return False
    with connection.transaction():
        connection.execute("lock table usage.sources in exclusive mode")
        connection.execute("delete from usage.rating_bands where tenant_id = %s", (tenant_id,))
        with connection.cursor() as cursor:
            cursor.executemany(
                "insert into usage.rating_bands (tenant_id, model, kind, valid_from, steps, price_version)"
                " values (%s, %s, %s, %s, %s, %s)",
                [(tenant_id, r.model, r.kind.value, r.valid_from, list(r.steps), r.price_version) for r in wanted],
            )
        since = differ_from(known, wanted)
        if since is not None and wanted:
            stale_bands.note(connection, tenant_id, since if matter_from is None else max(since, matter_from))
    return True
