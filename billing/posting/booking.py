"""Where an entry that belongs to a moment is booked: in its month, or in the open one where that is closed."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, select

from billing import tables
from billing.periods import accounting_month
from billing.posting.posting_rules import Booking


def booking(connection: Connection, key: str, *, legal_entity: str, at: datetime, now: datetime) -> Booking:
    """Into the month of `at`; where that book is closed, into the month of `now` with `original_period` (money 9)."""
    month, table = accounting_month(at), tables.accounting_periods
    closed = select(table.c.state == "closed").where(table.c.legal_entity == legal_entity, table.c.month == month)
    if connection.execute(closed).scalar():
        return Booking(key, legal_entity, accounting_month(now), now, month)
    return Booking(key, legal_entity, month, at)


def closed_books(connection: Connection, month: str) -> set[str]:
    """The legal entities whose book of a month is closed."""
    table = tables.accounting_periods
    query = select(table.c.legal_entity).where(table.c.month == month, table.c.state == "closed")
    return set(connection.execute(query).scalars())
