"""What a refused message may be worth, at the highest price that may apply. Billing writes the prices.

An estimate is for people who decide what to look at first; nothing is ever billed from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

import psycopg

from serving_adapter.events import UsageEvent, completed_at

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
    connection.execute("delete from usage.estimate_prices where tenant_id = %s", (tenant_id,))
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into usage.estimate_prices (tenant_id, model, metric, unit_price, currency, valid_from)"
            " values (%s, %s, %s, %s, %s, %s)",
            [(tenant_id, p.model, p.metric, p.unit_price, p.currency, p.valid_from) for p in prices],
        )


def value_of(connection: psycopg.Connection, event: UsageEvent | None) -> tuple[Decimal | None, str | None]:
    """(amount in major units, currency), or (None, None) where there is no event or no price for it.

    Of a tenant whose plans changed currency the prices of the newer one alone are taken.
    """
    if event is None:
        return None, None
    rows = connection.execute(
        "select distinct on (metric) metric, unit_price, currency from usage.estimate_prices"
        " where tenant_id = %s and model in (%s, '') and valid_from <= %s"
        " and currency = (select currency from usage.estimate_prices where tenant_id = %s and model in (%s, '')"
        "   and valid_from <= %s order by valid_from desc, currency limit 1)"
        " order by metric, valid_from desc, model desc",
        (event.tenant_id, event.model, completed_at(event)) * 2,
    ).fetchall()
    if not rows:
        return None, None
    units = {
        "input": Decimal(event.input_tokens - event.cache_hit_tokens),
        "cached_input": Decimal(event.cache_hit_tokens),
        "output": Decimal(event.output_tokens),
        "request": Decimal(event.kind == "usage"),
        "gpu_second": event.gpu_us / _MICROSECONDS,
    }
    return sum((units[metric] * price for metric, price, _ in rows), Decimal(0)), rows[0][2]
