"""What refused messages may be worth, at the estimate prices of their tenants: a person looks at the dearest first."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import psycopg

from serving_adapter.events import UsageEvent, decode
from streams.ingest.event_rows import EventRows
from streams.rules import estimates
from streams.rules.chunks import Refused
from streams.rules.duplicates import original_of

Value = tuple[Decimal | None, str | None]
"""Major units and the currency; (None, None) where no price applies, or the message cannot be read."""


def values_of(connection: psycopg.Connection, source: str, refused: Sequence[Refused]) -> list[Value]:
    """Each message's. A conflict's is what it would change: its own less that of the version in force (rule 1.5)."""
    prices = estimates.prices_of(connection, (message.event.tenant_id for message in refused if message.event))
    rows = EventRows(connection, source, 0, 0)

    def value(message: Refused) -> Value:
        event = message.event
        if event is None or event.tenant_id not in prices:
            return None, None
        amount, currency = estimates.value_of(prices[event.tenant_id], event)
        held = _in_force(rows, event) if message.reason == "conflict" else None
        if held is not None and amount is not None:
            stands, same_currency = estimates.value_of(prices[event.tenant_id], held)
            if stands is not None and same_currency == currency:
                amount -= stands
        return amount, currency

    return [value(message) for message in refused]


def _in_force(rows: EventRows, event: UsageEvent) -> UsageEvent | None:
    """The event of the same identity that counts; None if it is forgotten."""
    original = original_of(event)
    for completed_at in {version.completed_at for version in rows.stored_versions(original)}:
        for row in rows.counting(original, completed_at):
            if (row.kind, row.correction_no) == (event.kind, event.correction_no):
                return decode(bytes(row.raw))
    return None
