"""What a refused message may be worth, at the highest price that may apply. Billing writes the prices.

An estimate is for people who decide what to look at first; nothing is ever billed from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec
import psycopg

from serving_adapter.errors import RefusedEvent
from serving_adapter.events import (
    EARLIEST,
    UNREADABLE,
    Count,
    GpuMicroseconds,
    Name,
    TenantId,
    UsageEvent,
    completed_at,
    field_at_fault,
    instant,
)  # fmt: skip
from streams.rules.numbered_changes import write_in_order

ANY_MODEL: Final = ""
BILL_STATUSES: Final = ("ok", "aborted")
"""Of usage that bills unless a contract says otherwise (docs/spec/money.md 2)."""
BILL_STATUSES_BY_TENANT: Final = """billed as materialized (
        select tenant_id, statuses from (select distinct tenant_id from usage.estimate_price_changes
            where bill_statuses is not null) as told
        cross join lateral (select bill_statuses as statuses from usage.estimate_price_changes as newest
            where newest.tenant_id = told.tenant_id order by change_no desc limit 1) as newest
        where statuses is not null
    )"""
"""A common table: (tenant_id, statuses) of those whose contract says otherwise."""
_MICROSECONDS: Final = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class EstimatePrice:
    """A price per unit of a metric, for a model or, with `''`, for any."""

    model: str
    metric: str
    unit_price: Decimal
    currency: str
    valid_from: datetime


class Priceable(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What of a message its price hangs on; all else may be anything. Units as the event's."""

    tenant_id: TenantId
    model: Name
    input_tokens: Count
    output_tokens: Count
    cache_hit_tokens: Count = 0
    gpu_us: GpuMicroseconds = 0
    kind: str = "usage"
    purpose: str = "tenant"
    timestamp: Any = None


_decode: Final = msgspec.json.Decoder(Priceable).decode


class NotEstimable(Exception):
    """What a message may be worth cannot be known; the text says why."""


def priceable(message: bytes) -> Priceable:
    """What can be priced of a message that was refused for whatever reason. Raises NotEstimable."""
    try:
        found = _decode(message)
    except msgspec.ValidationError as error:
        field, why = field_at_fault(str(error))
        raise NotEstimable(f"{field}: {why}" if field else why) from None
    except UNREADABLE:
        raise NotEstimable("not JSON") from None
    if "\0" in found.model:
        raise NotEstimable("model: holds a NUL character")  # which PostgreSQL is not asked about, and does not keep
    if found.purpose != "tenant" or found.tenant_id.startswith("_"):
        raise NotEstimable("it is never billed")
    uncached = found.input_tokens - found.cache_hit_tokens
    if found.kind == "usage" and min(uncached, found.cache_hit_tokens, found.output_tokens, found.gpu_us) < 0:
        raise NotEstimable("its counts are below zero, or more of its input was cached than there is")
    return found


def time_of(found: Priceable, received_at: datetime) -> datetime:
    """When it was completed, as far as it says so; else when it was received."""
    try:
        stated = instant(found.timestamp, "timestamp") if isinstance(found.timestamp, int | str) else received_at
    except (RefusedEvent, ValueError, OverflowError, OSError):
        return received_at
    return stated if stated >= EARLIEST else received_at


def set_prices(
    connection: psycopg.Connection, tenant_id: str, prices: Iterable[EstimatePrice],
    bill_statuses: Collection[str] = BILL_STATUSES,
) -> None:  # fmt: skip
    """Replace a tenant's prices, and which statuses of its usage bill."""
    write_in_order(connection)
    connection.execute("delete from usage.estimate_prices where tenant_id = %s", (tenant_id,))
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into usage.estimate_prices (tenant_id, model, metric, unit_price, currency, valid_from)"
            " values (%s, %s, %s, %s, %s, %s)",
            [(tenant_id, p.model, p.metric, p.unit_price, p.currency, p.valid_from) for p in prices],
        )
    statuses = None if set(bill_statuses) == set(BILL_STATUSES) else sorted(bill_statuses)
    connection.execute(
        "insert into usage.estimate_price_changes (tenant_id, bill_statuses) values (%s, %s)", (tenant_id, statuses)
    )


def bill_statuses_of(connection: psycopg.Connection, tenant_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Which statuses of these tenants' usage bill, where that is not as by default."""
    rows = connection.execute(
        f"with {BILL_STATUSES_BY_TENANT} select tenant_id, statuses from billed where tenant_id = any(%s)",
        (sorted(set(tenant_ids)),),
    )
    return {tenant_id: tuple(statuses) for tenant_id, statuses in rows}


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


def highest_of_all(connection: psycopg.Connection, models: Iterable[str], at: datetime) -> list[EstimatePrice]:
    """What usage of these models costs at most, whoever's it is: by model, metric and currency, of the prices in force.

    For a tenant that is not registered yet, of whom no contract is known.
    """
    rows = connection.execute(
        "select model, metric, max(unit_price), currency, max(valid_from) from ("
        " select distinct on (tenant_id, model, metric) * from usage.estimate_prices"
        " where model = any(%s) and valid_from <= %s order by tenant_id, model, metric, valid_from desc"
        ") as current group by model, metric, currency",
        ([*sorted(set(models)), ANY_MODEL], at),
    )
    return [EstimatePrice(*row) for row in rows]


def worth_at_most(prices: Sequence[EstimatePrice], model: str, units: Mapping[str, Decimal]) -> tuple[Decimal, str]:
    """(amount in major units, currency) of units at the highest of `prices`. Raises NotEstimable."""
    due = [price for price in prices if price.model in (model, ANY_MODEL)]
    currencies = sorted({price.currency for price in due})
    if len(currencies) != 1:
        raise NotEstimable(
            f"its tenant is not registered, and others pay in {', '.join(currencies)}"
            if currencies
            else "its tenant is not registered, and nobody has a price for its model"
        )
    highest: dict[str, Decimal] = {}
    for price in due:
        highest[price.metric] = max(price.unit_price, highest.get(price.metric, price.unit_price))
    amount = sum((units[metric] * price for metric, price in highest.items() if metric in units), Decimal(0))
    return amount, currencies[0]


def value_of(prices: Sequence[EstimatePrice], event: UsageEvent) -> tuple[Decimal | None, str | None]:
    """(amount in major units, currency) of an event at its tenant's `prices`, or (None, None) where none applies."""
    return worth(prices, event.model, completed_at(event), units_of(event))


def units_of(event: UsageEvent | Priceable) -> dict[str, Decimal]:
    """By metric."""
    return {
        "input": Decimal(event.input_tokens - event.cache_hit_tokens),
        "cached_input": Decimal(event.cache_hit_tokens),
        "output": Decimal(event.output_tokens),
        "request": Decimal(event.kind == "usage"),
        "gpu_second": event.gpu_us / _MICROSECONDS,
    }


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
