"""What refused messages may be worth, at the estimate prices of their tenants: a person looks at the dearest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

import psycopg

from serving_adapter.events import UsageEvent, decode
from streams import tenants
from streams.ingest.event_rows import EventRows
from streams.ingest.quota_feed import Place
from streams.ingest.sources import Feed
from streams.rules import estimates
from streams.rules.chunks import Refused
from streams.rules.duplicates import original_of
from streams.rules.estimates import EstimatePrice, NotEstimable, Priceable


class Value(NamedTuple):
    """Major units and the currency; or why neither can be known."""

    amount: Decimal | None = None
    currency: str | None = None
    not_estimable: str | None = None


def values_of(connection: psycopg.Connection, source: str, feed: Feed, refused: Sequence[Refused]) -> list[Value]:
    """Each message's. A conflict's is what it would change: its own less that of the version in force (rule 1.5)."""
    if feed != "usage":
        return [Value(not_estimable="a replica's report has no price") for _ in refused]
    read = [_read(message) for message in refused]
    found = [each for each in read if isinstance(each, Priceable)]
    named = {each.tenant_id for each in found}
    prices = estimates.prices_of(connection, named)
    unpriced = sorted(named - prices.keys())
    strangers = set(unpriced) - (tenants.known_among(connection, unpriced) if unpriced else set())
    models = {each.model for each in found if each.tenant_id in strangers}
    anyones = estimates.highest_of_all(connection, models, max(r.record.appended_at for r in refused)) if models else []
    rows = EventRows(connection, source, 0, Place("", 0))

    def value(message: Refused, found: Priceable | Value) -> Value:
        if isinstance(found, Value):
            return found
        try:
            if found.tenant_id in strangers:
                return Value(*estimates.worth_at_most(anyones, found.model, estimates.units_of(found)))
            return Value(*_at_own_prices(rows, prices, message, found))
        except NotEstimable as error:
            return Value(not_estimable=str(error))

    return [value(message, each) for message, each in zip(refused, read, strict=True)]


def _read(message: Refused) -> Priceable | Value:
    try:
        return estimates.priceable(message.record.value)
    except NotEstimable as error:
        return Value(not_estimable=str(error))


def _at_own_prices(
    rows: EventRows, prices: Mapping[str, Sequence[EstimatePrice]], message: Refused, found: Priceable
) -> tuple[Decimal, str]:
    mine = prices.get(found.tenant_id, ())
    at = estimates.time_of(found, message.record.appended_at)
    amount, currency = estimates.worth(mine, found.model, at, estimates.units_of(found))
    if amount is None or currency is None:
        raise NotEstimable(f"{found.tenant_id} has no price for {found.model} at {at:%Y-%m-%d}")
    if message.reason == "conflict" and message.event is not None:
        held = _in_force(rows, message.event)
        stands, same_currency = estimates.value_of(mine, held) if held is not None else (None, None)
        if stands is not None and same_currency == currency:
            amount -= stands
    return amount, currency


def _in_force(rows: EventRows, event: UsageEvent) -> UsageEvent | None:
    """The event of the same identity that counts; None if it is forgotten."""
    original = original_of(event)
    for completed_at in {version.completed_at for version in rows.stored_versions(original)}:
        for row in rows.counting(original, completed_at):
            if (row.kind, row.correction_no) == (event.kind, event.correction_no):
                return decode(bytes(row.raw))
    return None
