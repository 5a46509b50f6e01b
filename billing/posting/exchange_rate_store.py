"""Exchange rates in the database: added, never changed (docs/spec/money.md 1)."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, func, select

from billing import tables
from billing.ledger.exchange_rates import ExchangeRate


def lock(connection: Connection) -> None:
    """Let changes of rates go one after another, until the transaction ends."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("exchange_rates", 0))))


def add(connection: Connection, rate: ExchangeRate, actor: str) -> None:
    """Record a rate; one that was recorded for the same pair and moment before is replaced by it."""
    connection.execute(
        tables.exchange_rates.insert().values(
            base=rate.base,
            quote=rate.quote,
            rate=rate.rate,
            valid_from=rate.valid_from,
            document=rate.document,
            recorded_by=actor,
        )
    )


def recorded(connection: Connection, *, as_of: datetime | None = None) -> list[ExchangeRate]:
    """Everything recorded (by a moment), by pair and start, of these in order of recording."""
    table = tables.exchange_rates
    query = select(table).order_by(table.c.base, table.c.quote, table.c.valid_from, table.c.exchange_rate_no)
    if as_of is not None:
        query = query.where(table.c.recorded_at <= as_of)
    return [
        ExchangeRate(row.base, row.quote, row.rate, row.valid_from, row.document, row.recorded_at, row.recorded_by)
        for row in connection.execute(query)
    ]
