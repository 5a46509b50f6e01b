"""What a refused event is worth, at the prices of its tenant."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from serving_adapter.events import decode
from streams.rules.estimates import ANY_MODEL, EstimatePrice, value_of
from tests.builders import event_json

EARLY, LATER, AFTER = (datetime(2026, month, 1, tzinfo=UTC) for month in (1, 6, 12))


def price(
    unit: str, since: datetime, metric: str = "output", model: str = ANY_MODEL, currency: str = "USD"
) -> EstimatePrice:
    return EstimatePrice(model, metric, Decimal(unit), currency, since)


@pytest.mark.parametrize(
    ("prices", "value"),
    [
        ([], (None, None)),
        ([price("2", AFTER), price("2", EARLY, model="other")], (None, None)),
        ([price("2", EARLY), price("3", LATER), price("9", AFTER)], (Decimal(15), "USD")),
        ([price("3", EARLY, model="llama"), price("2", EARLY)], (Decimal(15), "USD")),
        ([price("3", EARLY, model="llama"), price("2", LATER)], (Decimal(10), "USD")),
        ([price("2", EARLY, "input"), price("1", EARLY, "cached_input"), price("7", EARLY, "request")],
         (Decimal(2 * 6 + 4 + 7), "USD")),
        ([price("2", EARLY), price("3", LATER, "input", currency="EUR")], (Decimal(18), "EUR")),
        ([price("2", EARLY), price("3", EARLY, "input", currency="EUR")], (Decimal(18), "EUR")),
    ],
)  # fmt: skip
def test_the_newest_price_of_each_metric_applies(
    prices: list[EstimatePrice], value: tuple[Decimal | None, str | None]
) -> None:
    event = decode(event_json())  # 6 uncached, 4 cached, 5 output tokens of llama in November
    assert value_of(prices, event) == value_of(prices[::-1], event) == value
