"""Exchange rates: which one holds at a moment (docs/decisions/0019-exchange-rates.md). Values in, values out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Final

from billing.errors import RateMissing
from billing.periods import written

RATE_AGE_MAX: Final = timedelta(days=35)
"""A rate holds until the next one, but no longer: a month and some days for whoever sets rates at month ends. An older
one was forgotten."""


@dataclass(frozen=True, slots=True)
class ExchangeRate:
    """From `valid_from` on a unit of `base` is worth `rate` of `quote`. `document`: who published it."""

    base: str
    quote: str
    rate: Decimal
    valid_from: datetime
    document: str
    recorded_at: datetime | None = None
    recorded_by: str = ""


class ExchangeRates:
    """Recorded rates; of those of a pair with the same start the one recorded last holds."""

    def __init__(self, recorded: Iterable[ExchangeRate]) -> None:
        """`recorded` is in order of recording."""
        latest = {(each.base, each.quote, each.valid_from): each for each in recorded}
        self._rates: dict[tuple[str, str], list[ExchangeRate]] = {}
        for each in sorted(latest.values(), key=lambda each: each.valid_from):
            self._rates.setdefault((each.base, each.quote), []).append(each)

    def at(self, currency: str, into: str, moment: datetime) -> Fraction:
        """What a unit of a currency is worth in another at a moment, exactly. Raises RateMissing."""
        if currency == into:
            return Fraction(1)
        for pair in ((currency, into), (into, currency)):
            known = self._rates.get(pair, [])
            before = bisect_right(known, moment, key=lambda each: each.valid_from)
            if before and moment - known[before - 1].valid_from <= RATE_AGE_MAX:
                rate = Fraction(known[before - 1].rate)
                return rate if pair[0] == currency else 1 / rate
        raise RateMissing(
            f"no exchange rate of {currency} in {into} holds at {written(moment)}, or it is older than"
            f" {RATE_AGE_MAX.days} days: `tollbook exchange set {currency} {into} …`"
        )

    def changes_in(self, start: datetime, end: datetime) -> list[datetime]:
        """The moments within [start, end) from which another rate of some pair holds, in order."""
        moments = {each.valid_from for known in self._rates.values() for each in known}
        return sorted(moment for moment in moments if start < moment < end)
