"""Estimates of breakage in the database: added, never changed; and what was booked by them."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from sqlalchemy import Connection, func, select

from billing import tables
from billing.bills.breakage import BreakageEstimate
from billing.ledger.journal import BREAKAGE_EXPECTED


def lock(connection: Connection) -> None:
    """Let changes of estimates, and what is booked by them, go one after another, until the transaction ends."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("breakage_estimates", 0))))


def add(connection: Connection, estimate: BreakageEstimate, actor: str) -> None:
    """Record an estimate; one that was recorded for the same moment before is replaced by it."""
    connection.execute(
        tables.breakage_estimates.insert().values(
            legal_entity=estimate.legal_entity,
            share=estimate.share,
            valid_from=estimate.valid_from,
            document=estimate.document,
            recorded_by=actor,
        )
    )


def recorded(connection: Connection) -> list[BreakageEstimate]:
    """Everything recorded, in order of recording."""
    table = tables.breakage_estimates
    return [
        BreakageEstimate(
            row.legal_entity, row.share, row.valid_from, row.document, row.recorded_at, row.recorded_by
        )
        for row in connection.execute(select(table).order_by(table.c.breakage_estimate_no))
    ]  # fmt: skip


def booked(connection: Connection) -> Counter[tuple[str, str]]:
    """How many entries there are by credit and month (`2026-10`)."""
    source = tables.journal_entries.c.source
    of = (source["grant_id"].astext, source["period"].astext)
    query = select(*of, func.count()).where(tables.journal_entries.c.kind == BREAKAGE_EXPECTED).group_by(*of)
    return Counter({(row[0], row[1]): row[2] for row in connection.execute(query)})


def last_booked(connection: Connection) -> dict[str, tuple[str, datetime]]:
    """By credit the latest month that was booked (`2026-10`), and when it was."""
    entries = tables.journal_entries
    of = entries.c.source["grant_id"].astext, entries.c.source["period"].astext
    query = (
        select(*of, entries.c.recorded_at).where(entries.c.kind == BREAKAGE_EXPECTED).order_by(entries.c.entry_id)
    )  # fmt: skip
    return {grant_id: (month, at) for grant_id, month, at in connection.execute(query)}
