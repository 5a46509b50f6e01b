"""What a refused message may be worth, at the highest price that may apply. Billing writes the prices.

An estimate is for people who decide what to look at first; nothing is ever billed from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

import psycopg

from serving_adapter.events import UsageEvent, completed_at
from streams.rules.numbered_changes import write_in_order

ANY_MODEL: Final = ""
_MICROSECONDS: Final = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class EstimatePrice:
    """A price per unit of a metric, for a model or, with `''`, for any."""

    model: str
    metric: str
    unit_price: Decimal
    currency: str
    valid_from: datetime


def set_prices(connection: psycopg.Connection, tenant_id: str, prices: Iterable[EstimatePrice]) -> None:
    """Replace a tenant's prices."""
    write_in_order(connection)
    connection.execute("delete from usage.estimate_prices where tenant_id = %s", (tenant_id,))
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into usage.estimate_prices (tenant_id, model, metric, unit_price, currency, valid_from)"
            " values (%s, %s, %s, %s, %s, %s)",
            [(tenant_id, p.model, p.metric, p.unit_price, p.currency, p.valid_from) for p in prices],
        )
    connection.execute("insert into usage.estimate_price_changes (tenant_id) values (%s)", (tenant_id,))


def repriced_since(connection: psycopg.Connection, change_no: int) -> list[str]:
    """Whose prices were written after a change."""
    rows = connection.execute(
        "select distinct tenant_id from usage.estimate_price_changes where change_no > %s", (change_no,)
    )
    return [row[0] for row in rows]


def prices_of(connection: psycopg.Connection, tenant_ids: Iterable[str]) -> dict[str, list[EstimatePrice]]:
    """The prices of each of these tenants that has any."""
    found: dict[str, list[EstimatePrice]] = defaultdict(list)
    rows = connection.execute(
        "select tenant_id, model, metric, unit_price, currency, valid_from from usage.estimate_prices"
        " where tenant_id = any(%s)",
        (sorted(set(tenant_ids)),),
    )
    for tenant_id, *price in rows:
        found[tenant_id].append(EstimatePrice(*price))
    return dict(found)


def value_of(prices: Sequence[EstimatePrice], event: UsageEvent) -> tuple[Decimal | None, str | None]:
    """(amount in major units, currency) of an event at its tenant's `prices`, or (None, None) where none applies."""
    units = {
        "input": Decimal(event.input_tokens - event.cache_hit_tokens),
        "cached_input": Decimal(event.cache_hit_tokens),
        "output": Decimal(event.output_tokens),
        "request": Decimal(event.kind == "usage"),
        "gpu_second": event.gpu_us / _MICROSECONDS,
    }
    return worth(prices, event.model, completed_at(event), units)


def worth(
    prices: Sequence[EstimatePrice], model: str, at: datetime, units: Mapping[str, Decimal]
) -> tuple[Decimal | None, str | None]:
    """(amount in major units, currency) of so many units by metric, or (None, None) where no price applies.

    Of a metric the newest price applies, and of two from the same time the model's own. Of a tenant whose plans changed
    currency the prices of the newer one alone are taken.
    """
    in_force = [price for price in prices if price.model in (model, ANY_MODEL) and price.valid_from <= at]
    if not in_force:
        return None, None
    newest = max(price.valid_from for price in in_force)
    currency = min(price.currency for price in in_force if price.valid_from == newest)
    by_metric = {
        price.metric: price.unit_price
        for price in sorted(in_force, key=lambda price: (price.valid_from, price.model))
        if price.currency == currency
    }
    return sum((units[metric] * price for metric, price in by_metric.items() if metric in units), Decimal(0)), currency
