"""How much of a metric some usage is, and how much it may become at most. Pure; amounts in smallest units."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NamedTuple

from streams.quotas.definitions import UNITS, Metric

_MICRO: Final = 10**6
_SPEND: Final = UNITS["spend"]


class Counts(NamedTuple):
    """What was used, or is to be taken back: requests, tokens, microseconds of GPU time. `input_tokens` has the cached
    ones in it."""

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    gpu_us: int = 0


class Price(NamedTuple):
    """Prices of a model in 10⁻¹⁸ of the major unit; GPU time per second."""

    request: int = 0
    input: int = 0
    cached_input: int = 0
    output: int = 0
    gpu_second: int = 0

    def of(self, counts: Counts) -> int:
        """What usage costs, to be rounded up where a microsecond of GPU time has a fraction."""
        return (
            self.request * counts.requests
            + self.input * (counts.input_tokens - counts.cached_tokens)
            + self.cached_input * counts.cached_tokens
            + self.output * counts.output_tokens
            - (-self.gpu_second * counts.gpu_us // _MICRO)
        )


FREE: Final = Price()
_OTHER: Final = "\0"
"""Stands for every model without a price of its own: callers may name any number of them."""


class Bound(NamedTuple):
    """The most that a request may come to in one metric: so much by itself, and for each token."""

    per_request: int
    per_input: int
    per_output: int


@dataclass(frozen=True, slots=True)
class DatedPrice:
    """A price from a time (microseconds since 1970) on; model '' for any."""

    model: str
    metric: str
    unit_price: Decimal
    valid_from_us: int


class PriceList:
    """A tenant's highest prices, dated (`usage.estimate_prices`, which billing writes). `statuses`: of usage that
    bills, where that is not as by default; what was counted by others is to be loaded anew."""

    def __init__(self, prices: Iterable[DatedPrice] = (), statuses: Sequence[str] = ()) -> None:
        self._statuses = tuple(statuses)
        self._prices = sorted(prices, key=lambda price: (price.valid_from_us, price.model))
        self._found: dict[tuple[str, int], Price] = {}
        self._highest: dict[tuple[str, int, int], Price] = {}
        self.changes_us: Sequence[int] = sorted({price.valid_from_us for price in self._prices})
        """When prices change."""
        self._named = {price.model for price in self._prices} | {""}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PriceList) and (self._prices, self._statuses) == (other._prices, other._statuses)

    def __hash__(self) -> int:
        return hash(tuple(self._prices))

    def at(self, model: str, at_us: int) -> Price:
        """The prices of a model at a time: of each metric the newest, of two from the same time the model's own.

        Of '', a model that is not known: the highest of all.
        """
        if not self._prices:
            return FREE
        number = bisect_right(self.changes_us, at_us)
        if model not in self._named:
            model = _OTHER
        found = self._found.get((model, number))
        if found is None and not model:
            each = [self.at(name, at_us) for name in {price.model for price in self._prices} - {""}]
            found = self._found[model, number] = Price(*map(max, zip(self._of("", at_us), *each, strict=True)))
        elif found is None:
            found = self._found[model, number] = self._of(model, at_us)
        return found

    def highest(self, model: str, from_us: int, until_us: int) -> Price:
        """The highest prices of a model in a time: what is admitted at its beginning may complete at its end."""
        first, last = bisect_right(self.changes_us, from_us), bisect_right(self.changes_us, until_us)
        if first == last:
            return self.at(model, from_us)
        if model not in self._named:
            model = _OTHER
        found = self._highest.get((model, first, last))
        if found is None:
            each = [self.at(model, from_us), *(self.at(model, at_us) for at_us in self.changes_us[first:last])]
            found = self._highest[model, first, last] = Price(*map(max, zip(*each, strict=True)))
        return found

    def _of(self, model: str, at_us: int) -> Price:
        units = {
            price.metric: -int(-price.unit_price * _SPEND // 1)
            for price in self._prices
            if price.valid_from_us <= at_us and price.model in ("", model)
        }
        return Price(**units)


def amount(metric: Metric, counts: Counts, price: Price) -> int:
    """What usage counts in a metric. Concurrency is no usage: 0."""
    if metric == "output_tokens":
        return counts.output_tokens
    if metric == "total_tokens":
        return counts.input_tokens + counts.output_tokens
    if metric == "input_tokens":
        return counts.input_tokens
    if metric == "requests":
        return counts.requests
    if metric == "cached_input_tokens":
        return counts.cached_tokens
    if metric == "gpu_seconds":
        return counts.gpu_us
    if metric == "spend":
        return price.of(counts)
    return 0


def bound(metric: Metric, price: Price) -> Bound:
    """What a request may come to; a concurrent request is one. GPU time cannot be known before: its bound is 0, and in
    money the smallest unit, so that no request begins once a budget is spent."""
    if metric == "output_tokens":
        return Bound(0, 0, 1)
    if metric == "total_tokens":
        return Bound(0, 1, 1)
    if metric in ("input_tokens", "cached_input_tokens"):
        return Bound(0, 1, 0)
    if metric in ("requests", "concurrency"):
        return Bound(1, 0, 0)
    if metric == "spend":
        return Bound(max(price.request, int(price.gpu_second > 0)), max(price.input, price.cached_input), price.output)
    return Bound(0, 0, 0)
